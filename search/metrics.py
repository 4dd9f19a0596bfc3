"""Metrics by name, computed by scikit-learn on labelled rows, and their bootstrap intervals.

Letters: B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn import metrics as sk

Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]
RESAMPLES = 300
"""Bootstrap draws; the 2.5 % points then rest on seven of them at either end."""
MANY_ROWS, FEW_RESAMPLES = 10_000, 60
"""From so many rows a metric is close to normal: so many draws give its standard error, in a fraction of the time."""


@dataclass(frozen=True)
class Metric:
    """A score of answers: `score(truth [B], scored [B, C] or [B], weights [B] or None)`, NaN where it is undefined."""

    score: Scorer
    higher_is_better: bool = True


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


METRICS: dict[str, Metric] = {
    "roc_auc": Metric(_needs_both(lambda y, p, w: float(sk.roc_auc_score(y, p[:, 1], sample_weight=w)))),
    "average_precision": Metric(
        _needs_both(lambda y, p, w: float(sk.average_precision_score(y, p[:, 1], sample_weight=w)))
    ),
    "accuracy": Metric(lambda y, p, w: float(sk.accuracy_score(y, _label(p), sample_weight=w))),
    "balanced_accuracy": Metric(_balanced),
    "f1": Metric(lambda y, p, w: float(sk.f1_score(y, _label(p), sample_weight=w, zero_division=0.0))),
    "f1_macro": Metric(
        lambda y, p, w: float(sk.f1_score(y, _label(p), average="macro", sample_weight=w, zero_division=0.0))
    ),
    "roc_auc_ovr": Metric(_needs_both(_roc_auc_ovr)),
    "log_loss": Metric(_log_loss, higher_is_better=False),
    "r2": Metric(lambda y, p, w: float(sk.r2_score(y, p, sample_weight=w)) if len(y) > 1 else float("nan")),
    "rmse": Metric(lambda y, p, w: float(sk.root_mean_squared_error(y, p, sample_weight=w)), higher_is_better=False),
    "mae": Metric(lambda y, p, w: float(sk.mean_absolute_error(y, p, sample_weight=w)), higher_is_better=False),
}
"""Every metric that a task kind may name."""


def known_rows(truth: np.ndarray) -> np.ndarray:
    """Return which rows [B] are labelled: neither NaN nor -1."""
    return ~np.isnan(truth) if truth.dtype.kind == "f" else truth >= 0


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
    rng = np.random.default_rng(seed)
    metric = METRICS[name]
    sign = 1.0 if metric.higher_is_better else -1.0

    def values(rows: np.ndarray) -> list[float]:
        weight = None if weights is None else weights[rows]
        first, *others = (metric.score(truth[rows], each[rows], weight) for each in scored)
        return [first, *(sign * (first - other) for other in others)]

    many = len(held) >= MANY_ROWS
    drawn = np.array([values(rng.choice(held, len(held))) for _ in range(FEW_RESAMPLES if many else RESAMPLES)])
    centres = values(held)
    return [_spread(column, centre if many else None) for column, centre in zip(drawn.T, centres, strict=True)]


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
