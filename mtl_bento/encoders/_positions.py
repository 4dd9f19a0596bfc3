"""Encoders of inputs with positions: a frozen backbone's features, standardised.

Letters: K members, N and B rows, C numbers of an encoded cell, L positions, D features of a backbone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor

from mtl_bento.backbones._base import BACKBONES, Backbone, BackboneSpec, Frozen
from mtl_bento.columns._base import Column
from mtl_bento.encoders._base import BACKBONE, Encoder, PositionsSpec

SAMPLE = 512
"""Training rows that means and spreads are taken of: enough, and a backbone takes milliseconds for each."""
AT_ONCE = 64
"""Rows that a backbone reads at once."""
FARTHEST = 10.0
"""Standard deviations at which features are cut."""

AnyPositions = TypeVar("AnyPositions", bound=PositionsSpec)


class BackboneEncoder(Encoder[AnyPositions]):
    """Features of a frozen backbone by position; subclasses say how its answers become positions."""

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        specs: Sequence[AnyPositions],
        columns: Sequence[Column],
        fitted: dict[str, Tensor],
        generators: Sequence[Generator],
    ) -> None:
        super().__init__(specs, columns, fitted, generators)
        self.column: Any = columns[0]
        self.backbone = Frozen(self.backbone_of(self.column), self.frozen)
        self.n_features = len(self.mean)

    @classmethod
    @abstractmethod
    def backbone_of(cls, column: Any) -> BackboneSpec:
        """Return the spec of a column's backbone; raises UnknownKindError."""

    @classmethod
    def backbone_class(cls, column: Any) -> type[Backbone[Any]]:
        """Return the class of a column's backbone."""
        return BACKBONES.class_of(type(cls.backbone_of(column)))

    @classmethod
    @abstractmethod
    def check(cls, column: Any, values: Tensor, backbone: Backbone[Any]) -> None:
        """Raise SpecError where the backbone cannot read the column's cells, of which `values` [N, C] are encoded."""

    @classmethod
    @abstractmethod
    def by_position(cls, column: Any, values: Tensor, backbone: Any) -> Tensor:
        """Return the features of cells [B, C] by position, [B, L, D], NaN where there is none."""

    @classmethod
    def fit(cls, columns: Sequence[Column], values: Tensor) -> dict[str, Tensor]:
        """Cells [N, C] -> the backbone's weights; mean and spread [D] of its features over all positions of a sample.

        Raises MissingExtraError naming the extra of the backbone, or SpecError where it cannot read the cells.
        """
        (column,) = columns
        backbone = cls.backbone_class(column).pretrained(cls.backbone_of(column))
        cls.check(column, values, backbone)
        mean, spread = _moments(cls, column, values[:: -(-len(values) // SAMPLE) or 1], backbone)
        state = {f"{BACKBONE}{name}": value for name, value in backbone.state_dict().items()}
        return {"mean": mean, "spread": spread, **state}

    @classmethod
    def needs(cls, columns: Sequence[Column]) -> dict[str, str]:
        """Return the distributions of the backbone's kind, where it comes from elsewhere, and of what it needs."""
        (column,) = columns
        brought = BACKBONES.origin(cls.backbone_of(column).kind)
        needed = {name: version(name) for name in cls.backbone_class(column).requires}
        return needed | (dict([brought]) if brought is not None else {})

    def prepare(self, values: Tensor) -> Tensor:
        """Cells [B, C] -> standardised features [B, L, D], NaN where there is no position."""
        parts = [self.by_position(self.column, rows, self.backbone) for rows in values.split(AT_ONCE)]
        return self.standardised(torch.cat(parts))

    def standardised(self, features: Tensor) -> Tensor:
        """Return features [..., D] less their mean, by their spread, cut at ten standard deviations."""
        return ((features.to(self.mean.dtype) - self.mean) / self.spread).clamp_(-FARTHEST, FARTHEST)

    def forward(self, *unfolded: Tensor) -> Tensor:
        """Return the features as they are: nothing here is learned by gradient."""
        return unfolded[0]


@torch.no_grad()
def _moments(
    cls: type[BackboneEncoder[Any]], column: Any, values: Tensor, backbone: Backbone[Any]
) -> tuple[Tensor, Tensor]:
    """Return mean and spread [D] over the positions of rows [N, C]: 0 and 1 where there is none, 1 for no spread."""
    n, (total, squares) = 0, torch.zeros(2, backbone.n_features, dtype=torch.float64)
    for rows in values.split(AT_ONCE):
        features = cls.by_position(column, rows, backbone).double().flatten(0, 1)
        real = features[~features.isnan().any(-1)]
        n += len(real)
        total, squares = total + real.sum(0), squares + real.square().sum(0)
    mean = total / max(n, 1)
    spread = (squares / max(n, 1) - mean.square()).clamp_min(0).sqrt()
    # What is left of a constant after rounding is no spread.
    steady = spread <= 1e-6 * mean.abs()
    return mean.float(), torch.where(steady, 1.0, spread).float()
