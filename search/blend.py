"""The blend: which candidates answer a task, and with what shares, decided on validation rows alone.

Greedy selection with replacement (Caruana et al., ICML 2004), one task at a time. On few rows it picks too few, those
that were lucky there. So ours differs in that its shares are drawn towards the mean of the best candidate of each kind,
kinds being what errs differently; and in that a single-task network, or the task's trees, serve alone where they are
clearly better: more candidates must never make an answer worse. LOG.md has the rules that were tried.

Letters: V validation rows of all splits together, O numbers of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MARGIN = 0.01
"""What is clearly better is so by more than this share of its own loss ..."""
GAIN = 0.002
"""The share of the loss that one more pick must save."""
DRAWN = 0.25
"""How far shares are drawn towards those of the kinds."""
FAR = 1.5
"""Times the loss of the best candidate from which on a kind has nothing to bring, however differently it errs."""
ALONE = ("single", "trees")
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
    drawn: float = DRAWN,
) -> np.ndarray:
    """Return each candidate's share in the answer of one task [candidates], summing to one.

    A candidate with an answer or a loss that is not finite, having diverged, has no share. Where no row has a label the
    first that answers takes all.

    Args:
        answers: of each candidate [V, O], out of fold; None where it does not answer the task.
        kinds: of each candidate: shared, group, single, trees, offset.
        loss: of answers, by row.
        weights: of the rows [V]; None is 1 each.
        most: picks, and candidates with a share, at most.
        gain: the share of the loss that a pick must save, the first excepted.
        drawn: from 0 to 1, how far shares are drawn towards equal ones of the best candidate of each kind that is not
            `FAR` off. They are left as they were picked where that is clearly better, where one that learned alone was
            picked alone, where there is one such kind, and where more than `most` would have a share.

    Raises:
        ValueError: no candidate has finite answers.
    """
    finite = [k for k, a in enumerate(answers) if a is not None and np.isfinite(a).all()]
    if not finite:
        raise ValueError("no candidate answers the task with finite numbers")
    held = {k: np.asarray(answers[k], dtype=np.float64) for k in finite}
    losses = {k: loss(a) for k, a in held.items()}
    rows = _counting(list(losses.values()), weights)
    held = {k: a for k, a in held.items() if np.isfinite(losses[k][rows.index]).all()}
    if not len(rows.index) or not held:
        return _equal(len(answers), finite[:1])
    means = {k: rows.mean(losses[k]) for k in held}
    present = dict.fromkeys(kinds[k] for k in held)
    firsts = [min((k for k in held if kinds[k] == kind), key=means.__getitem__) for kind in present]

    def mixed(shares: np.ndarray) -> np.ndarray:
        return loss(np.asarray(sum(shares[k] * a for k, a in held.items() if shares[k])))

    picked = _greedy(held, means, lambda a: rows.mean(loss(a)), most=most, gain=gain)
    chosen = _equal(len(answers), picked)
    if len(set(picked)) == 1 and kinds[picked[0]] in ALONE:
        return chosen
    blended = mixed(chosen)
    near = [k for k in firsts if means[k] <= FAR * min(means.values())]
    towards = (1 - drawn) * chosen + drawn * _equal(len(answers), near)
    if len(near) > 1 and np.count_nonzero(towards) <= most and not clearly_better(blended, mixed(towards), weights):
        chosen, blended = towards, mixed(towards)
    for k in sorted((k for k in firsts if kinds[k] in ALONE), key=means.__getitem__):
        if clearly_better(losses[k], blended, weights):
            return _equal(len(answers), [k])
    return chosen


def _greedy(
    held: dict[int, np.ndarray],
    means: dict[int, float],
    mean_loss: Callable[[np.ndarray], float],
    *,
    most: int,
    gain: float,
) -> list[int]:
    """Return the candidates picked, each as often as it was, from the best one on while a pick saves enough."""
    first = min(held, key=means.__getitem__)
    chosen, total, best = [first], held[first], means[first]
    while len(chosen) < most:
        found = {k: mean_loss((total + a) / (len(chosen) + 1)) for k, a in held.items()}
        least = min(found, key=found.__getitem__)
        if not found[least] < (1 - gain) * best:
            break
        chosen.append(least)
        total, best = total + held[least], found[least]
    return chosen


def clearly_better(losses: np.ndarray, than: np.ndarray, weights: np.ndarray | None = None) -> bool:
    """Return whether row losses [V] are lower than others by more than max(1 standard error, 1 %).

    Rows without a label are NaN in both. The standard error is that of the mean paired difference.
    """
    known = ~np.isnan(than)
    difference = than[known] - losses[known]
    weight = np.ones(len(difference)) if weights is None else weights[known]
    if len(difference) < 2 or not weight.sum():
        return False
    mean = float(np.average(difference, weights=weight))
    spread = np.sqrt(float(np.average((difference - mean) ** 2, weights=weight)))
    error = spread * np.sqrt(float((weight**2).sum())) / float(weight.sum())
    return bool(mean > max(error, MARGIN * float(np.average(losses[known], weights=weight))))


@dataclass(frozen=True)
class _Rows:
    """The rows that count: those with a label, which somebody's loss knows, and a weight."""

    index: np.ndarray
    weight: np.ndarray

    def mean(self, losses: np.ndarray) -> float:
        """Return the mean of row losses [V] over them."""
        return float(np.average(losses[self.index], weights=self.weight))


def _counting(losses: Sequence[np.ndarray], weights: np.ndarray | None) -> _Rows:
    weight = np.ones(len(losses[0])) if weights is None else np.asarray(weights, dtype=np.float64)
    index = np.flatnonzero((~np.isnan(losses)).any(0) & (weight > 0))
    return _Rows(index, weight[index])


def _equal(n: int, chosen: Sequence[int]) -> np.ndarray:
    """Return n shares, equal for those chosen and for each time they are."""
    return np.bincount(chosen, minlength=n) / len(chosen)
