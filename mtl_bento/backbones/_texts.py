"""What backbones of texts share: the marks that a network expects around a text.

Letters: B rows, L tokens, P marks before a text, S marks after it, W the longest text of the rows with its marks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wrapped(tokens: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens [B, L], -1 after the last, with marks [P] and [S] around each text, and where there is one.

    Both are [B, W], no wider than the longest of the rows needs; 0 stands where there is none.
    """
    rows, p, s = len(tokens), len(before), len(after)
    lengths = (tokens >= 0).sum(1)
    most = int(lengths.max()) if rows else 0
    whole = tokens.new_zeros(rows, p + most + s)
    whole[:, :p] = before
    whole[:, p : p + most] = tokens[:, :most].clamp_min(0)
    ends = p + lengths.unsqueeze(1) + torch.arange(s, device=tokens.device)
    whole.scatter_(1, ends, after.expand(rows, s))
    return whole, torch.arange(p + most + s, device=tokens.device) < (p + s + lengths).unsqueeze(1)


def unwrapped(features: Tensor, length: int, n_before: int) -> Tensor:
    """Return the features [B, L, D] of the tokens alone out of those of all [B, W, D], 0 beyond the longest text."""
    own = features[:, n_before : n_before + length]
    return torch.nn.functional.pad(own, (0, 0, 0, length - own.shape[1]))
