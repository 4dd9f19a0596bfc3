"""Metrics by name, computed by scikit-learn on labelled rows, and what a bootstrap of the rows says of them.

Answers that are compared are scored on the same draws of rows (a paired bootstrap), of several opponents at once.

Letters: B rows, L cells of a grid, C classes, R draws.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student
from sklearn import metrics as sk

from mtl_bento.tasks._base import Task
from mtl_bento.tasks.box import overlap

Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]
Draw = Callable[[np.ndarray], np.ndarray]
"""Weights of the rows in R draws, float64 [R, B] -> the metric on each [R], NaN where it is undefined."""
Resampler = Callable[[np.ndarray, np.ndarray], Draw]
"""What is done once for all draws, such as a sort: `resampler(truth [B, ...], scored [B, ...])` gives a Draw."""
RESAMPLES, FEWEST = 300, 60
"""Bootstrap draws: the 2.5 % points then rest on seven of them at either end; and how few there are where the draws
would not fit, from which only the standard error is taken."""
HELD = 2**26
"""Counts of rows in draws that are held, one byte each."""
CHUNK = 2**18
"""Numbers of a matrix of draws that are worked on at once, so that they stay in a core's cache."""


@dataclass(frozen=True)
class Metric:
    """A score of answers: `score(truth [B, ...], scored [B, ...], weights [B] or None)`, NaN where it is undefined."""

    score: Scorer
    resample: Resampler
    """The same on draws of the rows."""
    higher_is_better: bool = True
    of_labels: bool = False
    """Whether the label answered alone counts, which a threshold may set apart from the likeliest."""
    of_pairs: bool = False
    """Whether rows of one of two classes are set against those of the other, and the rarer one counts."""


def _label(scored: np.ndarray) -> np.ndarray:
    return np.asarray(scored.argmax(1))


def _needs_both(scorer: Scorer) -> Scorer:
    """Return NaN where one class alone is present, on which the score is undefined."""

    def guarded(truth: np.ndarray, scored: np.ndarray, weights: np.ndarray | None) -> float:
        return scorer(truth, scored, weights) if len(np.unique(truth)) > 1 else float("nan")

    return guarded


def _log_loss(truth: np.ndarray, scored: np.ndarray, weights: np.ndarray | None) -> float:
    return float(sk.log_loss(truth, scored.clip(1e-7, 1), sample_weight=weights, labels=np.arange(scored.shape[1])))


def _balanced(truth: np.ndarray, scored: np.ndarray, weights: np.ndarray | None) -> float:
    return float(
        sk.recall_score(truth, _label(scored), average="macro", labels=np.unique(truth), sample_weight=weights)
    )


def _roc_auc_ovr(truth: np.ndarray, scored: np.ndarray, weights: np.ndarray | None) -> float:
    present = np.unique(truth)
    areas = [sk.roc_auc_score(truth == c, scored[:, c], sample_weight=weights) for c in present]
    return float(np.mean(areas))


def _mean_of(values: Callable[[np.ndarray, np.ndarray], np.ndarray], root: bool = False) -> Resampler:
    """Return a resampler of a metric that is a weighted mean over rows."""

    def resampler(truth: np.ndarray, scored: np.ndarray) -> Draw:
        each = values(truth, scored).astype(np.float64)

        def draw(weights: np.ndarray) -> np.ndarray:
            means = weights @ each / weights.sum(1)
            return np.asarray(np.sqrt(means) if root else means)

        return draw

    return resampler


def _resample_r2(truth: np.ndarray, scored: np.ndarray) -> Draw:
    # About the overall mean first: squares of large numbers would lose the difference.
    around, wrong = truth - truth.mean(), (truth - scored) ** 2
    square = around**2

    def draw(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(1)
        spread = weights @ square - (weights @ around) ** 2 / total
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - weights @ wrong / spread)

    return draw


def _area(positive: np.ndarray, p: np.ndarray) -> Draw:
    """The share of pairs in the right order, ties counting half, by one sort for all draws."""
    ups, downs = (held[np.argsort(p[held], kind="stable")] for held in map(np.flatnonzero, (positive, ~positive)))
    under, until = (np.searchsorted(p[downs], p[ups], side) for side in ("left", "right"))

    def draw(weights: np.ndarray) -> np.ndarray:
        up = weights.take(ups, axis=1)
        # The weight of the negatives below each place among them, beginning with none.
        below = np.zeros((len(weights), len(downs) + 1))
        np.cumsum(weights.take(downs, axis=1), axis=1, out=below[:, 1:])
        pairs = np.einsum("rb,rb->r", up, below.take(under, axis=1) + below.take(until, axis=1)) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(pairs / (up.sum(1) * below[:, -1]))

    return draw


def _resample_auc(truth: np.ndarray, scored: np.ndarray) -> Draw:
    return _area(truth == 1, scored[:, 1])


