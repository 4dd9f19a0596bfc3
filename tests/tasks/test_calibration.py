"""What is learned of out-of-fold answers: exact quantiles, known temperatures, thresholds counted by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtl_bento.errors import SpecError
from mtl_bento.tasks._base import TASKS
from mtl_bento.tasks._calibration import best_temperature, best_threshold, conformal_quantile, fewest, tempered
from mtl_bento.tasks.binary import Binary, BinarySpec
from mtl_bento.tasks.multiclass import Multiclass, MulticlassSpec
from mtl_bento.tasks.regression import Regression, RegressionSpec

HOURS = Regression(RegressionSpec(name="hours", mean=40.0, spread=10.0))
YES = Binary(BinarySpec(name="y", levels=("no", "yes"), frequencies=(0.5, 0.5)))
KIND = Multiclass(MulticlassSpec(name="kind", levels=(1, 2, 3), dtype="int8"))


def quantile(scores: Any, level: float, weights: Any = None) -> float | None:
    held = np.array(scores, dtype=np.float64)
    return conformal_quantile(held, level, np.ones(len(held)) if weights is None else np.array(weights, np.float64))


def column(cells: pa.Array) -> pa.ChunkedArray:
    return pa.chunked_array([cells])


def coin_tosses(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities [n, 2] of tosses, and the tosses [n]: calibrated by construction."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(0, 1.5, n)))
    return np.stack([1 - p, p], 1), (rng.random(n) < p).astype(np.int64)


# Intervals and sets


@pytest.mark.parametrize(
    ("n", "level", "place"),
    [
        (19, 0.9, 18),  # ceil(20 x .9)
        (20, 0.9, 19),  # ceil(18.9)
        (10, 0.9, 10),  # ceil(9.9)
        (99, 0.95, 95),
        (5, 0.8, 5),  # ceil(4.8)
        (199, 0.8, 160),
        (9, 0.9, None),  # fewer than 1 / (1 - .9)
        (4, 0.8, None),
        (0, 0.9, None),
    ],
)
def test_the_quantile_is_the_score_of_the_place_that_finite_samples_need(
    n: int, level: float, place: int | None
) -> None:
    scores = np.random.default_rng(0).permutation(n) + 1.0
    assert quantile(scores, level) == place


def test_rows_needed_are_one_over_alpha_rounded_up() -> None:
    assert [fewest(level) for level in (0.9, 0.8, 0.95, 0.99, 0.5, 0.7)] == [10, 5, 20, 100, 2, 4]


def test_row_weights_count_whatever_their_scale() -> None:
    # A new row weighs (1 + 1 + 1 + 9) / 6 = 2, so half of 8 is needed; 1 + 1 + 1 falls short of it.
    assert quantile([1, 2, 3, 4], 0.5, [1, 1, 1, 3]) == 4
    assert quantile([1, 2, 3, 4], 0.5, [3, 1, 1, 1]) == 2  # 3 + 1 reach it
    assert quantile([1, 2, 3, 4], 0.5, [0.3, 0.1, 0.1, 0.1]) == 2
    scores = np.random.default_rng(1).random(50)
    assert quantile(scores, 0.9, [7.0] * 50) == quantile(scores, 0.9)


def test_rows_of_very_unlike_weights_count_as_fewer() -> None:
    # (9 x .01 + 1)^2 / (9 x .0001 + 1) is 1.19 rows: too few for .9, which 10 alike suffice for.
    assert quantile(np.arange(10), 0.9, [0.01] * 9 + [1.0]) is None


def test_intervals_hold_new_rows_as_often_as_they_say() -> None:
    # The expected coverage of split conformal intervals from 19 rows at .9 is exactly 18 / 20; the standard deviation
    # of one set's is that of Beta(18, 2), .065, so .0015 of the mean over 2,000 sets.
    rng = np.random.default_rng(0)
    covered = []
    for residuals in rng.standard_normal((2_000, 19 + 50)):
        task = HOURS.calibrate(np.zeros((19, 1), np.float32), torch.from_numpy(residuals[:19]).float())
        assert task.spec.half_width is not None
        covered.append(np.mean(10 * np.abs(residuals[19:]) <= task.spec.half_width))
    assert np.mean(covered) == pytest.approx(0.9, abs=0.005)


def test_a_number_answers_with_the_ends_of_its_interval() -> None:
    # Ten residuals .1 to 1.0 of a spread of 10: the tenth, 10 hours.
    targets = torch.arange(1, 11) / 10
    task = HOURS.calibrate(np.zeros((10, 1), np.float32), targets)
    assert task.spec.half_width == pytest.approx(10)
    answers = np.array([[0.0], [-1.0]], np.float32)
    assert task.rows(answers) == [
        {"value": 40, "lower": 30, "upper": 50},
        {"value": 30, "lower": 20, "upper": 40},
    ]
    columns = task.columns(answers)
    assert {name: cells.to_pylist() for name, cells in columns.items()} == {
        "lower": pytest.approx([30, 20]),
        "upper": pytest.approx([50, 40]),
    }
    held = task.covered({f"hours__{k}": column(v) for k, v in columns.items()}, np.array([49.0, 41.0]))
    assert held is not None
    assert (held.level, held.held.tolist(), held.size.tolist()) == (0.9, [True, False], pytest.approx([20, 20]))
    assert task.values(answers).to_pylist() == HOURS.values(answers).to_pylist()


def test_the_level_of_an_interval_is_the_users() -> None:
    spec = TASKS.parse({"kind": "regression", "name": "hours", "interval": 0.8})
    task = Regression(spec).calibrate(np.zeros((5, 1), np.float32), torch.arange(1.0, 6.0))
    assert task.spec.half_width == 5  # ceil(6 x .8) = 5


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("level", [0, 1, 1.5, -0.1, True])
def test_a_level_that_is_no_share_is_refused_in_one_line(kind: str, level: Any) -> None:
    with pytest.raises(SpecError) as caught:
        TASKS.parse({"kind": kind, "name": "y", "interval": level})
    shown = f"task kind {kind!r}: interval: {float(level):g} is no share of the rows of target 'y'; "
    assert str(caught.value) == f"{shown}give a number between 0 and 1, such as 0.9 for nine rows in ten."


def test_too_few_rows_give_no_interval_and_the_card_says_so() -> None:
    targets = torch.tensor([0.1] * 9 + [float("nan")])
    task = HOURS.calibrate(np.zeros((10, 1), np.float32), targets)
    assert task.spec.half_width is None
    assert task.rows(np.zeros((1, 1), np.float32)) == [{"value": 40}]
    assert task.columns(np.zeros((1, 1), np.float32)) == {}
    assert task.card()["calibration"] == ["no interval: 9 labelled out-of-fold rows, and 0.9 needs 10 or more"]
    p = np.full((4, 1), 0.5, np.float32)
    assert YES.calibrate(p, torch.tensor([0, 1, 1, -1])).notes() == [
        "no prediction sets: 3 labelled out-of-fold rows, and 0.9 needs 10 or more"
    ]
    assert "calibration" not in HOURS.card()


def test_a_set_has_the_labels_likely_enough_and_always_the_value() -> None:
    task = KIND.with_spec(set_threshold=0.25)
    answers = np.array([[0.7, 0.25, 0.05], [0.1, 0.45, 0.45], [0.24, 0.24, 0.52]], np.float32)
    assert [row["set"] for row in task.rows(answers)] == [[1, 2], [2, 3], [3]]
    sure = KIND.with_spec(set_threshold=0.9)
    assert [row["set"] for row in sure.rows(answers)] == [[1], [2], [3]]
    sets = task.columns(answers)["set"]
    assert sets.type == pa.list_(pa.int8())
    held = task.covered({"kind__set": column(sets)}, np.array([1, 0, 2]))
    assert held is not None
    assert (held.held.tolist(), held.size.tolist()) == ([True, False, True], [2, 2, 1])
    assert task.rows(answers[:0]) == []
    assert len(task.columns(answers[:0])["set"]) == 0


def test_sets_hold_new_rows_as_often_as_they_say() -> None:
    table, tosses = coin_tosses(60_000)
    rng = np.random.default_rng(1)
    noise = table[:, 1] + rng.normal(0, 0.2, len(table))  # sure of itself where it should not be
    answers = noise.clip(0.01, 0.99).astype(np.float32)[:, None]
    task = YES.calibrate(answers[:20_000], torch.from_numpy(tosses[:20_000]))
    columns = {f"y__{k}": column(v) for k, v in task.columns(answers[20_000:]).items()}
    held = task.covered(columns, tosses[20_000:])
    assert held is not None
    # Two standard errors of 40,000 rows and of a bound from 20,000 are .005.
    assert held.held.mean() == pytest.approx(0.9, abs=0.005)
    assert 1 < held.size.mean() < 2


# Temperatures


def test_probabilities_that_are_right_keep_their_temperature() -> None:
    table, tosses = coin_tosses(4_000)
    assert best_temperature(table, tosses, np.ones(4_000)) is None


@pytest.mark.parametrize("truth", [0.5, 2.0, 3.0])
def test_a_known_temperature_is_found(truth: float) -> None:
    table, tosses = coin_tosses(20_000)
    found = best_temperature(tempered(table, 1 / truth), tosses, np.ones(20_000))
    assert found == pytest.approx(truth, rel=0.05)


def test_the_temperature_is_where_the_slope_of_the_loss_is_zero() -> None:
    table, tosses = coin_tosses(3_000, seed=2)
    sharp, weights = tempered(table, 1 / 3), np.random.default_rng(0).random(3_000)
    found = best_temperature(sharp, tosses, weights)
    assert found is not None

    def loss(temperature: float) -> float:
        return float(-weights @ np.log(tempered(sharp, temperature)[np.arange(3_000), tosses]))

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))


def test_tempered_probabilities_of_two_labels_are_those_of_the_divided_logit() -> None:
    # The logit of .8 is log 4, half of it log 2: 2 / 3.
    assert tempered(np.array([[0.2, 0.8]]), 2.0).tolist() == [pytest.approx([1 / 3, 2 / 3])]


def test_rows_without_weight_teach_no_temperature() -> None:
    table, tosses = coin_tosses(4_000)
    sharp = tempered(table, 1 / 3)[:, 1:].astype(np.float32)
    weights = np.where(np.arange(4_000) < 2_000, 1.0, 0.0)
    alone = YES.calibrate(sharp[:2_000], torch.from_numpy(tosses[:2_000]))
    assert alone.spec.temperature == pytest.approx(3, rel=0.2)
    upside_down = np.concatenate([tosses[:2_000], 1 - tosses[2_000:]])
    assert YES.calibrate(sharp, torch.from_numpy(upside_down), weights).spec == alone.spec


def test_a_temperature_is_in_every_answer_but_in_no_loss() -> None:
    task = YES.with_spec(temperature=2.0)
    answers = np.array([[0.8]], np.float32)
    (row,) = task.rows(answers)
    assert row == {
        "value": "yes",
        "probability": pytest.approx(2 / 3),
        "probabilities": {"no": pytest.approx(1 / 3), "yes": pytest.approx(2 / 3)},
    }
    assert task.scored(answers)[0].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert task.columns(answers)["proba__yes"].to_pylist() == pytest.approx([2 / 3])
    assert task.answer_losses(torch.tensor([[0.8]]), torch.tensor([1])).tolist() == pytest.approx([-np.log(0.8)])


# Thresholds


def test_the_threshold_is_where_f1_is_highest() -> None:
    # Ten positives at .4, one negative at .3, ten positives at .2, 300 negatives at .1. From .4 on F1 is
    # 2 x 10 / (10 + 20) = .67; from .3 on 20 / 31; from .2 on 2 x 20 / (21 + 20) = .98; below, 40 / 341.
    p = np.repeat([0.4, 0.3, 0.2, 0.1], [10, 1, 10, 300])
    positive = np.repeat([True, False, True, False], [10, 1, 10, 300])
    assert best_threshold(p, positive, np.ones(321)) == pytest.approx(0.15)
    # Were the negative of .3 worth 30 rows, F1 would be 40 / 70 from .2 on: less than from .4 on.
    weights = np.where(np.arange(321) == 10, 30.0, 1.0)
    assert best_threshold(p, positive, weights) == pytest.approx(0.35)
    shuffled = np.random.default_rng(0).permutation(321)
    assert best_threshold(p[shuffled], positive[shuffled], np.ones(321)) == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "p"),
    [
        (9, 400, 0.3),  # fewer than ten
        (40, 360, 0.3),  # a tenth of the rows
        (20, 400, 0.7),  # found from one half on
    ],
)
def test_there_is_no_threshold_without_rare_positives_that_one_half_misses(
    n_positive: int, n_negative: int, p: float
) -> None:
    answers = np.repeat([p, 0.1], [n_positive, n_negative])
    assert best_threshold(answers, answers > 0.2, np.ones(len(answers))) is None


def test_a_rare_positive_is_answered_from_the_threshold_on_with_its_own_probability() -> None:
    p = np.repeat([0.4, 0.1], [20, 400]).astype(np.float32)[:, None]
    targets = torch.from_numpy(np.repeat([1, 0], [20, 400]))
    task = YES.with_spec(metric="f1").calibrate(p, targets)
    threshold = task.spec.threshold
    assert threshold is not None
    rare, common = task.rows(p[[0, -1]])
    assert (rare["value"], common["value"]) == ("yes", "no")
    assert rare["probability"] == rare["probabilities"]["yes"] >= threshold
    assert common["probability"] == common["probabilities"]["no"]
    assert task.values(p[[0, -1]]).to_pylist() == ["yes", "no"]
    assert task.decided(task.scored(p[[0, -1]])).tolist() == [[0, 1], [1, 0]]
    assert task.edges()["value"] == threshold
    assert task.card()["threshold"] == threshold
    assert "'yes' is answered from probability" in task.card()["calibration"][-1]
    # One half is best by accuracy.
    assert YES.with_spec(metric="accuracy").calibrate(p, targets).spec.threshold is None


def test_what_was_learned_survives_json_and_a_new_fit_forgets_it() -> None:
    spec = YES.with_spec(temperature=1.5, set_threshold=0.2, threshold=0.3, calibrated_on=50).spec
    assert TASKS.parse(json.loads(spec.model_dump_json())) == spec
    again = Binary.fit(spec, column(pa.array(["no", "yes"])))
    assert (again.temperature, again.set_threshold, again.threshold, again.calibrated_on) == (None,) * 4
    hours = HOURS.with_spec(half_width=3.0, calibrated_on=50).spec
    assert Regression.fit(hours, column(pa.array([1.0, 2.0]))).half_width is None
