"""How often intervals and prediction sets hold the truth on rows that nobody learned from; calibration of a choice.

Letters: V validation rows, B test rows, O numbers of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mtl_bento.dataset import Dataset
from mtl_bento.tasks._base import Task
from mtl_bento_search.metrics import known_rows

Z = 1.959963984540054
"""Standard deviations on either side of the middle 95 % of a normal distribution."""


def calibrated(
    tasks: Sequence[Task[Any]], answers: Sequence[np.ndarray], dataset: Dataset, rows: np.ndarray
) -> tuple[Task[Any], ...]:
    """Return the tasks calibrated on a choice's out-of-fold answers.

    Args:
        tasks: the problem's, in order.
        answers: for each task, blended answers on the validation rows, each by networks that did not learn it [V, O].
        dataset: whose targets and row weights count.
        rows: the validation rows [V], in the order of the answers.
    """
    weights = None if dataset.weights is None else dataset.weights.cpu().numpy()[rows]
    index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    return tuple(
        task.calibrate(answered, dataset.targets[t].cpu()[index], weights)
        for t, (task, answered) in enumerate(zip(tasks, answers, strict=True))
    )


def coverage(
    task: Task[Any], answers: np.ndarray, labels: pa.ChunkedArray, weights: np.ndarray | None = None
) -> dict[str, Any] | None:
    """Return how often a calibrated task's intervals or sets hold the truth of rows; None where it gives none.

    Args:
        task: placed on the rows.
        answers: of these rows [B, O].
        labels: their cells.
        weights: of the rows [B], or None for equal ones.
    """
    columns = {f"{task.name}__{suffix}": pa.chunked_array([cells]) for suffix, cells in task.columns(answers).items()}
    return coverage_of_columns(task, columns, task.truth(labels), weights)


def coverage_of_columns(
    task: Task[Any], columns: Mapping[str, pa.ChunkedArray], truth: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, Any] | None:
    """Return the same from the columns of `output="full"`, whoever answered.

    The record: task, level (the share aimed at), value (the share that holds the truth), lower and upper (its 95 %
    interval), size (mean width in the target's unit, or mean number of labels), measure (which of these), n (labelled
    rows).
    """
    found = task.covered(columns, truth)
    rows = known_rows(truth)
    weight = np.ones(len(truth)) if weights is None else weights.astype(np.float64)
    rows &= weight > 0
    if found is None or not rows.any():
        return None
    weight = weight[rows]
    share = float(np.average(found.held[rows], weights=weight))
    low, high = wilson(share, float(weight.sum() ** 2 / (weight**2).sum()))
    size = float(np.average(found.size[rows], weights=weight))
    return {
        "task": task.name,
        "level": found.level,
        "value": share,
        "lower": low,
        "upper": high,
        "size": size,
        "measure": found.measure,
        "n": int(rows.sum()),
    }


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a share seen in n independent rows (Wilson, 1927)."""
    # An end that is 0 or 1 is so exactly, whatever rounding makes of it.
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    slack = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return 0.0 if share == 0 else middle - slack, 1.0 if share == 1 else middle + slack
