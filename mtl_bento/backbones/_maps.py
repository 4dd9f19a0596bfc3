"""What backbones of pictures share: pixels as numbers, and maps of several strides as one.

Letters: B rows, D features, r and c rows and columns of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def scaled(pixels: Tensor, mean: Sequence[float], spread: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Return pixels [B, rows, columns, 3] as [B, 3, rows, columns] in shares of white, less the mean, by the spread."""
    shift, scale = (torch.tensor(list(values), dtype=dtype, device=pixels.device) for values in (mean, spread))
    shares = pixels.to(dtype) / 255
    return ((shares - shift) / scale).permute(0, 3, 1, 2).contiguous()


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """Return maps [B, D, r, c], the finest first, stretched to the finest: [B, sum of D, r, c]."""
    finest = maps[0].shape[-2:]
    stretched = [nn.functional.interpolate(held, size=finest, mode="bilinear") for held in maps[1:]]
    return torch.cat([maps[0], *stretched], 1)
