"""What every trunk promises: one state per task out of the features of all inputs, for K members at once.

The contract, tested for every trunk in float64 with dropout 0 (`mtl_bento.testing.check_trunk`): member k of a stack
equals that member trained alone.

A trunk that reads positions (`positional`) gets the features of each position of the main input, those of the other
inputs beside them, and a mask of the positions that are real; what lies at the others must not matter to these.

Letters: T tasks, K members, M TabM's inner members (1 elsewhere), B rows, L positions, F inputs, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field
from torch import Generator, Tensor

from mtl_bento.layers import Stacked
from mtl_bento.registry import Registry
from mtl_bento.spec import MustMatch, Searched, Spec


class TrunkSpec(Spec):
    """Sizes that every trunk has; a trunk's own are added by its subclass."""

    kind: str
    shared_depth: Annotated[int, Field(ge=1, le=16), Searched(1, 3)] = 2
    """Layers that all tasks share."""
    width: Annotated[int, Field(ge=1, le=4096), Searched(32, 256, log=True, step=1)] = 128
    """Units of a shared layer."""
    dropout: Annotated[float, Field(ge=0, lt=1), Searched(0.0, 0.5)] = 0.1
    """Share of units dropped after each shared layer in training."""
    activation: Annotated[Literal["relu", "silu", "identity"], MustMatch] = "relu"
    """Non-linearity after each shared layer; each maps 0 to 0, which zero padding needs."""

    @property
    def copies(self) -> int:
        """How many times a shared layer is computed for a row: what it costs, and what its activations take."""
        return 1


@dataclass(frozen=True)
class TrunkSizes:
    """What only the data knows: features F and tasks T; where a trunk reads positions, L and their grid."""

    n_features: int
    n_tasks: int
    length: int = 0
    grid: tuple[int, int] | None = None


AnySpec = TypeVar("AnySpec", bound=TrunkSpec)


class Trunk(Stacked, Generic[AnySpec]):
    """The shared part of K networks; built from K specs, deepest first."""

    positional: ClassVar[bool] = False
    """Whether it reads positions; `forward` then takes features [K or 1, B, L, F] and mask [K or 1, B, L].

    Where positions are a line, L is at most `sizes.length`: rows come cut to the longest among them.
    """
    inner: int = 1
    """TabM's M."""
    widths: list[int]
    """D of each member's states."""

    def __init__(self, specs: Sequence[AnySpec], sizes: TrunkSizes, generators: Sequence[Generator]) -> None:
        super().__init__()
        del generators
        depths = [spec.shared_depth for spec in specs]
        if depths != sorted(depths, reverse=True):
            raise ValueError(f"members must lie deepest first, not {depths}")
        self.specs, self.sizes = list(specs), sizes
        self.widths = [spec.width for spec in specs]

    @abstractmethod
    def forward(self, features: Tensor) -> Sequence[Tensor]:
        """features [K or 1, B, F] -> one state per task, T of [K, M, B, D]; shared ones are one object.

        By position [K or 1, B, L, F], mask [K or 1, B, L] -> T of [K, M, B, L, D].
        """


TRUNKS: Registry[Trunk[Any]] = Registry("trunk", package="mtl_bento.trunks", group="mtl_bento.trunks")
