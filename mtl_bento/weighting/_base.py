"""What every weighting promises: one loss to descend for each member out of its losses by task.

Letters: K members, T tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from mtl_bento.layers import Stacked
from mtl_bento.registry import Registry
from mtl_bento.spec import Spec


class WeightingSpec(Spec):
    """How a member weighs its tasks."""

    kind: str

    def weight(self, task: str) -> float:
        """Return the weight that a task begins with; 0 where the member does not learn it."""
        del task
        return 1.0


AnySpec = TypeVar("AnySpec", bound=WeightingSpec)


class Weighting(Stacked, Generic[AnySpec]):
    """The weighting of K members; what it learns is stacked like any parameter; subclasses take `(specs, tasks)`."""

    @abstractmethod
    def __init__(self, specs: Sequence[AnySpec], tasks: Sequence[str]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """Normalised losses [K, T] (1 is the trivial predictor's) -> what each member descends [K]."""


WEIGHTINGS: Registry[Weighting[Any]] = Registry(
    "weighting", package="mtl_bento.weighting", group="mtl_bento.weightings"
)
