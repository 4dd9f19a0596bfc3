"""Convolutions of kernel 3 over positions, along a line or over a grid, for K members at once.

Positions lie one after another with a blank one behind each line of them, and behind a grid a blank line: a neighbour
is then a fixed number of places away, and what lies outside is zero. So a convolution is three products, or nine, of
the same numbers read from another start; no neighbour is copied.

Letters: K members, B rows, L positions, S places of a row (positions and blanks), N places of all rows, F inputs,
D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from mtl_bento.layers import Stacked, uniform


class Lattice:
    """Where the positions of a row lie among its places, and how far away their neighbours are.

    Args:
        length: positions L.
        grid: rows and columns that these are, row by row; None where they are a line.
    """

    def __init__(self, length: int, grid: tuple[int, int] | None = None) -> None:
        self.grid = grid
        self.rows, self.columns = grid or (1, length)
        if self.rows * self.columns != length:
            raise ValueError(f"a grid of {self.rows} x {self.columns} has not {length} positions")
        self.lines = self.rows + (grid is not None)
        """Lines of places: on a grid one more than its rows, since a line below is a neighbour too."""
        steps = (-1, 0, 1)
        self.offsets = [y * (self.columns + 1) + x for y in (steps if grid else (0,)) for x in steps]
        """How many places away each neighbour is, row by row as a kernel lies; the middle one is the place itself."""

    def cut(self, length: int) -> Lattice:
        """Return the lattice of rows that have so many positions: a line may be shorter, a grid is always whole."""
        return self if length == self.rows * self.columns else Lattice(length, self.grid)

    def spread(self, x: Tensor) -> Tensor:
        """Return positions as places, the blank ones zero: x [K, B, L, F] -> [K, N, F]."""
        members, rows, _, width = x.shape
        lines = x.reshape(members, rows, self.rows, self.columns, width)
        return nn.functional.pad(lines, (0, 0, 0, 1, 0, self.lines - self.rows)).flatten(1, 3)

    def gathered(self, x: Tensor) -> Tensor:
        """Return the positions of places: x [K, N, F] -> [K, B, L, F]."""
        rows = self.by_row(x)
        lines = rows.view(*rows.shape[:2], self.lines, self.columns + 1, x.shape[2])
        return lines[:, :, : self.rows, : self.columns].flatten(2, 3)

    def by_row(self, x: Tensor) -> Tensor:
        """Return places by row: x [K, N, F] -> [K, B, S, F]."""
        n_places = self.lines * (self.columns + 1)
        return x.view(x.shape[0], x.shape[1] // n_places, n_places, x.shape[2])


class StackedConvolution(Stacked):
    """K convolutions over places, each followed by an activation.

    Args:
        fan_in, fan_out: the true sizes of each member.
        offsets: how many places away each neighbour is that a place reads; [0] is a linear map of each place.
        generators: one a member, for the initial weights.
        padded: the least padded sizes, in and out, where neighbours in the stack are wider than these members.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        fan_in: Sequence[int],
        fan_out: Sequence[int],
        *,
        offsets: Sequence[int],
        generators: Sequence[Generator],
        padded: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.offsets = tuple(offsets)
        taps, sizes = len(offsets), list(zip(fan_in, fan_out, strict=True))
        draws = [uniform(taps * size) for size in fan_in]
        self.stack("weight", [(taps, i, o) for i, o in sizes], draws, generators, padded_to=(taps, *padded))
        shapes = [(1, o) for _, o in sizes]
        self.stack("bias", shapes, draws, generators, decay=False, padded_to=(1, padded[1]))

    def forward(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """x [K, N, F], zero where there is no position -> [K, N, D], to be made zero there again."""
        relu = activation is torch.relu  # in place, as part of the convolution
        out: Tensor = _Convolution.apply(x, self.weight, self.bias, self.offsets, relu)  # type: ignore[no-untyped-call]
        return out if relu else activation(out)


class _Convolution(torch.autograd.Function):
    """Each neighbour's product is added to the result in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, offsets: Sequence[int], relu: bool) -> Tensor:
        out = bias.repeat(1, x.shape[1], 1)
        for tap, here, there in _neighbours(offsets, x.shape[1]):
            out[:, here].baddbmm_(x[:, there], weight[:, tap])
        ctx.save_for_backward(x, weight, *([out.relu_()] if relu else []))
        ctx.offsets = offsets
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *made = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, made[0], 0) if made else grad.contiguous()
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        # Outputs first: where inputs are many times as many, MKL takes half as long for this product as for its mirror.
        grad_weight = weight.new_zeros(*weight.shape[:2], weight.shape[3], weight.shape[2])
        for tap, here, there in _neighbours(ctx.offsets, x.shape[1]):
            grad_weight[:, tap].baddbmm_(grad[:, here].transpose(1, 2), x[:, there])
            if grad_x is not None:
                grad_x[:, there].baddbmm_(grad[:, here], weight[:, tap].transpose(1, 2))
        return grad_x, grad_weight.transpose(2, 3), grad.sum(1, keepdim=True), None, None


def _neighbours(offsets: Sequence[int], n: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield each tap, the places that have such a neighbour, and these neighbours."""
    for tap, offset in enumerate(offsets):
        start, end = max(0, -offset), n - max(0, offset)
        if start < end:
            yield tap, slice(start, end), slice(start + offset, end + offset)
