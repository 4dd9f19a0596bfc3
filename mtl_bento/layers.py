"""Layers of K networks at once: every parameter carries the member axis first, every step is one batched product.

Sizes may differ between the members of a stack. A smaller member's parameters are padded with zeros, and stay zero:
a padded output is act(0) = 0, so its outgoing weights see no gradient, and its incoming weights receive none.

Letters: K members of the stack, M TabM's inner members, B rows, F inputs, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

Init = Callable[[tuple[int, ...], Generator], Tensor]


def identity(x: Tensor) -> Tensor:
    """Return x."""
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "silu": nn.functional.silu,
    "identity": identity,
}
"""Activations with act(0) = 0, which zero padding needs."""


def uniform(fan_in: int) -> Init:
    """Return an initialiser that draws from ±1/sqrt(fan_in), as torch.nn.Linear does."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    return lambda shape, generator: (torch.rand(shape, generator=generator) * 2 - 1) * bound


def uniform_where(kept: Tensor, fan_in: int) -> Init:
    """Return `uniform` for rows [R, ...] with zeros where `kept` [R] is false: what training never sees stays there."""
    draw = uniform(fan_in)
    return lambda shape, generator: draw(shape, generator) * kept.unsqueeze(-1)


def signs(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Draw from -1 and 1."""
    return torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0


def zeros(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Return zeros; the generator is left alone."""
    del generator
    return torch.zeros(shape)


class Stacked(nn.Module):
    """A module whose own parameters are stacked: `[K, ...]`, each member drawn at its true shape, padded with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        """The true shape of each member's part, by parameter name."""
        self.undecayed: set[str] = set()
        """Names of parameters that weight decay leaves alone."""

    def stack(
        self,
        name: str,
        shapes: Sequence[tuple[int, ...]],
        init: Sequence[Init],
        generators: Sequence[Generator],
        *,
        decay: bool = True,
        padded_to: tuple[int, ...] = (),
    ) -> None:
        """Add the parameter `name`, member k of it drawn by `init[k]` with `generators[k]` at `shapes[k]`.

        It may hold the first members of the stack only (deeper layers do). `padded_to` is the least padded shape.
        """
        widest = [max(sizes) for sizes in zip(*shapes, *([padded_to] if padded_to else []), strict=True)]
        padded = torch.zeros(len(shapes), *widest)
        for k, (shape, draw, generator) in enumerate(zip(shapes, init, generators, strict=True)):
            padded[k][tuple(slice(size) for size in shape)] = draw(shape, generator)
        self.register_parameter(name, nn.Parameter(padded))
        self.shapes[name] = list(shapes)
        if not decay:
            self.undecayed.add(name)


class PerMember(nn.ModuleList):
    """K ordinary modules, one a member, for what cannot be stacked: slower, same contract."""


class StackedLinear(Stacked):
    """K linear maps in one batched product.

    Args:
        fan_in, fan_out: the true sizes of each member.
        inner: TabM's M where each inner member has weights of its own, 1 where they share.
        generators: one a member, for the initial weights.
        bias: whether to add one.
        padded: the least padded sizes, in and out, where neighbours in the stack are wider than these members.
    """

    def __init__(
        self,
        fan_in: Sequence[int],
        fan_out: Sequence[int],
        *,
        generators: Sequence[Generator],
        inner: int = 1,
        bias: bool = True,
        padded: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.inner = inner
        self.weight: nn.Parameter
        self.bias: nn.Parameter | None
        draws = [uniform(size) for size in fan_in]
        sizes = list(zip(fan_in, fan_out, strict=True))
        self.stack("weight", [(inner, i, o) for i, o in sizes], draws, generators, padded_to=(inner, *padded))
        if bias:
            shapes = [(inner, 1, o) for _, o in sizes]
            self.stack("bias", shapes, draws, generators, decay=False, padded_to=(inner, 1, padded[1]))
        else:
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """x [K or 1, M or 1, B, F] -> [K, M, B, D]."""
        return stacked_product(x, self.weight, self.bias)


def stacked_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ weight + bias for each member: x [K or 1, M or 1, B, F], weight [K, M or 1, F, D] -> [K, M, B, D]."""
    n, m, rows, width = x.shape
    members, inner = weight.shape[:2]
    if width != weight.shape[2]:
        raise ValueError(
            f"x has width {width}, the weights take {weight.shape[2]}; "
            "where a layer holds the stack's first members only, give it `padded=(widest in, widest out)`"
        )
    # [K, F, D] or [K * M, F, D]. Not `weight[:, 0]`: its gradient would be zeros, then a copy.
    weight, bias = weight.flatten(0, 1), None if bias is None else bias.flatten(0, 1)
    if inner > 1:
        x = x.expand(members, inner, rows, width).reshape(members * inner, rows, width)
    else:
        x = x.reshape(n, m * rows, width).expand(members, m * rows, width)
    out = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
    # Not -1: with no rows it would be ambiguous.
    return out.view(members, max(m, inner), rows, out.shape[-1])


def side_by_side(x: Tensor, linears: Sequence[StackedLinear]) -> list[Tensor]:
    """Return what several linear maps make of one x, by one product: as many products cost as many passes over x.

    All of them have a bias, or none has one, and the same M.
    """
    return joined(linears)(x)


def joined(
    linears: Sequence[StackedLinear], *, change: Callable[[Tensor], Tensor] = identity
) -> Callable[[Tensor], list[Tensor]]:
    """Return `side_by_side` for linear maps whose weights stay as they are now, `change` applied to all at once."""
    weights: list[Tensor] = [linear.weight for linear in linears]
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    weight, bias = torch.cat(weights, -1), torch.cat(biases, -1) if biases else None
    sizes = [part.shape[-1] for part in weights]
    return lambda x: list(change(stacked_product(x, weight, bias)).split(sizes, -1))


class Random(nn.Module):
    """A module that draws in training, from `generator`; `Network.set_generator` sets it."""

    generator: Generator | None = None


@dataclass(frozen=True)
class Dropped:
    """Dropout at one shape: which random bytes are kept, and by what the kept numbers are multiplied.

    Letters: G groups (members, or the inner members of each), R rows, D width.
    """

    threshold: Tensor
    """Bytes [G, R, D]: those below are dropped. At the whole shape, which is compared ten times faster."""
    scale: Tensor
    """[G, 1, 1]."""
    generator: Generator | None

    def mask(self, groups: slice, rows: slice) -> Tensor:
        """Return fresh factors for a piece: 0 for what is dropped, the scale for what is kept."""
        threshold = self.threshold[groups, rows]
        kept = torch.ge(_random_bytes(threshold.shape, threshold.device, self.generator), threshold)
        # Through bytes: on a CPU a conversion from bool, or `torch.where`, takes five times as long.
        return kept.view(torch.uint8).to(self.scale.dtype).mul_(self.scale[groups])


class Dropout(Random):
    """Dropout with a rate for each member; rates are rounded to 1/256, since the bits are drawn as bytes.

    The bits are drawn for the whole stack from `generator`, which whoever trains must set; with every rate at 0, and in
    evaluation, it does nothing.
    """

    threshold: Tensor
    scale: Tensor

    def __init__(self, rates: Sequence[float]) -> None:
        super().__init__()
        steps = [min(round(rate * 256), 255) for rate in rates]
        self.active = any(steps)
        self.register_buffer("threshold", torch.tensor(steps, dtype=torch.uint8), persistent=False)
        scale = torch.tensor([256 / (256 - step) for step in steps], dtype=torch.float64)
        self.register_buffer("scale", scale, persistent=False)
        self._wide: tuple[Any, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [K, M, B, D] -> the same shape."""
        members, inner, rows, width = x.shape
        dropped = self.at(members, inner * rows, width, x.dtype)
        return x if dropped is None else x * dropped.mask(slice(None), slice(None)).view(x.shape)

    def by_row(self, x: Tensor) -> Tensor:
        """x [K, B, L, D] -> the same shape; a unit is dropped at all positions L of a row, or at none."""
        dropped = self.at(x.shape[0], x.shape[1], x.shape[3], x.dtype)
        return x if dropped is None else x * dropped.mask(slice(None), slice(None)).unsqueeze(2)

    def at(self, groups: int, rows: int, width: int, dtype: torch.dtype) -> Dropped | None:
        """Return the rule for numbers [G, R, D], G a multiple of K; None where nothing is dropped."""
        if not (self.training and self.active):
            return None
        key = (groups, rows, width, dtype, self.scale.device)
        if self._wide is None or self._wide[0] != key:
            each = groups // len(self.threshold)
            threshold, scale = (t.repeat_interleave(each).view(-1, 1, 1) for t in (self.threshold, self.scale))
            self._wide = key, threshold.expand(groups, rows, width).contiguous(), scale.to(dtype)
        return Dropped(self._wide[1], self._wide[2], self.generator)


def _random_bytes(shape: torch.Size, device: torch.device, generator: Generator | None) -> Tensor:
    """Return uniform bytes of a shape; eight are drawn at a time, since drawing is what costs."""
    n = shape.numel()
    words = torch.empty((n + 7) // 8, dtype=torch.int64, device=device)
    return words.random_(-(2**63), None, generator=generator).view(torch.uint8)[:n].view(shape)


def narrowed(x: Tensor, n: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` to the first n members only: the stack narrows as depth grows (members lie deepest first)."""
    return change(x) if n == x.shape[0] else torch.cat([change(x[:n]), x[n:]])
