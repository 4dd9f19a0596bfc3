"""Metrics by name on hand-made cases, and their bootstrap intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mtl_bento.tasks._base import TASKS
from mtl_bento.tasks.tagging import Entity, Tagged
from mtl_bento_search.metrics import METRICS, compared, interval, measure

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
        low, high = compared(name, truth, good, [bad])[1][0].interval
        assert 0 < low < high
        low, high = compared(name, truth, bad, [good])[1][0].interval
        assert low < high < 0
    assert compared("rmse", truth, good, [good])[1][0].interval == (0.0, 0.0)


def answers_of(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and answers in the form that a metric reads, with ties."""
    rng = np.random.default_rng(2)
    if name in ("r2", "rmse", "mae"):
        numbers = rng.normal(50, 3, n)
        return numbers, numbers + rng.normal(size=n)
    if name in ("mean_iou", "iou_50", "object_average_precision"):
        truth = np.concatenate([rng.integers(0, 2, (n, 1)), rng.random((n, 4))], 1)
        truth[truth[:, 0] == 0, 1:] = np.nan
        return truth, rng.random((n, 5)).round(1)
    if name in ("mean_cell_iou", "cell_accuracy"):
        return rng.integers(-1, 3, (n, 6)), rng.random((n, 6, 3)).round(1)
    if name in ("entity_f1", "token_accuracy"):
        return tuple(tagged(rng.choice(["O", "B-a", "B-b"], (n, 4))) for _ in range(2))  # type: ignore[return-value]
    scored = rng.random((n, 2)).round(1) + 0.01
    return rng.integers(0, 2, n), scored / scored.sum(1, keepdims=True)


def tagged(rows: Any) -> np.ndarray:
    """Return texts of one-letter words as metrics read them; each tag that is no O is a span."""
    held = np.empty(len(rows), dtype=object)
    for row, tags in enumerate(rows):
        entities = frozenset(Entity(tag[2:], 2 * i, 2 * i + 1) for i, tag in enumerate(tags) if tag != "O")
        held[row] = Tagged(entities, tuple(tags))
    return held


@pytest.mark.parametrize("name", METRICS)
def test_draws_at_once_are_the_score_of_each(name: str) -> None:
    truth, said = answers_of(name, 80)
    rows = np.random.default_rng(3).integers(0, 80, size=(7, 80))
    counts = np.stack([np.bincount(r, minlength=80) for r in rows]).astype(float)
    metric = METRICS[name]
    expected = [metric.score(truth[r], said[r], None) for r in rows]
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(metric.resample(truth, said)(counts), expected, rtol=1e-9)


def test_average_precision_is_scikit_learns_also_with_ties_and_weights() -> None:
    rng = np.random.default_rng(4)
    truth, p, weights = rng.integers(0, 2, 300), rng.random(300).round(1), rng.random(300)
    expected = average_precision_score(truth, p, sample_weight=weights)
    assert measure("average_precision", truth, np.stack([1 - p, p], 1), weights) == pytest.approx(expected)


def test_average_precision_of_grids_is_that_of_all_known_cells_a_row_weighing_all_its_cells() -> None:
    rng = np.random.default_rng(5)
    truth, p = rng.integers(-1, 2, (40, 12)), rng.random((40, 12)).round(2)
    weights = rng.random(40)
    held = truth >= 0
    expected = average_precision_score(truth[held], p[held], sample_weight=np.repeat(weights, 12)[held.ravel()])
    assert measure("average_precision", truth, np.stack([1 - p, p], -1), weights) == pytest.approx(expected)


def test_average_precision_of_several_classes_is_the_mean_over_those_that_are_there() -> None:
    truth = np.array([[0, 0, 1], [1, -1, -1]])  # class 2 is nowhere
    table = np.array([[[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.5, 0.3]], [[0.1, 0.7, 0.2]] * 3])
    # Class 0: right, right at the top: 1. Class 1: .7 right, .6 wrong, .5 right: (1 + 2/3) / 2.
    assert measure("average_precision", truth, table) == pytest.approx((1 + 5 / 6) / 2)


def test_boxes_are_scored_where_there_is_an_object_and_objects_where_it_is_known() -> None:
    nan = [np.nan] * 4
    truth = np.array([[1, 0.5, 0.5, 0.4, 0.4], [1, 0.2, 0.2, 0.2, 0.2], [0, *nan], [np.nan, *nan]])
    answers = np.array([[0.9, 0.5, 0.5, 0.4, 0.4], [0.6, 0.3, 0.2, 0.2, 0.2], [0.7, 0.5, 0.5, 1, 1], [1.0, 0, 0, 1, 1]])
    # The second is moved by half its width: 0.02 in common of 0.08 - 0.02.
    assert measure("mean_iou", truth, answers) == pytest.approx((1 + 1 / 3) / 2)
    assert measure("iou_50", truth, answers) == 0.5
    # By probability: object, none, object.
    assert measure("object_average_precision", truth, answers) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(measure("mean_iou", truth[2:], answers[2:]))


def test_cells_are_scored_by_class_over_all_rows_and_unknown_ones_do_not_count() -> None:
    truth = np.array([[0, 1, 1, -1], [1, 0, 0, 0]])
    answer = np.array([[0, 1, 0, 1], [1, 0, 0, 1]])
    # Class 0: 3 of 0,0,0,0 + one wrong 0 = 3 / 5; class 1: 2 of 1,1,1 + one wrong 1 = 2 / 4.
    assert measure("mean_cell_iou", truth, np.eye(2)[answer]) == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert measure("cell_accuracy", truth, np.eye(2)[answer]) == pytest.approx(5 / 7)


def test_spans_count_where_label_and_both_ends_are_right() -> None:
    def one(*entities: Entity, tags: str) -> Tagged:
        return Tagged(frozenset(entities), tuple(tags.split()))

    truth = np.empty(4, dtype=object)
    said = np.empty(4, dtype=object)
    truth[0] = one(Entity("a", 0, 3), Entity("b", 4, 9), tags="B-a B-b I-b")
    said[0] = one(Entity("a", 0, 3), Entity("b", 4, 7), tags="B-a B-b O")  # one right, one too short
    truth[1] = one(Entity("a", 2, 3), tags="O B-a")
    said[1] = one(Entity("b", 2, 3), tags="O B-b")  # the wrong label
    truth[2] = one(tags="O")
    said[2] = one(Entity("a", 0, 1), tags="B-a")  # one too many
    said[3] = one(Entity("a", 0, 1), tags="B-a")  # not labelled
    # seqeval's strict micro average: 1 right, 3 in the truth, 4 in the answers.
    assert measure("entity_f1", truth, said) == pytest.approx(2 * 1 / (3 + 4))
    assert measure("token_accuracy", truth, said) == pytest.approx(3 / 6)
    weights = np.array([2.0, 1.0, 1.0, 1.0])
    assert measure("entity_f1", truth, said, weights) == pytest.approx(2 * 2 / (5 + 6))
    assert np.isnan(measure("entity_f1", truth[3:], said[3:]))


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
