"""Vectors (features from any model of the user's): standardised, with a flag for a missing one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from mtl_bento.columns._base import Column
from mtl_bento.encoders._base import ENCODERS, Encoder, EncoderSpec


class VectorEncoderSpec(EncoderSpec):
    """Vectors as they are, standardised."""

    kind: Literal["vector"] = "vector"


@ENCODERS.register(VectorEncoderSpec)
class VectorEncoder(Encoder[VectorEncoderSpec]):
    """Standardised numbers of all vector columns, then one missing flag a column.

    Letters: B rows, C numbers of all vectors together.
    """

    mean: Tensor
    spread: Tensor
    first: Tensor

    def __init__(
        self,
        specs: Sequence[VectorEncoderSpec],
        columns: Sequence[Column],
        fitted: dict[str, Tensor],
        generators: Sequence[Generator],
    ) -> None:
        super().__init__(specs, columns, fitted, generators)
        self.n_features = len(self.mean) + len(self.first)

    @classmethod
    def fit(cls, columns: Sequence[Column], values: Tensor) -> dict[str, Tensor]:
        """values [N, C] with NaN in missing vectors -> mean and spread [C], the first number's place of each column."""
        values = values.double()  # squares of numbers beyond 1e19 are infinite in 32 bits
        mean = values.nanmean(0).nan_to_num(0.0)
        spread = (values - mean).square().nanmean(0).sqrt().nan_to_num(0.0)
        sizes = torch.tensor([column.n_features for column in columns])
        spread = torch.where(spread > 0, spread, 1.0)
        return {"mean": mean.float(), "spread": spread.float(), "first": sizes.cumsum(0) - sizes}

    def prepare(self, values: Tensor) -> Tensor:
        """Raw numbers [B, C] -> standardised, cut at ten standard deviations, NaN where missing: [B, C]."""
        return ((values - self.mean) / self.spread).clamp(-10, 10)

    def unfold(self, prepared: Tensor) -> tuple[Tensor, ...]:
        """[..., B, C] -> [..., B, C + columns]: numbers, missing flags."""
        flags = prepared[..., self.first].isnan().to(prepared.dtype)
        return (torch.cat([prepared.nan_to_num(0.0), flags], -1),)

    def forward(self, *unfolded: Tensor) -> Tensor:
        """Return the features as they are: nothing here is learned by gradient."""
        return unfolded[0]
