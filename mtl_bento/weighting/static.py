"""Fixed weights: the weighted sum of the losses (scalarisation; Kurin et al. and Xin et al., NeurIPS 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mtl_bento.spec import Searched
from mtl_bento.weighting._base import WEIGHTINGS, Weighting, WeightingSpec


class StaticWeightingSpec(WeightingSpec):
    """A weight a task; 1 where none is given."""

    kind: Literal["static"] = "static"
    loss_weight: Annotated[
        dict[str, Annotated[float, Field(ge=0)]], Searched(math.exp(-1.5), math.exp(1.5), log=True)
    ] = {}
    """Weight of each task's loss, by task name; 0 leaves a task out."""

    def weight(self, task: str) -> float:
        """Return the weight of a task."""
        return self.loss_weight.get(task, 1.0)


@WEIGHTINGS.register(StaticWeightingSpec)
class StaticWeighting(Weighting[StaticWeightingSpec]):
    """The weighted sum over tasks."""

    weights: Tensor

    def __init__(self, specs: Sequence[StaticWeightingSpec], tasks: Sequence[str]) -> None:
        super().__init__(specs, tasks)
        weights = torch.tensor([[spec.weight(task) for task in tasks] for spec in specs])
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        """losses [K, T] -> [K]."""
        return (losses * self.weights).sum(-1)
