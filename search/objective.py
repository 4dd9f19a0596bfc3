"""Scores from losses: how much better than single-task networks a trial is.

Letters: T tasks. Losses are in units of the trivial predictor's: 1 is "learned nothing".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEAST, MOST = 0.01, 1.0
"""A task's gain is divided by its single-task loss, cut to this range: nearly solved tasks do not drown the others."""

Losses = NDArray[np.float64]


def gains(losses: Losses, single: Losses) -> Losses:
    """Return each task's gain [T] over the single-task loss, cut to [-1, 1]; NaN losses count as -1."""
    raw = (single - losses) / single.clip(LEAST, MOST)
    return np.nan_to_num(raw, nan=-1.0, posinf=-1.0, neginf=-1.0).clip(-1.0, 1.0)


def score(losses: Losses, single: Losses, weights: Sequence[float]) -> float:
    """Return `gain`: the mean of the tasks' gains, weighted by how much the user cares."""
    return float(np.average(gains(losses, single), weights=np.asarray(weights)))


def worst_ratio(losses: Losses, single: Losses) -> float:
    """Return the worst task's loss as a multiple of its single-task loss."""
    return float(np.nan_to_num(losses / single.clip(1e-12), nan=np.inf).max())
