"""TabM-mini (Gorishniy et al., ICLR 2025): M inner networks that share all weights but a scaling of the inputs.

The scaling is what matters: adapters at every layer cost a third more and gained nothing where it was measured. Each
inner network has an output layer of its own; their losses are averaged in training, their predictions in answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Generator, Tensor

from mtl_bento.layers import signs
from mtl_bento.spec import MustMatch
from mtl_bento.trunks._base import TRUNKS, Trunk, TrunkSizes, TrunkSpec
from mtl_bento.trunks.mlp import Layers


class TabMSpec(TrunkSpec):
    """Size of a TabM-mini trunk."""

    kind: Literal["tabm"] = "tabm"
    inner: Annotated[int, Field(ge=2, le=64), MustMatch] = 8
    """Inner networks M; the cost grows with it."""

    @property
    def copies(self) -> int:
        """One for each inner network."""
        return self.inner


@TRUNKS.register(TabMSpec)
class TabM(Trunk[TabMSpec]):
    """Shared layers behind M scalings of the inputs, K members stacked."""

    scaling: Tensor

    def __init__(self, specs: Sequence[TabMSpec], sizes: TrunkSizes, generators: Sequence[Generator]) -> None:
        super().__init__(specs, sizes, generators)
        self.inner = specs[0].inner
        n = len(specs)
        self.stack("scaling", [(self.inner, 1, sizes.n_features)] * n, [signs] * n, generators, decay=False)
        self.layers = Layers(specs, sizes.n_features, generators)

    def forward(self, features: Tensor) -> list[Tensor]:
        """features [K or 1, B, F] -> T of [K, M, B, D], the same state for every task."""
        return [self.layers(features.unsqueeze(1) * self.scaling)] * self.sizes.n_tasks
