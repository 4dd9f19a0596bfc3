"""Convolutions of kernel 3 over the positions of an input: over a grid 3 x 3 (pictures), along a line 3 (texts).

Each layer adds to what it reads (a residual network; He et al., CVPR 2016). Ours has no batch normalisation, whose
statistics members could not keep, and drops a unit at all positions of a row at once (Tompson et al., CVPR 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from torch import Generator, Tensor, nn

from mtl_bento.convolution import Lattice, StackedConvolution
from mtl_bento.layers import ACTIVATIONS, Dropout, narrowed
from mtl_bento.trunks._base import TRUNKS, Trunk, TrunkSizes, TrunkSpec


class ConvSpec(TrunkSpec):
    """Size of a convolutional trunk: a map to `width` at each position, then `shared_depth` convolutions."""

    kind: Literal["conv"] = "conv"


@TRUNKS.register(ConvSpec)
class Conv(Trunk[ConvSpec]):
    """Residual convolutions, K members stacked; a layer's products are those of `mtl_bento.convolution`.

    Letters: K members, B rows, L positions, N places of all rows, F inputs, D width.
    """

    positional: ClassVar[bool] = True

    def __init__(self, specs: Sequence[ConvSpec], sizes: TrunkSizes, generators: Sequence[Generator]) -> None:
        super().__init__(specs, sizes, generators)
        self.activation = ACTIVATIONS[specs[0].activation]
        self.lattice = Lattice(sizes.length, sizes.grid)
        inputs = [sizes.n_features] * len(specs)
        self.first = StackedConvolution(inputs, self.widths, offsets=[0], generators=generators)
        self.convolutions, self.dropouts = nn.ModuleList(), nn.ModuleList()
        self.counts: list[int] = []
        widest = max(self.widths)
        for level in range(specs[0].shared_depth):
            held = [spec for spec in specs if spec.shared_depth > level]
            widths = [spec.width for spec in held]
            draws = generators[: len(held)]
            self.convolutions.append(
                StackedConvolution(
                    widths, widths, offsets=self.lattice.offsets, generators=draws, padded=(widest, widest)
                )
            )
            self.dropouts.append(Dropout([spec.dropout for spec in held]))
            self.counts.append(len(held))

    def forward(self, features: Tensor, mask: Tensor) -> list[Tensor]:  # type: ignore[override]
        """features [K or 1, B, L, F], mask [K or 1, B, L] -> T of [K, 1, B, L, D], the same state for every task.

        Where there is no position the state is zero.
        """
        members, (rows, length) = len(self.specs), features.shape[1:3]
        lattice = self.lattice.cut(length)
        x = self.first(features.flatten(1, 2).expand(members, -1, -1), self.activation)  # [K, B * L, D]
        real = lattice.spread(mask.unsqueeze(-1).to(x.dtype))  # [K or 1, N, 1]
        x = lattice.spread(x.view(members, rows, length, x.shape[-1])) * real
        for level, count in enumerate(self.counts):
            x = narrowed(x, count, partial(self._layer, level, lattice, real))
        return [lattice.gathered(x).unsqueeze(1)] * self.sizes.n_tasks

    def _layer(self, level: int, lattice: Lattice, real: Tensor, x: Tensor) -> Tensor:
        """x [K, N, D] -> the same shape."""
        change = lattice.by_row(self.convolutions[level](x, self.activation))
        change = cast(Dropout, self.dropouts[level]).by_row(change).flatten(1, 2)
        return torch.addcmul(x, change, real[: len(x)])
