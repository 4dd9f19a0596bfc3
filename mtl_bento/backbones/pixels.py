"""The picture itself: each position has the pixels of its cell, so that a small picture loses nothing.

Letters: B rows, r and c rows and columns of positions, p and q rows and columns of pixels in a cell.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from mtl_bento.backbones._base import BACKBONES, Backbone, BackboneSpec, Modality
from mtl_bento.errors import SpecError

MOST = 64
"""Pixels that are kept of a picture in each direction: more would be a task for a backbone."""

Side = Annotated[int, Field(ge=1)]


class PixelsSpec(BackboneSpec):
    """The picture itself."""

    kind: Literal["pixels"] = "pixels"
    modality: ClassVar[Modality] = "image"

    grid: tuple[Side, Side] = (8, 8)
    """Rows and columns of positions; the column's own."""
    cell: tuple[Side, Side] = (8, 8)
    """Rows and columns of pixels that a position has."""

    def suited(self, size: tuple[int, int], grid: tuple[int, int]) -> Self:
        """Return the spec with that grid, and cells of as many pixels as pictures of that size have, within `MOST`."""
        rows, columns = (max(1, min(whole, MOST) // parts) for whole, parts in zip(size, grid, strict=True))
        return self.model_copy(update={"grid": grid, "cell": (rows, columns)})


@BACKBONES.register(PixelsSpec)
class Pixels(Backbone[PixelsSpec]):
    """Pixels in shares of white: D = p q 3, as they lie in a cell; larger pictures are brought down by averages."""

    def __init__(self, spec: PixelsSpec) -> None:
        super().__init__(spec)
        self.n_features = spec.cell[0] * spec.cell[1] * 3

    @classmethod
    def pretrained(cls, spec: PixelsSpec) -> Self:
        """Return the backbone: it has no weights."""
        if spec.weights:
            raise SpecError(f"Backbone {spec.kind!r} has no weights; write `backbone: {spec.kind}`.")
        return cls(spec).frozen()

    def forward(self, values: Tensor) -> Tensor:
        """Pixels [B, rows, columns, 3] -> [B, p q 3, r, c]."""
        (r, c), (p, q) = self.spec.grid, self.spec.cell
        shares = values.permute(0, 3, 1, 2).float() / 255
        small = nn.functional.adaptive_avg_pool2d(shares, (r * p, c * q))
        cells = small.reshape(-1, 3, r, p, c, q)
        return cells.permute(0, 3, 5, 1, 2, 4).reshape(-1, self.n_features, r, c)
