"""Categories: one-hot for columns of few levels, learned embeddings for the others.

A lookup is cheaper than a one-hot product from about twenty levels. "missing" and "other" have codes of their own; one
that training never saw starts, and stays, at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from mtl_bento.columns._base import Column
from mtl_bento.encoders._base import ENCODERS, Encoder, EncoderSpec
from mtl_bento.layers import uniform_where
from mtl_bento.spec import MustMatch


class CategoricalEncoderSpec(EncoderSpec):
    """Categories as one-hot features or embeddings."""

    kind: Literal["categorical"] = "categorical"
    embedding_width: Annotated[int, Field(ge=1, le=64), MustMatch] = 8
    """Numbers that stand for one level of a column with more levels than `one_hot_levels`."""
    one_hot_levels: Annotated[int, Field(ge=0, le=256), MustMatch] = 12
    """Columns of at most so many levels are one-hot."""


@ENCODERS.register(CategoricalEncoderSpec)
class CategoricalEncoder(Encoder[CategoricalEncoderSpec]):
    """One-hot features and stacked embeddings.

    Letters: K members, B rows, C columns, H one-hot features, E embedded columns, R rows of the embedding table.
    """

    seen: Tensor
    n_levels: Tensor
    hot_column: Tensor
    hot_code: Tensor
    embedded: Tensor
    offset: Tensor
    table: Tensor
    unit: Tensor

    def __init__(
        self,
        specs: Sequence[CategoricalEncoderSpec],
        columns: Sequence[Column],
        fitted: dict[str, Tensor],
        generators: Sequence[Generator],
    ) -> None:
        super().__init__(specs, columns, fitted, generators)
        spec, levels = specs[0], self.n_levels.tolist()
        starts = _starts(levels)
        small = [c for c, n in enumerate(levels) if n <= spec.one_hot_levels]
        pairs = [(c, code) for c in small for code in _hot_codes(self.seen[starts[c] : starts[c + 1]])]
        embedded = [c for c, n in enumerate(levels) if n > spec.one_hot_levels]
        offsets = _starts([levels[c] for c in embedded])
        self.register_buffer("unit", torch.ones(()), persistent=False)
        self._index("hot_column", [c for c, _ in pairs])
        self._index("hot_code", [code for _, code in pairs])
        self._index("embedded", embedded)
        self._index("offset", offsets[:-1])
        self.n_features = len(pairs) + len(embedded) * spec.embedding_width
        if embedded:
            seen = torch.cat([self.seen[starts[c] : starts[c + 1]] for c in embedded])
            shape = (offsets[-1], spec.embedding_width)
            n = len(specs)
            draw = uniform_where(seen, spec.embedding_width)
            self.stack("table", [shape] * n, [draw] * n, generators, decay=False)

    def _index(self, name: str, values: list[int]) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)

    @classmethod
    def fit(cls, columns: Sequence[Column], values: Tensor) -> dict[str, Tensor]:
        """Codes [N, C], -1 missing, n other -> which of missing, levels, other was seen, all columns in one row."""
        sizes = [len(getattr(column, "levels")) for column in columns]  # noqa: B009 - a Column of this block has levels
        seen = [torch.bincount(values[:, c] + 1, minlength=size + 2)[: size + 2] > 0 for c, size in enumerate(sizes)]
        return {"seen": torch.cat(seen), "n_levels": torch.tensor(sizes)}

    def prepare(self, values: Tensor) -> Tensor:
        """Codes [B, C] -> codes [B, C] from 0: missing, the levels, other."""
        return values + 1

    def unfold(self, prepared: Tensor) -> tuple[Tensor, ...]:
        """Codes [..., B, C] -> one-hot features [..., B, H] and rows of the embedding table [..., B, E]."""
        hot = (prepared.index_select(-1, self.hot_column) == self.hot_code).to(self.unit.dtype)
        return hot, prepared.index_select(-1, self.embedded) + self.offset

    def forward(self, *unfolded: Tensor) -> Tensor:
        """Features [K or 1, B, H] and table rows [K or 1, B, E] -> [K or 1, B, F]."""
        hot, codes = unfolded
        if not len(self.embedded):
            return hot
        members, rows, width = self.table.shape
        places = codes + torch.arange(members, device=codes.device).view(-1, 1, 1) * rows  # [K, B, E]
        vectors = nn.functional.embedding(places, self.table.reshape(members * rows, width))
        return torch.cat([hot.expand(members, -1, -1), vectors.flatten(2)], -1)


def _starts(sizes: Sequence[int]) -> list[int]:
    """Return where each column's codes begin in a row that holds missing, the levels and other of each, and the end."""
    return list(accumulate((size + 2 for size in sizes), initial=0))


def _hot_codes(seen: Tensor) -> list[int]:
    """Return the codes of a small column that get a feature: those seen, without the first where it is one of two."""
    codes: list[int] = seen.nonzero().flatten().tolist()
    return codes[1:] if len(codes) == 2 else codes