def _resample_auc_ovr(truth: np.ndarray, scored: np.ndarray) -> Draw:
    return _mean_of_draws([_area(truth == c, scored[:, c]) for c in np.unique(truth)])


def _nats(truth: np.ndarray, scored: np.ndarray) -> np.ndarray:
    shares = scored.clip(1e-7, 1)
    return np.asarray(-np.log(shares[np.arange(len(truth)), truth] / shares.sum(1)))


class _Precision:
    """Average precision of one class over known cells, sorted once for any weights of the rows.

    truth [B] or [B, L] codes, score [B] or [B, L] of being class `positive`.
    """

    def __init__(self, truth: np.ndarray, score: np.ndarray, positive: int) -> None:
        known = (truth >= 0).ravel()
        rows = np.arange(len(truth)).repeat(truth.size // len(truth))[known]
        p = score.ravel()[known]
        order = np.argsort(-p, kind="stable")
        self.rows, self.hit = rows[order], (truth.ravel()[known] == positive)[order]
        self.ends = np.flatnonzero(np.diff(p[order], append=np.nan) != 0)  # ties are one threshold

    def score(self, weights: np.ndarray) -> float:
        """Return the average precision for row weights [B]; NaN where one class alone is present."""
        held = weights[self.rows]
        hits, all_ = np.cumsum(held * self.hit)[self.ends], np.cumsum(held)[self.ends]
        if not 0 < hits[-1] < all_[-1]:
            return float("nan")
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.nan_to_num(hits / all_)
        return float((np.diff(hits, prepend=0.0) * precision).sum() / hits[-1])


def _precision(truth: np.ndarray, score: np.ndarray, positive: int) -> Draw:
    held = _Precision(truth, score, positive)
    return lambda weights: np.array([held.score(row) for row in weights])


def _resample_precision(truth: np.ndarray, scored: np.ndarray) -> Draw:
    """Average precision: of the second of two classes, else the mean over the classes."""
    classes = [1] if scored.shape[-1] == 2 else range(scored.shape[-1])
    return _mean_of_draws([_precision(truth, scored[..., c], c) for c in classes])


def _resample_object_precision(truth: np.ndarray, scored: np.ndarray) -> Draw:
    return _precision(truth[:, 0].astype(np.int64), scored[:, 0], 1)


def _mean_of_draws(draws: Sequence[Draw]) -> Draw:
    """Return the mean of what several draws give, of those that are defined."""
    return lambda weights: _mean_known(np.stack([draw(weights) for draw in draws], 1))


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Return the means [R] of values [R, C], over those that are not NaN."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(1) / known.sum(1))


def _share(
    counts: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], *, nothing: float = math.nan
) -> Resampler:
    """Return a resampler of a share of two sums over rows, the mean of such shares where rows count several [B, C].

    A share of nothing, as of a class that is nowhere, is passed over, or is `nothing` where that is given.
    """

    def resampler(truth: np.ndarray, scored: np.ndarray) -> Draw:
        parts = [part.reshape(len(truth), -1).astype(np.float64) for part in counts(truth, scored)]

        def draw(weights: np.ndarray) -> np.ndarray:
            above, below = (weights @ part for part in parts)
            with np.errstate(divide="ignore", invalid="ignore"):
                return _mean_known(np.where(below == 0, nothing, above / below))

        return draw

    return resampler


