"""Metrics by name, computed by scikit-learn on labelled rows, and their bootstrap intervals.

Letters: B rows, L cells of a grid, C classes, R draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import metrics as sk

from mtl_bento.tasks._base import Task
from mtl_bento.tasks.box import overlap

Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]
Resampler = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
RESAMPLES = 300
"""Bootstrap draws; the 2.5 % points then rest on seven of them at either end."""
MANY_ROWS, FEW_RESAMPLES = 10_000, 60
"""From so many rows a metric that cannot be resampled at once gets so many draws, for its standard error alone."""
CHUNK = 2**22
"""Numbers of a matrix of draws that are held at once."""


@dataclass(frozen=True)
class Metric:
    """A score of answers: `score(truth [B, ...], scored [B, ...], weights [B] or None)`, NaN where it is undefined."""

    score: Scorer
    higher_is_better: bool = True
    resample: Resampler | None = None
    """The scores [R] of R draws at once: `resample(truth, scored, weights [R, B])`; else they are looped."""
    of_labels: bool = False
    """Whether the label answered alone counts, which a threshold may set apart from the likeliest."""


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

    def resample(truth: np.ndarray, scored: np.ndarray, weights: np.ndarray) -> np.ndarray:
        means = weights @ values(truth, scored) / weights.sum(1)
        return np.asarray(np.sqrt(means) if root else means)

    return resample


def _resample_r2(truth: np.ndarray, scored: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = weights.sum(1)
    mean = weights @ truth / total
    # About the overall mean first: squares of large numbers would lose the difference.
    centre = truth.mean()
    around = weights @ (truth - centre) ** 2 - total * (mean - centre) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 - weights @ (truth - scored) ** 2 / around)


def _resample_auc(truth: np.ndarray, scored: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of pairs in the right order, ties counting half, by one sort for all draws."""
    p = scored[:, 1]
    order = np.argsort(p, kind="stable")
    starts = np.flatnonzero(np.diff(p[order], prepend=np.nan) != 0)
    positive = np.add.reduceat(weights[:, order] * (truth[order] == 1), starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * (truth[order] == 0), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = positive.sum(1) * negative.sum(1)
        return np.asarray((positive * (below + negative / 2)).sum(1) / pairs)


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


def _resample_precision(truth: np.ndarray, scored: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision: of the second of two classes, else the mean over the classes."""
    classes = [1] if scored.shape[-1] == 2 else range(scored.shape[-1])
    sorted_ = [_Precision(truth, scored[..., c], c) for c in classes]
    return np.array([_mean_known([each.score(row) for each in sorted_]) for row in weights])


def _resample_object_precision(truth: np.ndarray, scored: np.ndarray, weights: np.ndarray) -> np.ndarray:
    held = _Precision(truth[:, 0].astype(np.int64), scored[:, 0], 1)
    return np.array([held.score(row) for row in weights])


def _mean_known(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _share(counts: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Resampler:
    """Return a resampler of a share of two sums over rows, the mean of such shares where rows count several [B, C]."""

    def resample(truth: np.ndarray, scored: np.ndarray, weights: np.ndarray) -> np.ndarray:
        above, below = (weights @ part.reshape(len(truth), -1).astype(np.float64) for part in counts(truth, scored))
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = above / below  # NaN for a class that is nowhere
        known = ~np.isnan(shares)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(known, shares, 0.0).sum(1) / known.sum(1))

    return resample


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
        return float(resample(truth, scored, held[None])[0])

    return Metric(score, resample=resample)


METRICS: dict[str, Metric] = {
    "roc_auc": Metric(
        _needs_both(lambda y, p, w: float(sk.roc_auc_score(y, p[:, 1], sample_weight=w))), resample=_resample_auc
    ),
    "average_precision": _resampled(_resample_precision),
    "accuracy": Metric(
        lambda y, p, w: float(sk.accuracy_score(y, _label(p), sample_weight=w)),
        resample=_mean_of(lambda y, p: (_label(p) == y).astype(np.float64)),
        of_labels=True,
    ),
    "balanced_accuracy": Metric(_balanced, of_labels=True),
    "f1": Metric(lambda y, p, w: float(sk.f1_score(y, _label(p), sample_weight=w, zero_division=0.0)), of_labels=True),
    "f1_macro": Metric(
        lambda y, p, w: float(sk.f1_score(y, _label(p), average="macro", sample_weight=w, zero_division=0.0)),
        of_labels=True,
    ),
    "roc_auc_ovr": Metric(_needs_both(_roc_auc_ovr)),
    "log_loss": Metric(_log_loss, higher_is_better=False, resample=_mean_of(_nats)),
    "r2": Metric(
        lambda y, p, w: float(sk.r2_score(y, p, sample_weight=w)) if len(y) > 1 else float("nan"), resample=_resample_r2
    ),
    "rmse": Metric(
        lambda y, p, w: float(sk.root_mean_squared_error(y, p, sample_weight=w)),
        higher_is_better=False,
        resample=_mean_of(lambda y, p: (y - p) ** 2, root=True),
    ),
    "mae": Metric(
        lambda y, p, w: float(sk.mean_absolute_error(y, p, sample_weight=w)),
        higher_is_better=False,
        resample=_mean_of(lambda y, p: np.abs(y - p)),
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
    """Return a metric on the labelled rows, NaN where there is none or the metric is undefined on them."""
    held = known_rows(truth)
    if not held.any():
        return float("nan")
    return METRICS[name].score(truth[held], scored[held], None if weights is None else weights[held])


Interval = tuple[float, float]


def interval(
    name: str, truth: np.ndarray, scored: np.ndarray, *, weights: np.ndarray | None = None, seed: int = 0
) -> Interval:
    """Return the 95 % bootstrap interval of a metric; NaN where it is undefined."""
    return _intervals(name, truth, [scored], weights, seed)[0]


def paired_intervals(
    name: str,
    truth: np.ndarray,
    scored: np.ndarray,
    against: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """Return the 95 % bootstrap intervals of a metric and of its difference to `against`, on the same draws of rows.

    A difference is positive where `scored` is better, whichever way the metric points. NaN where it is undefined.
    """
    own, difference = _intervals(name, truth, [scored, against], weights, seed)
    return own, difference


def _intervals(
    name: str, truth: np.ndarray, scored: list[np.ndarray], weights: np.ndarray | None, seed: int
) -> list[Interval]:
    """Return the interval of the first answers' metric and, for every further answers, of the difference to them."""
    held = np.flatnonzero(known_rows(truth))
    if not len(held):
        return [(float("nan"), float("nan"))] * len(scored)
    truth, scored = truth[held], [each[held] for each in scored]
    weights = np.ones(len(held)) if weights is None else weights[held]
    metric = METRICS[name]
    many = metric.resample is None and len(held) >= MANY_ROWS
    draws = FEW_RESAMPLES if many else RESAMPLES
    columns = [_drawn(metric, truth, each, weights, draws, seed) for each in scored]
    centres = [metric.score(truth, each, weights) for each in scored]
    sign = 1.0 if metric.higher_is_better else -1.0
    pairs = [(columns[0], centres[0])]
    pairs += [(sign * (columns[0] - c), sign * (centres[0] - m)) for c, m in zip(columns[1:], centres[1:], strict=True)]
    return [_spread(column, centre if many else None) for column, centre in pairs]


def _drawn(
    metric: Metric, truth: np.ndarray, scored: np.ndarray, weights: np.ndarray, draws: int, seed: int
) -> np.ndarray:
    """Return a metric on `draws` bootstrap draws of the rows; the same seed draws the same rows whatever is scored."""
    rng = np.random.default_rng(seed)
    n, found = len(truth), []
    for start in range(0, draws, step := max(1, CHUNK // n)):
        rows = rng.integers(0, n, size=(min(step, draws - start), n))
        if metric.resample is None:
            found += [metric.score(truth[r], scored[r], weights[r]) for r in rows]
        else:
            counts = np.stack([np.bincount(r, minlength=n) for r in rows]) * weights
            found += metric.resample(truth, scored, counts).tolist()
    return np.array(found)


def _spread(drawn: np.ndarray, centre: float | None) -> Interval:
    """Return the middle 95 % of draws, or 1.96 of their standard deviations about a centre."""
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < 2:
        return float("nan"), float("nan")
    if centre is not None:
        slack = 1.96 * float(finite.std(ddof=1))
        return centre - slack, centre + slack
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)
