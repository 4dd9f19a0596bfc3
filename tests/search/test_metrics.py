"""Metrics by name on hand-made cases, and their bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from mtl_bento.tasks._base import TASKS
from mtl_bento_search.metrics import METRICS, interval, measure, paired_intervals

TRUTH = np.array([0, 0, 1, 1, -1])
SCORED = np.array([[0.9, 0.1], [0.4, 0.6], [0.65, 0.35], [0.2, 0.8], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 0.5),  # rows 0 and 3
        ("roc_auc", 0.75),  # of four pairs, (0.6, 0.35) is the wrong way round
        ("log_loss", -np.log([0.9, 0.4, 0.35, 0.8]).mean()),
        ("f1", 0.5),
        ("balanced_accuracy", 0.5),
    ],
)
def test_hand_computed_values_and_missing_labels_do_not_count(name: str, expected: float) -> None:
    assert measure(name, TRUTH, SCORED) == pytest.approx(expected)


def test_numbers_are_scored_in_their_own_unit() -> None:
    truth, scored = np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.0, 2.0, 5.0, 0.0])
    assert measure("mae", truth, scored) == pytest.approx(2 / 3)
    assert measure("rmse", truth, scored) == pytest.approx(np.sqrt(4 / 3))
    assert measure("r2", truth, scored) == pytest.approx(1 - 4 / 2)


def test_every_metric_that_a_task_names_exists() -> None:
    for spec in TASKS.kinds().values():
        assert set(TASKS.class_of(spec).metrics) <= set(METRICS)


def test_no_label_or_one_class_is_nan_not_an_error() -> None:
    assert np.isnan(measure("accuracy", np.array([-1]), SCORED[:1]))
    assert np.isnan(measure("roc_auc", np.array([1, 1]), SCORED[:2]))
    assert np.isnan(interval("roc_auc", np.array([1, 1]), SCORED[:2])).all()


def test_weights_count_like_repeated_rows() -> None:
    weights = np.array([1.0, 2.0, 1.0, 1.0, 1.0])
    again = [0, 1, 1, 2, 3, 4]
    for name in ("accuracy", "roc_auc", "log_loss", "f1", "average_precision"):
        assert measure(name, TRUTH, SCORED, weights) == pytest.approx(measure(name, TRUTH[again], SCORED[again]))


def test_a_paired_interval_is_positive_where_the_first_is_better_whichever_way_the_metric_points() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=400)
    good, bad = truth + rng.normal(0, 0.1, 400), truth + rng.normal(0, 1.0, 400)
    for name in ("rmse", "r2"):
        low, high = paired_intervals(name, truth, good, bad)[1]
        assert 0 < low < high
        low, high = paired_intervals(name, truth, bad, good)[1]
        assert low < high < 0
    assert paired_intervals("rmse", truth, good, good)[1] == (0.0, 0.0)


def test_draws_at_once_are_what_scikit_learn_says_of_each() -> None:
    rng = np.random.default_rng(2)
    labels, numbers = rng.integers(0, 2, 80), rng.normal(50, 3, 80)
    scored = rng.random((80, 2)).round(1) + 0.01  # rounded, so that there are ties
    scored /= scored.sum(1, keepdims=True)
    rows = rng.integers(0, 80, size=(7, 80))
    counts = np.stack([np.bincount(r, minlength=80) for r in rows]).astype(float)
    for name, metric in METRICS.items():
        if metric.resample is None:
            continue
        truth, said = (numbers, numbers + rng.normal(size=80)) if name in ("r2", "rmse", "mae") else (labels, scored)
        expected = [metric.score(truth[r], said[r], None) for r in rows]
        np.testing.assert_allclose(metric.resample(truth, said, counts), expected, rtol=1e-9)


def test_an_interval_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(60):
        labels = rng.integers(0, 2, 200)
        right = rng.random(200) < 0.8
        scored = np.eye(2)[np.where(right, labels, 1 - labels)]
        low, high = interval("accuracy", labels, scored, seed=seed)
        hits += low <= 0.8 <= high
    assert hits >= 52  # 95 % of 60 is 57; five fewer is a one-in-a-hundred draw
