"""Texts: a frozen backbone's features of each token, or embeddings that the network learns.

Letters: K members, B rows, L positions (tokens), D features of a backbone, V learned tokens, W numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from mtl_bento.backbones._base import Backbone, BackboneSpec, backbone_spec
from mtl_bento.columns._base import Column
from mtl_bento.encoders._base import ENCODERS, PositionsSpec
from mtl_bento.encoders._positions import BackboneEncoder
from mtl_bento.errors import SpecError
from mtl_bento.layers import uniform_where
from mtl_bento.spec import MustMatch


class TextEncoderSpec(PositionsSpec):
    """Texts by token."""

    kind: Literal["text"] = "text"
    embedding_width: Annotated[int, Field(ge=1, le=512), MustMatch] = 64
    """Numbers that stand for a token where the network learns its own ("tokens")."""


@ENCODERS.register(TextEncoderSpec)
class TextEncoder(BackboneEncoder[TextEncoderSpec]):
    """A position for each token that the column keeps.

    Where features depend on the token alone, rows are prepared to their tokens, [B, L, 1], and features are looked up
    when they are read: those of all rows would be gigabytes.
    """

    seen: Tensor
    table: Tensor

    def __init__(
        self,
        specs: Sequence[TextEncoderSpec],
        columns: Sequence[Column],
        fitted: dict[str, Tensor],
        generators: Sequence[Generator],
    ) -> None:
        super().__init__(specs, columns, fitted, generators)
        self.length = int(self.column.length)
        backbone = self.backbone_class(self.column)
        self.by_token, self.learned = backbone.by_token, backbone.learned
        if self.learned:
            width, n = specs[0].embedding_width, len(specs)
            self.n_features = width
            draw = uniform_where(self.seen, width)
            self.stack("table", [(len(self.seen), width)] * n, [draw] * n, generators, decay=False)

    @classmethod
    def backbone_of(cls, column: Any) -> BackboneSpec:
        """Return the spec of the column's backbone."""
        spec: BackboneSpec = backbone_spec(column.backbone, "text")
        return spec

    @classmethod
    def fit(cls, columns: Sequence[Column], values: Tensor) -> dict[str, Tensor]:
        """Tokens [N, L] -> what `BackboneEncoder` learns, or which of the tokens [V] were seen."""
        fitted = super().fit(columns, values)
        (column,) = columns
        if cls.backbone_class(column).learned:
            n_tokens = int(getattr(column, "n_tokens"))  # noqa: B009 - a text column has it
            fitted["seen"] = torch.bincount(values[values >= 0], minlength=n_tokens)[:n_tokens] > 0
        return fitted

    @classmethod
    def check(cls, column: Any, values: Tensor, backbone: Backbone[Any]) -> None:
        """Raise SpecError where texts are too long for the backbone, or their tokens are not its own."""
        kind, longest, known = backbone.spec.kind, backbone.longest, backbone.n_tokens
        if longest is not None and column.length > longest:
            raise SpecError(
                f"Input {column.name!r}: backbone {kind!r} reads at most {longest} tokens of a text, not "
                f"{column.length}; give it a smaller `length:`."
            )
        most = int(values.max()) if values.numel() else -1
        if known is not None and most >= known:
            raise SpecError(
                f"Input {column.name!r}: its tokenizer has a token {most}, and backbone {kind!r} knows those "
                f"below {known}; give it the backbone's own `tokenizer:`."
            )

    @classmethod
    def by_position(cls, column: Any, values: Tensor, backbone: Any) -> Tensor:
        """Tokens [B, L] -> [B, L, D]."""
        del column
        features: Tensor = backbone(values)
        return features.masked_fill((values < 0).unsqueeze(-1), torch.nan)

    def prepare(self, values: Tensor) -> Tensor:
        """Tokens [B, L] -> standardised features [B, L, D] or the tokens themselves [B, L, 1], NaN where none is."""
        known = self.backbone.on(values.device).n_tokens
        values = values if known is None else values.clamp_max(known - 1)  # a tokenizer of the user's may know more
        if not self.by_token:
            return super().prepare(values)
        return values.to(self.mean.dtype).masked_fill(values < 0, torch.nan).unsqueeze(-1)

    def unfold(self, prepared: Tensor) -> tuple[Tensor, ...]:
        """[..., B, L, D] or [..., B, L, 1] -> features [..., B, L, D], or learned tokens [..., B, L]; and the mask."""
        if not self.by_token:
            return super().unfold(prepared)
        absent = prepared[..., 0].isnan()
        tokens = prepared[..., 0].nan_to_num(0.0).long()
        if self.learned:
            return tokens, ~absent
        features = self.standardised(self.backbone(tokens.flatten(0, -2)).unflatten(0, tokens.shape[:-1]))
        return features.masked_fill_(absent.unsqueeze(-1), 0.0), ~absent

    def forward(self, *unfolded: Tensor) -> Tensor:
        """Features [K or 1, B, L, D] as they are; for learned tokens [K or 1, B, L] -> [K, B, L, W]."""
        if not self.learned:
            return unfolded[0]
        members, rows, width = self.table.shape
        places = unfolded[0] + torch.arange(members, device=unfolded[0].device).view(-1, 1, 1) * rows
        return nn.functional.embedding(places, self.table.reshape(members * rows, width))
