"""What every head promises: a task's outputs out of its state, for K members at once.

Letters: K members, M TabM's inner members, B rows, D width, O outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, Self, TypeVar

from torch import Generator, Tensor

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
    """Whether it reads neighbouring positions; it then takes `length` and `grid` too, those of the positions that lie
    as rows of its state where a task answers by position, and by default reads each row as one position."""

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


HEADS: Registry[Head[Any]] = Registry("head", package="mtl_bento.heads", group="mtl_bento.heads")
