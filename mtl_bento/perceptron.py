"""The hidden layers of a stack as one autograd function that works in pieces small enough for a core's cache.

Layer by layer, every bias, activation and dropout of a whole stack is a pass through memory, and together these passes
take longer than the products. Here a piece of the rows goes through all layers before the next one starts, and what is
not needed again is overwritten. What is computed is what `StackedLinear`, `relu` and `Dropout` compute one by one.

Letters: G groups (members, or the inner members of each), R rows, F inputs, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_bento.layers import Dropped

PIECE = 2**17
"""Numbers of one layer that are worked on at once on a CPU (measured, LOG.md); elsewhere all are."""


def perceptron(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dropped: Sequence[Dropped | None]
) -> Tensor:
    """Return what L layers of linear map, ReLU and dropout make of x.

    A layer may hold the first groups only; the others pass it by. x [G, R, F], weights [G', F or D, D] and biases
    [G', 1, D] of each layer -> [G, R, D].
    """
    out: Tensor = _Perceptron.apply(x, tuple(dropped), *weights, *biases)  # type: ignore[no-untyped-call]
    return out


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: tuple[Dropped | None, ...], *parameters: Tensor) -> Tensor:
        n = len(dropped)
        weights, biases = parameters[:n], parameters[n:]
        rows, width = x.shape[1], weights[0].shape[2]
        # What a layer computes for groups that go on lies in `hidden`, for those that end there in `out`.
        out = x.new_empty(x.shape[0], rows, width)
        hidden = [x.new_empty(weight.shape[0], rows, width) for weight in weights[1:]]
        counts = [weight.shape[0] for weight in weights]
        for groups, part, depth in _pieces(counts, rows, width, x.device):
            values = x[groups, part]
            for layer in range(depth):
                goal = (hidden[layer] if layer + 1 < depth else out)[groups, part]
                torch.baddbmm(biases[layer][groups], values, weights[layer][groups], out=goal)
                goal.relu_()
                if (rule := dropped[layer]) is not None:
                    goal.mul_(rule.mask(groups, part))
                values = goal
        ctx.save_for_backward(x, out, *hidden, *weights)
        ctx.scales = [None if rule is None else rule.scale for rule in dropped]
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        n = len(ctx.scales)
        x, out, *held = ctx.saved_tensors
        hidden, weights = held[: n - 1], held[n - 1 :]
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weights = [torch.zeros_like(weight) for weight in weights]
        grad_biases = [weight.new_zeros(weight.shape[0], 1, weight.shape[2]) for weight in weights]
        counts = [weight.shape[0] for weight in weights]
        for groups, part, depth in _pieces(counts, out.shape[1], out.shape[2], x.device):
            flow = grad[groups, part]
            for layer in reversed(range(depth)):
                made = (hidden[layer] if layer + 1 < depth else out)[groups, part]
                given = (hidden[layer - 1] if layer else x)[groups, part]
                # A number is above 0 where ReLU let it through and dropout kept it.
                flow = torch.ops.aten.threshold_backward(flow, made, 0)
                if ctx.scales[layer] is not None:
                    flow.mul_(ctx.scales[layer][groups])
                grad_weights[layer][groups].baddbmm_(given.transpose(1, 2), flow)
                grad_biases[layer][groups] += flow.sum(1, keepdim=True)
                if layer:
                    flow = torch.bmm(flow, weights[layer][groups].transpose(1, 2))
                elif grad_x is not None:
                    torch.bmm(flow, weights[0][groups].transpose(1, 2), out=grad_x[groups, part])
        return grad_x, None, *grad_weights, *grad_biases


def _pieces(counts: Sequence[int], rows: int, width: int, device: torch.device) -> Iterator[tuple[slice, slice, int]]:
    """Yield groups, rows and their number of layers; `counts` are the groups of each layer, the most first."""
    room = PIECE if device.type == "cpu" else max(1, counts[0] * rows * width)
    most_rows = max(1, min(rows, room // width))
    most = max(1, room // (most_rows * width))
    start = 0
    for depth in range(len(counts), 0, -1):
        for first in range(start, counts[depth - 1], most):
            groups = slice(first, min(first + most, counts[depth - 1]))
            yield from ((groups, slice(r, min(r + most_rows, rows)), depth) for r in range(0, rows, most_rows))
        start = counts[depth - 1]