def _recalls(truth: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each class [B, C], the rows of it that are answered so, and all of it."""
    there = truth[:, None] == np.arange(scored.shape[1])
    return there & (_label(scored) == truth)[:, None], there


def _f1_counts(truth: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each class [B, C], twice the rows that have it in truth and answer, and those of truth and answer together."""
    classes = np.arange(scored.shape[1])
    there, said = truth[:, None] == classes, _label(scored)[:, None] == classes
    return 2 * (there & said), there.astype(np.int64) + said


def _f1_of_second(truth: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    above, below = _f1_counts(truth, scored)
    return above[:, 1], below[:, 1]


def _overlaps(truth: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union of the boxes of rows that have an object, and which those are."""
    there = truth[:, 0] == 1
    return np.where(there, overlap(np.nan_to_num(truth[:, 1:]), scored[:, 1:]), 0.0), there


def _good_overlaps(truth: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    overlaps, there = _overlaps(truth, scored)
    return overlaps > 0.5, there


def _cell_overlaps(truth: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each class [B, C], the known cells that have it in truth and answer, and in either."""
    answer, known = scored.argmax(-1), truth >= 0
    pairs = [(truth == c, (answer == c) & known) for c in range(scored.shape[-1])]
    return np.stack([(a & b).sum(1) for a, b in pairs], 1), np.stack([(a | b).sum(1) for a, b in pairs], 1)


def _cells(truth: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (truth == scored.argmax(-1)).sum(1), (truth >= 0).sum(1)


def _entities(truth: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each text, twice the spans found with their label and exact bounds, and those of truth and answer together."""
    pairs = [(one.entities, other.entities) for one, other in zip(truth, scored, strict=True)]
    return np.array([2 * len(a & b) for a, b in pairs]), np.array([len(a) + len(b) for a, b in pairs])


def _tags(truth: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(one.tags, other.tags) for one, other in zip(truth, scored, strict=True)]
    right = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs]
    return np.array(right), np.array([len(a) for a, _ in pairs])


def _resampled(resample: Resampler) -> Metric:
    """Return a metric that is one draw of its resampler."""

    def score(truth: np.ndarray, scored: np.ndarray, weights: np.ndarray | None) -> float:
        held = np.ones(len(truth)) if weights is None else weights
        return float(resample(truth, scored)(held[None].astype(np.float64))[0])

    return Metric(score, resample)


METRICS: dict[str, Metric] = {
    "roc_auc": Metric(
        _needs_both(lambda y, p, w: float(sk.roc_auc_score(y, p[:, 1], sample_weight=w))), _resample_auc, of_pairs=True
    ),
    "average_precision": _resampled(_resample_precision),
    "accuracy": Metric(
        lambda y, p, w: float(sk.accuracy_score(y, _label(p), sample_weight=w)),
        _mean_of(lambda y, p: _label(p) == y),
        of_labels=True,
    ),
    "balanced_accuracy": Metric(_balanced, _share(_recalls), of_labels=True),
    "f1": Metric(
        lambda y, p, w: float(sk.f1_score(y, _label(p), sample_weight=w, zero_division=0.0)),
        _share(_f1_of_second, nothing=0.0),
        of_labels=True,
    ),
    "f1_macro": Metric(
        lambda y, p, w: float(sk.f1_score(y, _label(p), average="macro", sample_weight=w, zero_division=0.0)),
        _share(_f1_counts),
        of_labels=True,
    ),
    "roc_auc_ovr": Metric(_needs_both(_roc_auc_ovr), _resample_auc_ovr),
    "log_loss": Metric(_log_loss, _mean_of(_nats), higher_is_better=False),
    "r2": Metric(
        lambda y, p, w: float(sk.r2_score(y, p, sample_weight=w)) if len(y) > 1 else float("nan"), _resample_r2
    ),
    "rmse": Metric(
        lambda y, p, w: float(sk.root_mean_squared_error(y, p, sample_weight=w)),
        _mean_of(lambda y, p: (y - p) ** 2, root=True),
        higher_is_better=False,
    ),
    "mae": Metric(
        lambda y, p, w: float(sk.mean_absolute_error(y, p, sample_weight=w)),
        _mean_of(lambda y, p: np.abs(y - p)),
        higher_is_better=False,
    ),
    "mean_iou": _resampled(_share(_overlaps)),
    "iou_50": _resampled(_share(_good_overlaps)),
    "object_average_precision": _resampled(_resample_object_precision),
    "mean_cell_iou": _resampled(_share(_cell_overlaps)),
    "cell_accuracy": _resampled(_share(_cells)),
    "entity_f1": _resampled(_share(_entities)),
    "token_accuracy": _resampled(_share(_tags)),
}
"""Every metric that a task kind may name."""


def known_rows(truth: np.ndarray) -> np.ndarray:
    """Return which rows [B] are labelled: neither None, NaN nor -1, in one of their numbers at least."""
    if truth.dtype.kind == "O":
        return np.array([row is not None for row in truth], dtype=bool)
    known = ~np.isnan(truth) if truth.dtype.kind == "f" else truth >= 0
    return np.asarray(known.any(axis=tuple(range(1, truth.ndim))))


def read(name: str, task: Task[Any], scored: np.ndarray) -> np.ndarray:
    """Return a task's scored answers as a metric reads them: those of labels see the label that is answered."""
    return task.decided(scored) if METRICS[name].of_labels else scored


def measure(name: str, truth: np.ndarray, scored: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return a metric on the labelled rows, NaN where none weighs anything or the metric is undefined on them."""
    held = known_rows(truth)
    if not held.any() or (weights is not None and not weights[held].any()):
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a metric is undefined; NaN says it
        return METRICS[name].score(truth[held], scored[held], None if weights is None else weights[held])


Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """By how much answers are better than others on the same rows; positive is better, whichever way the metric points.

    NaN where the metric is undefined; what rests on the standard error also where fewer than two rows count.
    """

    difference: float
    error: float
    """Its standard error, by a paired bootstrap."""
    n: int
    """Rows that count: labelled, of a weight above 0, and of two classes that are set against each other those of the
    rarer one, which bounds the degrees of freedom as Welch's test has them."""

    @property
    def interval(self) -> Interval:
        """The 95 % interval, by Student's t of n - 1 degrees of freedom: without 0 where `p` is below .05."""
        slack = self._quantile(0.05) * self.error
        return self.difference - slack, self.difference + slack

    @property
    def p(self) -> float:
        """The two-sided p-value of no difference.

        At least 2^(1 - n): so often do all of n rows point the same way by chance, which a bootstrap of few rows that
        are all alike does not see.
        """
        if math.isnan(self.error):
            return math.nan
        if self.difference == 0:
            return 1.0
        ratio = abs(self.difference) / self.error if self.error else math.inf
        return max(float(2 * student.sf(ratio, self.n - 1)), 2.0 ** (1 - self.n))

    def shown_from(self, level: float) -> float:
        """Return the difference from which on these rows show one: its `p` would be `level`; NaN where none would."""
        return self._quantile(level) * self.error if level >= 2.0 ** (1 - self.n) else math.nan

    def _quantile(self, level: float) -> float:
        return float(student.isf(level / 2, self.n - 1)) if self.n > 1 else math.nan


def interval(
    name: str, truth: np.ndarray, scored: np.ndarray, *, weights: np.ndarray | None = None, seed: int = 0
) -> Interval:
    """Return the 95 % bootstrap interval of a metric; NaN where it is undefined."""
    return compared(name, truth, scored, (), weights=weights, seed=seed)[0]


def compared(
    name: str,
    truth: np.ndarray,
    scored: np.ndarray,
    others: Sequence[np.ndarray],
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[Interval, list[Difference]]:
    """Return the interval of a metric and its difference to each of several others, all on the same draws of rows.

    Args:
        name: of the metric.
        truth: labels [B, ...] as the metric reads them; rows without one do not count.
        scored: answers [B, ...] as the metric reads them.
        others: such answers of the opponents.
        weights: of the rows [B], or None for equal ones.
        seed: of the draws; with the same seed and number of labelled rows they are the same.
    """
    held = np.flatnonzero(known_rows(truth))
    truth, every = truth[held], [each[held] for each in (scored, *others)]
    weights = np.ones(len(held)) if weights is None else weights[held].astype(np.float64)
    metric, counting = METRICS[name], weights > 0
    n = n_rows = int(counting.sum())
    if metric.of_pairs:
        n = int(np.bincount(truth[counting], minlength=2).min())
    if n_rows < 2:
        values = [metric.score(truth, each, weights) if n_rows else math.nan for each in every]
        drawn = np.full((len(every), 1), math.nan)
    else:
        values = [metric.score(truth, each, weights) for each in every]
        drawn = _drawn([metric.resample(truth, each) for each in every], weights, seed)
    sign = 1.0 if metric.higher_is_better else -1.0
    differences = []
    for value, column, other in zip(values[1:], drawn[1:], every[1:], strict=True):
        gap = sign * (values[0] - value)
        error = _error(drawn[0] - column, gap)
        if error == gap == 0 and not np.array_equal(every[0], other):
            # Not one of n rows tells them apart; one might have, which is an error of 1 / n in metrics from 0 to 1.
            error = 1 / n_rows
        differences.append(Difference(gap, error, n))
    return _spread(drawn[0], values[0]), differences


def _drawn(draws: Sequence[Draw], weights: np.ndarray, seed: int) -> np.ndarray:
    """Return what each of several draws gives on the same bootstrap draws of the rows: [draws, R]."""
    n, found = len(weights), []
    counts = _counts(n, min(RESAMPLES, max(FEWEST, HELD // n)), seed)
    for start in range(0, len(counts), step := max(1, CHUNK // n)):
        chunk = counts[start : start + step] * weights
        # A draw of rows that weigh nothing has no metric.
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append([draw(chunk) for draw in draws])
    return np.concatenate(found, axis=1)


@functools.lru_cache(maxsize=1)
def _counts(n: int, draws: int, seed: int) -> np.ndarray:
    """Return how often each of n rows is in each draw of n rows, uint8 [R, n].

    A row is in a draw 255 times with a chance below 1e-500. Tasks with as many labelled rows share the draws.
    """
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(0, n, n), minlength=n).astype(np.uint8) for _ in range(draws)])


def _error(drawn: np.ndarray, centre: float) -> float:
    """Return the standard error that draws show; NaN where it is unknown."""
    finite = drawn[np.isfinite(drawn)]
    return float(finite.std(ddof=1)) if len(finite) > 1 and math.isfinite(centre) else math.nan


def _spread(drawn: np.ndarray, centre: float) -> Interval:
    """Return the middle 95 % of draws; where they are few, 1.96 of their standard deviations about the centre."""
    error = _error(drawn, centre)
    if math.isnan(error):
        return math.nan, math.nan
    if len(drawn) < RESAMPLES:
        return centre - 1.96 * error, centre + 1.96 * error
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    return float(low), float(high)
