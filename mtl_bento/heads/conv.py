"""A linear map at each position, and beside it a hidden layer that is a convolution: 3 x 3 on a grid, 3 on a line.

As in a dense head the linear path stays. Where a task has no positions, each row is one: the convolution then has no
neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from mtl_bento.convolution import Lattice, StackedConvolution
from mtl_bento.heads._base import HEADS, Head, HeadSpec
from mtl_bento.layers import StackedLinear
from mtl_bento.spec import Searched


class ConvHeadSpec(HeadSpec):
    """Size of a convolutional head."""

    kind: Literal["conv"] = "conv"
    width: Annotated[int, Field(ge=1, le=4096), Searched(choices=(16, 32, 64))] = 32
    """Units of the convolution."""


@HEADS.register(ConvHeadSpec)
class ConvHead(Head[ConvHeadSpec]):
    """outputs = linear(state) + second(relu(convolution(state))), K members stacked.

    The convolution is shared by TabM's inner members, the output layers are their own.

    Letters: K members, M TabM's inner members, B rows, L positions, N places of all rows, D width, O outputs.
    """

    positional: ClassVar[bool] = True

    def __init__(
        self,
        specs: Sequence[ConvHeadSpec],
        fan_in: Sequence[int],
        n_outputs: int,
        inner: int,
        generators: Sequence[Generator],
        length: int = 1,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(specs, fan_in, n_outputs, inner, generators)
        outputs, widths = [n_outputs] * len(specs), [spec.width for spec in specs]
        self.lattice = Lattice(length, grid)
        self.linear = StackedLinear(fan_in, outputs, inner=inner, generators=generators)
        self.first = StackedConvolution(fan_in, widths, offsets=self.lattice.offsets, generators=generators)
        self.second = StackedLinear(widths, outputs, inner=inner, bias=False, generators=generators)

    def forward(self, state: Tensor) -> Tensor:
        """state [K, M, B, L, D], zero where there is no position -> outputs [K, M, B, L, O]; or without L."""
        if state.ndim == 4:
            return self.forward(state.unsqueeze(3)).squeeze(3)
        members, inner, rows, length, width = state.shape
        lattice = self.lattice.cut(length)
        # The inner members are rows of one convolution.
        x = state.reshape(members, inner * rows, length, width)
        hidden = lattice.gathered(self.first(lattice.spread(x), torch.relu))
        hidden = hidden.reshape(members, inner, rows * length, hidden.shape[-1])
        outputs: Tensor = self.linear(state.flatten(2, 3)) + self.second(hidden)
        return outputs.view(members, inner, rows, length, outputs.shape[-1])
