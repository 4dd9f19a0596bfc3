"""What every head promises: a task's outputs out of its state, for K members at once.

A state by position is read so: by a task that answers by position, each position as a row of its own, unless its head
is `positional`; by any other, pooled (`Pooling`).

Letters: K members, M TabM's inner members, B rows, L positions, D width, O outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Generator, Tensor, nn

from mtl_bento.layers import Stacked
from mtl_bento.registry import Registry
from mtl_bento.spec import Spec


class HeadSpec(Spec):
    """Size of a task's own layers."""

    kind: str


AnySpec = TypeVar("AnySpec", bound=HeadSpec)


class Head(Stacked, Generic[AnySpec]):
    """One task's own layers; subclasses take `(specs, fan_in, n_outputs, inner, generators)`.

    `fan_in` holds each member's width D, `inner` is TabM's M.
    """

    positional: ClassVar[bool] = False
    """Whether it reads neighbouring positions. It then takes `length` and `grid` too; where a task answers by position
    its state is [K, M, B, L, D] and its outputs [K, M, B, L, O], on a line with L of at most `length`."""

    @abstractmethod
    def __init__(
        self,
        specs: Sequence[AnySpec],
        fan_in: Sequence[int],
        n_outputs: int,
        inner: int,
        generators: Sequence[Generator],
    ) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, state: Tensor) -> Tensor:
        """state [K, M, B, D] -> outputs [K, M, B, O]."""

    @classmethod
    def together(cls, heads: Sequence[Self], state: Tensor) -> list[Tensor]:
        """Return the outputs of several heads of one state."""
        return [head(state) for head in heads]

    @classmethod
    def joined(cls, heads: Sequence[Self]) -> Callable[[Tensor], list[Tensor]]:
        """Return `together` for heads whose parameters stay as they are; override both where one product does for all.

        What it needs of the parameters may be laid out here, once for all states.
        """
        return partial(cls.together, heads)


class Pooling(nn.Module):
    """A state by position as one of a row: of each unit the mean and the largest over the real positions.

    On a grid also where the unit lies, row and column from -1 to 1, as a softmax over positions has it (spatial
    softmax; Finn et al., ICRA 2016): a box cannot be read off a mean. All is 0 where a row has no position.

    Args:
        widths: the width D of each member's states; units beyond it stay 0.
        grid: rows and columns of the positions, or None where they are a line.
    """

    units: Tensor
    places: Tensor

    def __init__(self, widths: Sequence[int], grid: tuple[int, int] | None) -> None:
        super().__init__()
        units = torch.arange(max(widths)) < torch.tensor(widths).unsqueeze(1)
        self.register_buffer("units", units.view(len(widths), 1, 1, -1, 1), persistent=False)
        self.register_buffer("places", _places(grid), persistent=False)

    @property
    def n_each(self) -> int:
        """How many numbers a unit becomes."""
        return 2 + self.places.shape[1]

    def forward(self, state: Tensor, mask: Tensor) -> Tensor:
        """state [K, M, B, L, D], mask [K or 1, B, L] -> [K, M, B, D * `n_each`], those of a unit side by side."""
        real = mask[:, None, :, :, None]
        held = state.masked_fill(~real, torch.finfo(state.dtype).min)  # not -inf: a row may have no position
        parts = [(state * real).sum(-2) / real.sum(-2).clamp_min(1), held.amax(-2)]
        if self.places.shape[1]:
            parts += torch.matmul(held.softmax(-2).transpose(-1, -2), self.places).unbind(-1)
        # Units first: a narrower member's are then the first numbers, as `StackedLinear` has them.
        pooled = torch.stack(parts, -1) * self.units  # [K, M, B, D, n_each]
        return pooled.masked_fill(~real.any(-2).unsqueeze(-1), 0.0).flatten(-2)


def _places(grid: tuple[int, int] | None) -> Tensor:
    """Return row and column of each position, [L, 2], or nothing [0, 0] where they are a line."""
    if grid is None:
        return torch.zeros(0, 0)
    sides = [torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in grid]
    return torch.cartesian_prod(*sides)


HEADS: Registry[Head[Any]] = Registry("head", package="mtl_bento.heads", group="mtl_bento.heads")
