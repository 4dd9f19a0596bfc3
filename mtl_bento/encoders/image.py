"""Pictures: the maps of a frozen backbone, averaged to a grid of positions.

Letters: B rows, L positions, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from mtl_bento.backbones._base import Backbone, BackboneSpec, backbone_spec
from mtl_bento.columns._base import Column
from mtl_bento.encoders._base import ENCODERS, PositionsSpec
from mtl_bento.encoders._positions import BackboneEncoder
from mtl_bento.errors import SpecError


class ImageEncoderSpec(PositionsSpec):
    """Pictures as a backbone sees them."""

    kind: Literal["image"] = "image"


@ENCODERS.register(ImageEncoderSpec)
class ImageEncoder(BackboneEncoder[ImageEncoderSpec]):
    """A position for each cell of the column's grid, row by row; a missing picture has none."""

    def __init__(
        self,
        specs: Sequence[ImageEncoderSpec],
        columns: Sequence[Column],
        fitted: dict[str, Tensor],
        generators: Sequence[Generator],
    ) -> None:
        super().__init__(specs, columns, fitted, generators)
        self.grid = (int(self.column.grid[0]), int(self.column.grid[1]))
        self.length = self.grid[0] * self.grid[1]

    @classmethod
    def backbone_of(cls, column: Any) -> BackboneSpec:
        """Return the spec of the column's backbone, suited to its size and grid."""
        spec: BackboneSpec = backbone_spec(column.backbone, "image").suited(column.size, column.grid)
        return spec

    @classmethod
    def check(cls, column: Any, values: Tensor, backbone: Backbone[Any]) -> None:
        """Raise SpecError where pictures are too small for the backbone."""
        del values
        if min(column.size) < backbone.smallest:
            least = backbone.smallest
            raise SpecError(
                f"Input {column.name!r}: backbone {backbone.spec.kind!r} reads pictures of at least {least} x {least} "
                f"pixels, not {column.size[0]} x {column.size[1]}; give it a larger `size:`, or `backbone: pixels`."
            )

    @classmethod
    def by_position(cls, column: Any, values: Tensor, backbone: Any) -> Tensor:
        """Pixels and whether there is a picture, [B, C] -> [B, L, D]."""
        there = values[:, -1] > 0
        maps = backbone(values[there, :-1].view(-1, *column.size, 3))
        cells = nn.functional.adaptive_avg_pool2d(maps, column.grid).flatten(2).transpose(1, 2)
        positions = torch.full((len(values), *cells.shape[1:]), torch.nan, dtype=cells.dtype, device=cells.device)
        positions[there] = cells
        return positions
