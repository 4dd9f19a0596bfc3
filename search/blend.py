"""The blend: which candidates answer a task, and with what shares, decided on validation rows alone.

Greedy selection with replacement (Caruana et al., ICML 2004), one task at a time. Ours differs in that it stops where a
pick gains too little, and in that what it found is given up for a single-task network, or the task's trees, where these
alone are clearly better: more candidates must never make an answer worse.

Letters: V validation rows of all splits together, O numbers of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

MARGIN = 0.01
"""A fallback must be better by more than this share of its own loss ..."""
GAIN = 0.002
"""The share of the loss that one more pick must save."""
FALLBACKS = ("single", "trees")
"""Kinds that serve a task alone where they are clearly better: they learned nothing from other tasks."""

Loss = Callable[[np.ndarray], np.ndarray]
"""Answers [V, O] -> loss of each row [V], NaN where the label is missing."""


def pick(
    answers: Sequence[np.ndarray | None],
    kinds: Sequence[str],
    loss: Loss,
    *,
    weights: np.ndarray | None = None,
    most: int = 8,
    gain: float = GAIN,
) -> np.ndarray:
    """Return each candidate's share in the answer of one task [candidates], summing to one.

    A candidate with an answer or a loss that is not finite, having diverged, has no share. Where no row has a label the
    first that answers takes all.

    Args:
        answers: of each candidate [V, O], out of fold; None where it does not answer the task.
        kinds: of each candidate: shared, group, single, trees, offset.
        loss: of answers, by row.
        weights: of the rows [V]; None is 1 each.
        most: picks at most, so members of a kind at most.
        gain: the share of the loss that a pick must save, the first excepted.

    Raises:
        ValueError: no candidate has finite answers.
    """
    finite = [k for k, a in enumerate(answers) if a is not None and np.isfinite(a).all()]
    if not finite:
        raise ValueError("no candidate answers the task with finite numbers")
    pool = np.stack([np.asarray(answers[k], dtype=np.float64) for k in finite])  # [candidates, V, O]
    losses = np.stack([loss(a) for a in pool])  # [candidates, V]
    judge = Judge(losses, weights)
    sound = [i for i in range(len(finite)) if np.isfinite(losses[i, judge.rows]).all()]
    if not judge.n or not sound:
        return _shares(len(answers), [finite[0]])
    means = [judge.mean(losses[i]) if i in sound else np.inf for i in range(len(finite))]
    chosen = [int(np.argmin(means))]
    total, best = pool[chosen[0]].copy(), means[chosen[0]]
    while len(chosen) < most:
        found = [judge.mean(loss((total + pool[i]) / (len(chosen) + 1))) for i in sound]
        least = int(np.argmin(found))
        if not found[least] < (1 - gain) * best:
            break
        chosen.append(sound[least])
        total, best = total + pool[sound[least]], found[least]
    blended = loss(total / len(chosen))
    for kind in FALLBACKS:
        own = [i for i in sound if kinds[finite[i]] == kind]
        first = min(own, key=lambda i: means[i], default=None)
        if first is not None and clearly_better(losses[first], blended, weights):
            chosen, blended = [first], losses[first]
    return _shares(len(answers), [finite[i] for i in chosen])


def clearly_better(losses: np.ndarray, than: np.ndarray, weights: np.ndarray | None = None) -> bool:
    """Return whether row losses [V] are lower than others by more than max(1 standard error, 1 %).

    Rows without a label are NaN in both. The standard error is that of the mean paired difference.
    """
    held = ~np.isnan(than)
    difference = than[held] - losses[held]
    weight = np.ones(len(difference)) if weights is None else weights[held]
    if len(difference) < 2 or not weight.sum():
        return False
    mean = float(np.average(difference, weights=weight))
    spread = np.sqrt(float(np.average((difference - mean) ** 2, weights=weight)))
    error = spread * np.sqrt(float((weight**2).sum())) / float(weight.sum())
    return bool(mean > max(error, MARGIN * float(np.average(losses[held], weights=weight))))


class Judge:
    """The rows that count: those with a label that somebody's loss knows, and a weight."""

    def __init__(self, losses: np.ndarray, weights: np.ndarray | None) -> None:
        weight = np.ones(losses.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
        self.rows = np.flatnonzero((~np.isnan(losses)).any(0) & (weight > 0))
        self.weight = weight[self.rows]

    @property
    def n(self) -> int:
        """How many rows count."""
        return len(self.rows)

    def mean(self, losses: np.ndarray) -> float:
        """Return the mean of row losses [V] over the rows that count."""
        return float(np.average(losses[self.rows], weights=self.weight))


def _shares(n: int, chosen: Sequence[int]) -> np.ndarray:
    return np.bincount(chosen, minlength=n) / len(chosen)
