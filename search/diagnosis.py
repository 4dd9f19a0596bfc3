"""Where a task's answers on the test rows are wrong, as counts and means: no row of its own leaves this module.

Letters: B test rows, C labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl_bento.tasks._base import Task
from mtl_bento_search.metrics import known_rows

MOST_LABELS = 12
"""Labels of which a confusion matrix is kept; of more nobody reads it."""
BINS = 10
RESIDUAL_BINS, WITHIN = 21, 0.98
"""Bins of residuals, the middle one around 0, and the share of the rows that lies within the first and the last."""
FEWEST = 20
"""Labelled rows below which nothing is drawn."""


def diagnosis(task: Task[Any], scored: np.ndarray, truth: np.ndarray) -> dict[str, Any] | None:
    """Return what a report draws of answers of labels or of numbers; None of other answers, and of too few rows.

    Labels: `confusion` [C, C], rows by true label, columns by answered one, and `reliability`, for bins of rows by the
    probability of the label that was answered (of the second of two labels): its mean, how often it was true, rows.
    Numbers: `against`, for bins of rows by the number answered: its mean, and the tenth, half and nine tenths of the
    true numbers, rows. `residuals`, answer minus truth: rows in bins of one width from -reach to reach, where the first
    and the last hold what lies beyond, the mean, and the mean without signs.

    Args:
        task: placed on the rows.
        scored: as `Task.scored` gives answers.
        truth: as `Task.truth` gives labels.
    """
    known = known_rows(truth)
    if known.sum() < FEWEST:
        return None
    scored, truth = scored[known], truth[known]
    if scored.ndim == 2 and truth.ndim == 1 and truth.dtype.kind in "iu":
        return _of_labels(task, scored, truth)
    if scored.ndim == truth.ndim == 1 and truth.dtype.kind == scored.dtype.kind == "f":
        return _of_numbers(scored, truth)
    return None


def _of_labels(task: Task[Any], scored: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    n = scored.shape[1]
    answered = task.decided(scored).argmax(1)
    found: dict[str, Any] = {}
    if n <= MOST_LABELS:
        matrix = np.zeros((n, n), dtype=np.int64)
        np.add.at(matrix, (truth, answered), 1)
        found["confusion"] = matrix.tolist()
        found["labels"] = [str(label) for label in task.card().get("classes", range(n))]
    p, right = (scored[:, 1], truth == 1) if n == 2 else (scored.max(1), truth == scored.argmax(1))
    found["reliability"] = [[float(p[held].mean()), float(right[held].mean()), len(held)] for held in _binned(p)]
    return found


def _of_numbers(scored: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    residuals = scored - truth
    size = np.abs(residuals)
    reach = float(np.quantile(size, WITHIN)) or float(size.max()) or 1.0
    place = np.floor((residuals / reach + 1) / 2 * RESIDUAL_BINS).clip(0, RESIDUAL_BINS - 1).astype(np.int64)
    return {
        "residuals": {
            "reach": reach,
            "counts": np.bincount(place, minlength=RESIDUAL_BINS).tolist(),
            "mean": float(residuals.mean()),
            "absolute": float(size.mean()),
        },
        "against": [
            [float(scored[held].mean()), *np.quantile(truth[held], [0.1, 0.5, 0.9]).tolist(), len(held)]
            for held in _binned(scored)
        ],
    }


def _binned(values: np.ndarray) -> list[np.ndarray]:
    """Return rows in up to ten bins of about as many, by value; equal values lie in one bin."""
    edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
    place = np.searchsorted(edges, values, side="right")
    return [held for b in range(len(edges) + 1) if len(held := np.flatnonzero(place == b))]
