"""What every encoder promises: features for the trunk out of one block of encoded columns.

What does not depend on a member and is not learned by gradient (quantiles, means) is *fitted* once on the training
rows and lives in buffers, so that it travels in the weights file and the same code runs in training and in serving.

Letters: K members, B rows, C columns of the block as the schema encodes them, F features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from torch import Generator, Tensor

from mtl_bento.columns._base import Column
from mtl_bento.layers import Stacked
from mtl_bento.registry import Registry
from mtl_bento.spec import Spec


class EncoderSpec(Spec):
    """How one block of columns becomes features; its `kind` is the name of the block."""

    kind: str


AnySpec = TypeVar("AnySpec", bound=EncoderSpec)


class Encoder(Stacked, Generic[AnySpec]):
    """Features of one block, for K members at once.

    Subclasses take `(specs, columns, fitted, generators)` and set `n_features`; members of one stack agree on every
    field that changes the number of features (mark them `MustMatch` or `Searched(..., differs=False)`).
    """

    n_features: int
    """How many features F the trunk gets from this block."""

    def __init__(
        self,
        specs: Sequence[AnySpec],
        columns: Sequence[Column],
        fitted: dict[str, Tensor],
        generators: Sequence[Generator],
    ) -> None:
        super().__init__()
        del specs, columns, generators
        for name, value in fitted.items():
            self.register_buffer(name, value.clone())

    @classmethod
    @abstractmethod
    def fit(cls, columns: Sequence[Column], values: Tensor) -> dict[str, Tensor]:
        """Return what the encoder needs to know of the training rows `values` [N, C], as tensors by buffer name."""

    @abstractmethod
    def prepare(self, values: Tensor) -> Tensor:
        """Return what can be computed once per row, whatever the spec: [B, C] -> [B, C']."""

    def unfold(self, prepared: Tensor) -> tuple[Tensor, ...]:
        """Return what `forward` reads: what follows from the spec's `MustMatch` fields and nothing learned by gradient.

        Training computes it once for all rows, where memory allows: [..., B, C'] -> each [..., B, C''].
        """
        return (prepared,)

    @abstractmethod
    def forward(self, *unfolded: Tensor) -> Tensor:
        """Each [K or 1, B, C''] -> features [K or 1, B, F]; the 1 where nothing in it is learned per member."""

    def features(self, prepared: Tensor) -> Tensor:
        """Return features [K or 1, B, F] of prepared rows [K or 1, B, C']."""
        encoded: Tensor = self(*self.unfold(prepared))
        return encoded


ENCODERS: Registry[Encoder[Any]] = Registry("encoder", package="mtl_bento.encoders", group="mtl_bento.encoders")
