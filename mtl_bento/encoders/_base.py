"""What every encoder promises: features for the trunk out of one block of encoded columns.

What does not depend on a member and is not learned by gradient (quantiles, means) is *fitted* once on the training
rows and lives in buffers, so that it travels in the weights file and the same code runs in training and in serving.

An encoder of a picture or a text has *positions* (`length` > 0): cells of a grid row by row, or tokens. A trunk that
reads positions gets their features and a mask of those that are real; any other gets them pooled.

Letters: K members, B rows, C columns of the block as the schema encodes them, L positions, F features, D numbers of a
position.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from torch import Generator, Tensor

from mtl_bento.columns._base import Column
from mtl_bento.layers import Stacked
from mtl_bento.registry import Registry
from mtl_bento.spec import Searched, Spec

FLAT = 16
"""Positions up to which they may be laid side by side for a trunk that reads none."""
BACKBONE = "backbone."
"""How the names of a frozen backbone's weights begin among what was fitted."""


class EncoderSpec(Spec):
    """How one block of columns becomes features; its `kind` is that of the block (`kind_of`)."""

    kind: str


class PositionsSpec(EncoderSpec):
    """How one column with positions becomes features."""

    pooling: Annotated[Literal["mean", "flatten"], Searched(choices=("mean", "flatten"), differs=False)] = "mean"
    """What a trunk that reads no positions gets: their mean, or all side by side (up to 16 of them; else the mean)."""


def kind_of(block: str) -> str:
    """Return the kind of the encoder that reads a block: "image" for "image:photo"."""
    return block.partition(":")[0]


def has_positions(block: str) -> bool:
    """Return whether the inputs of a block have positions."""
    return issubclass(ENCODERS.spec_class(kind_of(block)), PositionsSpec)


AnySpec = TypeVar("AnySpec", bound=EncoderSpec)


class Encoder(Stacked, Generic[AnySpec]):
    """Features of one block, for K members at once.

    Subclasses take `(specs, columns, fitted, generators)` and set `n_features`; members of one stack agree on every
    field that changes the number of features (mark them `MustMatch` or `Searched(..., differs=False)`). With positions
    they set `length` too, take their spec from `PositionsSpec`, and the last that `unfold` returns is the mask.
    """

    n_features: int
    """How many features F the trunk gets from this block, or from each of its positions."""
    length: int = 0
    """Positions L; 0 where there are none."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the positions, where they lie on a grid."""
    pooling: str = "mean"
    """How positions are pooled."""

    def __init__(
        self,
        specs: Sequence[AnySpec],
        columns: Sequence[Column],
        fitted: dict[str, Tensor],
        generators: Sequence[Generator],
    ) -> None:
        super().__init__()
        del columns, generators
        self.pooling = getattr(specs[0], "pooling", "mean")
        self.frozen = {n.removeprefix(BACKBONE): v for n, v in fitted.items() if n.startswith(BACKBONE)}
        """Weights of a backbone: by reference, as every stack has an encoder."""
        for name, value in fitted.items():
            if not name.startswith(BACKBONE):
                self.register_buffer(name, value.clone())

    @classmethod
    @abstractmethod
    def fit(cls, columns: Sequence[Column], values: Tensor) -> dict[str, Tensor]:
        """Return what the encoder needs to know of the training rows `values` [N, C], as tensors by buffer name.

        Weights of a frozen backbone are named "backbone.<name>".
        """

    @classmethod
    def needs(cls, columns: Sequence[Column]) -> dict[str, str]:
        """Return the distributions that reading columns of those needs, by version, besides the project's own."""
        del columns
        return {}

    @abstractmethod
    def prepare(self, values: Tensor) -> Tensor:
        """Return what can be computed once per row, whatever the spec: [B, C] -> [B, C'], or [B, L, D] by position.

        The rows come some at a time; where the numbers of a position are NaN, there is none.
        """

    def unfold(self, prepared: Tensor) -> tuple[Tensor, ...]:
        """Return what `forward` reads: what follows from the spec's `MustMatch` fields and nothing learned by gradient.

        Training computes it once for all rows, where memory allows: [..., B, C'] -> each [..., B, C'']. With positions
        [..., B, L, D] -> numbers with 0 for NaN, and which positions are real, bool [..., B, L].
        """
        if not self.length:
            return (prepared,)
        absent = prepared.isnan().any(-1)
        return prepared.masked_fill(absent.unsqueeze(-1), 0.0), ~absent

    @abstractmethod
    def forward(self, *unfolded: Tensor) -> Tensor:
        """Each [K or 1, B, C''] -> features [K or 1, B, (L,) F]; the 1 where nothing in it is learned per member."""

    def features(self, prepared: Tensor) -> Tensor:
        """Return features [K or 1, B, (L,) F] of prepared rows [K or 1, B, C']."""
        encoded: Tensor = self(*self.unfold(prepared))
        return encoded

    @property
    def n_pooled(self) -> int:
        """How many features F' a trunk gets that reads no positions."""
        return self.n_features * (self.length if self._flat else 1)

    @property
    def _flat(self) -> bool:
        return self.pooling == "flatten" and self.length <= FLAT

    def pooled(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return features for a trunk that reads no positions: [K or 1, B, L, F], [K or 1, B, L] -> [K or 1, B, F']."""
        if self._flat:
            return (features * mask.unsqueeze(-1)).flatten(2)
        return mean_of_real(features, mask)


def mean_of_real(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over real positions, 0 where there is none: [..., L, F], mask [..., L] -> [..., F]."""
    share = mask.to(values.dtype)
    share = share / share.sum(-1, keepdim=True).clamp_min(1)
    product: Tensor = torch.matmul(share.unsqueeze(-2), values)
    return product.squeeze(-2)


ENCODERS: Registry[Encoder[Any]] = Registry("encoder", package="mtl_bento.encoders", group="mtl_bento.encoders")
