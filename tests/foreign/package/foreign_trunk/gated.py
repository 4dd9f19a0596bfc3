"""A trunk of a gate over shared layers for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from mtl_bento.layers import StackedLinear
from mtl_bento.trunks._base import TRUNKS, Trunk, TrunkSizes, TrunkSpec
from mtl_bento.trunks.mlp import Layers


class GatedSpec(TrunkSpec):
    """Size of a gated trunk."""

    kind: Literal["gated"] = "gated"


@TRUNKS.register(GatedSpec)
class Gated(Trunk[GatedSpec]):
    """Shared layers, and for each task a sigmoid gate on each of their units."""

    def __init__(self, specs: Sequence[GatedSpec], sizes: TrunkSizes, generators: Sequence[Generator]) -> None:
        super().__init__(specs, sizes, generators)
        self.layers = Layers(specs, sizes.n_features, generators)
        fan_in = [sizes.n_features] * len(specs)
        self.gates = nn.ModuleList(
            StackedLinear(fan_in, self.widths, generators=generators) for _ in range(sizes.n_tasks)
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """features [K or 1, B, F] -> T of [K, 1, B, D]."""
        features = features.unsqueeze(1)
        state = self.layers(features)
        return [state * torch.sigmoid(gate(features)) for gate in self.gates]
