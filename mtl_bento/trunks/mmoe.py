"""Multi-gate mixture of experts (Ma et al., KDD 2018): experts that all tasks share, a gate a task.

Ours differs from the paper: an expert has as many layers as the trunk is deep, and the gates read the encoded features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from mtl_bento.layers import StackedLinear, side_by_side
from mtl_bento.spec import Searched
from mtl_bento.trunks._base import TRUNKS, Trunk, TrunkSizes, TrunkSpec
from mtl_bento.trunks.mlp import Layers


class MMoESpec(TrunkSpec):
    """Size of a multi-gate mixture-of-experts trunk; `width` and `shared_depth` are those of one expert."""

    kind: Literal["mmoe"] = "mmoe"
    n_experts: Annotated[int, Field(ge=1, le=64), Searched(2, 8, differs=False)] = 4
    """Experts shared by all tasks; one expert is a plain shared bottom."""

    @property
    def copies(self) -> int:
        """One for each expert."""
        return self.n_experts


@TRUNKS.register(MMoESpec)
class MMoE(Trunk[MMoESpec]):
    """Experts and gates, K members stacked; padding would break the softmax, so members agree on the number of experts.

    Letters: T tasks, K members, B rows, F inputs, E experts, D width of an expert.
    """

    def __init__(self, specs: Sequence[MMoESpec], sizes: TrunkSizes, generators: Sequence[Generator]) -> None:
        super().__init__(specs, sizes, generators)
        n, n_experts = len(specs), specs[0].n_experts
        self.experts = Layers(specs, sizes.n_features, generators, inner=n_experts)
        self.gates = nn.ModuleList(
            StackedLinear([sizes.n_features] * n, [n_experts] * n, generators=generators) for _ in range(sizes.n_tasks)
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """features [K or 1, B, F] -> T of [K, 1, B, D]: each task's mixture of the experts."""
        x = features.unsqueeze(1)
        experts = self.experts(x)  # [K, E, B, D]
        gates = torch.cat(side_by_side(x, list(self.gates)), 1).softmax(-1)  # type: ignore[arg-type]  # [K, T, B, E]
        mixed = torch.einsum("ktbe,kebd->tkbd", gates, experts)
        return [state.unsqueeze(1) for state in mixed]
