"""What the test rows say: verdicts against planted opponents, Holm's correction, and rows that can say nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import ttest_rel

from mtl_bento.tasks._base import TASKS, Task
from mtl_bento.tasks.binary import Binary, BinarySpec
from mtl_bento.tasks.regression import Regression, RegressionSpec
from mtl_bento_search import metrics
from mtl_bento_search.metrics import Difference, compared
from mtl_bento_search.trivial import constant_answer
from mtl_bento_search.verdict import holm, names, verdicts

OURS = {"trial 1": 1.0}


def binary(name: str = "a", metric: str = "accuracy") -> Task[Any]:
    return Binary(BinarySpec.model_validate({"name": name, "metric": metric, "levels": ["no", "yes"]}))


def right_on(truth: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Answers [B, 1] of probability .9, right where it says so."""
    return np.where((truth == 1) == right, 0.9, 0.1).astype(np.float32)[:, None]


def told(truths: Sequence[np.ndarray], tasks: Sequence[Task[Any]], **arms: Sequence[np.ndarray | None]) -> Any:
    """The records of arms each served by itself."""
    served = {arm: [OURS if arm == "ours" else {arm: 1.0}] * len(tasks) for arm in arms}
    return verdicts(tasks, truths, arms, served_by=served)


# -- Holm -----------------------------------------------------------------------------------------------------------


def test_holm_multiplies_the_smallest_by_their_number_and_never_falls() -> None:
    # .01 * 4; .03 * 2 = .06 below .02 * 3 = .06; .04 * 1 raised to .06. R: p.adjust(c(.01, .04, .03, .02), "holm")
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    # R: p.adjust(c(.005, .011, .02, .04, .13), "holm")
    assert holm([0.13, 0.005, 0.04, 0.011, 0.02]) == pytest.approx([0.13, 0.025, 0.08, 0.044, 0.06])


def test_holm_passes_over_what_was_not_compared_and_stops_at_one() -> None:
    corrected = holm([0.02, math.nan, 0.7, 0.9])
    assert corrected[0] == pytest.approx(0.06)
    assert math.isnan(corrected[1])
    assert corrected[2:] == [1.0, 1.0]
    assert holm([]) == []


# -- p-values -------------------------------------------------------------------------------------------------------


def test_a_p_value_of_a_mean_is_nearly_that_of_the_paired_t_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 4000)
    rng = np.random.default_rng(0)
    truth = rng.normal(size=60)
    ours, other = truth + rng.normal(0, 1, 60), truth + rng.normal(0, 1.3, 60)
    _, (found,) = compared("mae", truth, ours, [other])
    expected = ttest_rel(np.abs(truth - other), np.abs(truth - ours))
    assert found.difference == pytest.approx(np.abs(truth - other).mean() - np.abs(truth - ours).mean())
    assert found.p == pytest.approx(expected.pvalue, rel=0.1)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=0.02)


def test_several_opponents_meet_the_same_draws_as_each_alone() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 200)
    answers = [rng.dirichlet([1, 1], 200) for _ in range(3)]
    own, both = compared("roc_auc", truth, answers[0], answers[1:])
    for other, found in zip(answers[1:], both, strict=True):
        assert compared("roc_auc", truth, answers[0], [other]) == (own, [found])


def test_the_smallest_difference_shown_is_where_the_p_value_is_the_level() -> None:
    for level in (0.05, 0.01):
        smallest = Difference(0.0, 0.02, 50).shown_from(level)
        assert Difference(smallest, 0.02, 50).p == pytest.approx(level)
    assert Difference(0.0, 0.02, 10**6).shown_from(0.05) == pytest.approx(1.96 * 0.02, rel=1e-4)


def test_few_rows_that_all_agree_are_no_proof() -> None:
    # The chance that 4 fair coins agree is 2 / 2^4.
    assert Difference(1.0, 0.0, 4).p == 0.125
    assert math.isnan(Difference(1.0, 0.0, 4).shown_from(0.05))
    assert Difference(1.0, 0.0, 12).p == 2**-11


def test_five_positives_are_five_rows_however_many_negatives_there_are() -> None:
    # Two answers that are as good as each other: of 400 tests of them 1 % may say at 1 % that one is better, give or
    # take .5 %. By the degrees of freedom of all 200 rows it was 2.7 %.
    rng = np.random.default_rng(0)
    truth = (np.arange(200) < 5).astype(int)
    wrong = 0
    for _ in range(400):
        seen = truth + rng.normal(size=200)
        ours, other = (np.stack([-s, s], 1) for s in (seen + rng.normal(0, 0.5, 200), seen + rng.normal(0, 0.5, 200)))
        _, (found,) = compared("roc_auc", truth, ours, [other])
        assert found.n == 5
        wrong += found.p < 0.01
    assert wrong / 400 <= 0.015


def test_one_positive_shows_nothing() -> None:
    truth = (np.arange(50) < 1).astype(int)
    ours, other = (np.stack([1 - p, p], 1) for p in (np.linspace(1, 0, 50), np.linspace(0, 1, 50)))
    _, (found,) = compared("roc_auc", truth, ours, [other])
    assert (found.difference, math.isnan(found.p)) == (1.0, True)


def test_answers_that_differ_on_no_label_of_few_rows_are_no_tie() -> None:
    truth = np.arange(12) % 2
    ours, other = right_on(truth, np.arange(12) > 2), right_on(truth, np.arange(12) > 2) * 0.8 + 0.1
    (record,) = told([truth], [binary("accuracy")], ours=[ours], single_task=[other])
    held = record["against"]["single_task"]
    # One row might have differed: 1 / 12, by Student's t of 11 degrees of freedom.
    assert (held["verdict"], held["difference"]) == ("inconclusive", 0.0)
    assert (held["lower"], held["upper"]) == pytest.approx((-2.201 / 12, 2.201 / 12), abs=1e-4)
    # The answers themselves, by whoever: nothing can differ.
    (record,) = told([truth], [binary("accuracy")], ours=[ours], single_task=[ours])
    assert record["against"]["single_task"]["verdict"] == "tie"


def test_draws_that_are_too_many_to_hold_are_fewer_and_give_the_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, 5000)
    scored, other = (np.eye(2)[np.where(rng.random(5000) < share, truth, 1 - truth)] for share in (0.8, 0.7))
    monkeypatch.setattr(metrics, "HELD", 5000 * 100)
    own, (found,) = compared("accuracy", truth, scored, [other])
    # Of a share p the error is sqrt(p (1 - p) / n); two independent ones add up. 100 draws know it to 7 %.
    assert found.error == pytest.approx(math.sqrt((0.16 + 0.21) / 5000), rel=0.25)
    assert own[1] - own[0] == pytest.approx(2 * 1.96 * math.sqrt(0.16 / 5000), rel=0.25)


# -- verdicts -------------------------------------------------------------------------------------------------------


def test_planted_differences_are_found_in_their_direction_and_unlike_opponents_are_told_apart() -> None:
    truth = np.arange(400) % 2
    rows = np.arange(400)
    # Right on 90 %, 80 % and 95 % of the rows, one a part of the other.
    ours, weak, strong = (right_on(truth, rows % 20 < share) for share in (18, 16, 19))
    (record,) = told([truth], [binary()], ours=[ours], single_task=[weak], trees=[strong])
    assert record["values"] == pytest.approx({"ours": 0.9, "single_task": 0.8, "trees": 0.95})
    assert list(record["against"]) == ["single_task", "trees"]
    better, worse = record["against"]["single_task"], record["against"]["trees"]
    assert (better["verdict"], worse["verdict"]) == ("better", "worse")
    assert better["difference"] == pytest.approx(0.1)
    assert worse["difference"] == pytest.approx(-0.05)
    # The error of a mean of 400 numbers of which a share of .1 is 1, the rest 0: sqrt(.09 / 400) = .015.
    assert (better["lower"], better["upper"]) == pytest.approx((0.1 - 1.96 * 0.015, 0.1 + 1.96 * 0.015), abs=0.006)
    assert worse["upper"] < 0
    assert math.isnan(better["smallest"])


def test_lower_is_better_where_the_metric_says_so() -> None:
    task = Regression(RegressionSpec(name="a", metric="rmse", mean=0.0, spread=1.0))
    truth = np.random.default_rng(3).normal(size=300)
    noise = np.random.default_rng(4).normal(size=300)
    near, far = ((truth + noise * size).astype(np.float32)[:, None] for size in (0.1, 0.5))
    (record,) = told([truth], [task], ours=[near], single_task=[far])
    assert record["higher_is_better"] is False
    assert record["against"]["single_task"]["verdict"] == "better"
    assert record["against"]["single_task"]["difference"] == pytest.approx(
        record["values"]["single_task"] - record["ours"]
    )


def test_equal_answers_of_other_networks_are_a_tie_and_of_the_same_ones_the_same() -> None:
    truth = np.arange(50) % 2
    answers = right_on(truth, np.arange(50) % 5 > 0)
    (record,) = told([truth], [binary()], ours=[answers], single_task=[answers])
    against = record["against"]["single_task"]
    assert (against["verdict"], against["difference"], against["lower"], against["upper"]) == ("tie", 0.0, 0.0, 0.0)
    arms = {"ours": [answers], "single_task": [answers + 1e-7]}  # the same mixed in another order
    (record,) = verdicts([binary()], [truth], arms, served_by={"ours": [{"x": 1.0}], "single_task": [{"x": 1.0}]})
    against = record["against"]["single_task"]
    assert (against["verdict"], against["difference"], against["lower"], against["upper"]) == ("same", 0.0, 0.0, 0.0)
    assert math.isnan(against["p"])


@pytest.mark.parametrize(("n", "wrong", "word"), [(400, 40, "inconclusive"), (40_000, 400, "tie")])
def test_alike_models_tie_on_many_rows_and_are_inconclusive_on_few(n: int, wrong: int, word: str) -> None:
    rows = np.arange(n)
    truth = rows % 2
    ours, other = right_on(truth, rows >= wrong), right_on(truth, (rows < wrong) | (rows >= 2 * wrong))
    against = told([truth], [binary()], ours=[ours], single_task=[other])[0]["against"]["single_task"]
    assert against["difference"] == pytest.approx(0)
    # 2 * wrong rows differ by 1: the error is sqrt(2 * wrong) / n, .022 and .0007; 1 % of the other's figure is .009.
    half = 1.96 * math.sqrt(2 * wrong) / n
    assert (against["lower"], against["upper"]) == pytest.approx((-half, half), rel=0.15)
    assert against["verdict"] == word
    # With one task the level is .05: what would just have been shown is half of the interval.
    assert against["smallest"] == pytest.approx(against["upper"] if word == "inconclusive" else math.nan, nan_ok=True)


def test_many_tasks_ask_more_of_each_and_of_each_opponent_by_itself() -> None:
    """A difference with a p-value of about .03 is shown alone, but not as the best of 12."""
    rows = np.arange(200)
    truth = rows % 2
    ours, other = np.ones(200, bool), np.ones(200, bool)
    ours[:3], other[3:14] = False, False  # 11 rows in our favour, 3 not: 8 / sqrt(14) = 2.1 errors
    mine, theirs = right_on(truth, ours), right_on(truth, other)
    alone = told([truth], [binary()], ours=[mine], single_task=[theirs])[0]["against"]["single_task"]
    assert alone["verdict"] == "better"
    assert 0.01 < alone["p"] < 0.05
    tasks = [binary(f"t{t}") for t in range(12)]
    even = np.ones(200, bool)
    even[20:23] = False
    level = right_on(truth, even)
    answers: list[np.ndarray | None] = [mine] * 12
    many = told([truth] * 12, tasks, ours=answers, single_task=[theirs, *[level] * 11], trees=[theirs, *[None] * 11])
    first = many[0]["against"]
    assert first["single_task"]["verdict"] == "inconclusive"
    assert first["single_task"]["p"] == alone["p"]
    assert first["single_task"]["p_corrected"] == pytest.approx(12 * alone["p"])
    assert abs(first["single_task"]["difference"]) < first["single_task"]["smallest"]
    assert first["trees"]["verdict"] == "better"
    assert all("trees" not in record["against"] for record in many[1:])


# -- rows that can say nothing --------------------------------------------------------------------------------------


def test_one_class_in_the_test_is_not_measurable_and_corrects_no_other_task() -> None:
    truth = np.arange(200) % 2
    rows = np.arange(200)
    ours, weak = (right_on(truth, rows % 20 < share) for share in (19, 12))
    tasks = [binary("a", "roc_auc"), binary("b", "roc_auc")]
    one, two = told([np.ones(200, int), truth], tasks, ours=[ours, ours], single_task=[weak, weak])
    assert math.isnan(one["ours"])
    assert math.isnan(one["against"]["single_task"]["difference"])
    assert one["against"]["single_task"]["verdict"] == "not measurable"
    assert two["against"]["single_task"]["verdict"] == "better"
    assert two["against"]["single_task"]["p_corrected"] == two["against"]["single_task"]["p"]


def test_one_test_row_has_figures_and_shows_nothing() -> None:
    truth = np.array([1])
    (record,) = told([truth], [binary()], ours=[right_on(truth, truth == 1)], single_task=[right_on(truth, truth == 0)])
    against = record["against"]["single_task"]
    assert (record["ours"], against["value"], against["difference"], record["n_test"]) == (1.0, 0.0, 1.0, 1)
    assert against["verdict"] == "inconclusive"
    assert all(math.isnan(against[key]) for key in ("lower", "upper", "p", "smallest"))


@pytest.mark.parametrize("truth", [np.empty(0, int), np.array([-1, -1])])
def test_no_labelled_test_row_is_not_measurable(truth: np.ndarray) -> None:
    answers = np.full((len(truth), 1), 0.5, np.float32)
    (record,) = told([truth], [binary()], ours=[answers], single_task=[answers])
    assert record["n_test"] == 0
    assert math.isnan(record["ours"])
    assert record["against"]["single_task"]["verdict"] == "not measurable"


def test_rows_without_weight_do_not_count() -> None:
    truth = np.arange(100) % 2
    weights = np.zeros(100)
    weights[0] = 3.0
    arms = {"ours": [right_on(truth, truth >= 0)], "single_task": [right_on(truth, truth < 0)]}
    served = {"ours": [OURS], "single_task": [{"x": 1.0}]}
    (record,) = verdicts([binary()], [truth], arms, served_by=served, weights=weights)
    assert record["against"]["single_task"]["verdict"] == "inconclusive"


# -- who serves, and what learned nothing ---------------------------------------------------------------------------


def test_who_serves_is_said_with_shares_where_there_are_several() -> None:
    assert names({"trial 8": 1.0}) == "trial 8"
    assert names({"single-task a": 0.25, "trial 8": 0.75}) == "trial 8 (75 %), single-task a (25 %)"


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        ("binary", ["no"] * 3 + ["yes"], [0.25]),
        ("multiclass", ["x", "x", "y", "z"], [0.5, 0.25, 0.25]),
        ("regression", [1.0, 2.0, 3.0, 6.0], [0.0]),  # the mean, standardised
    ],
)
def test_what_learned_nothing_answers_the_shares_or_the_mean(
    kind: str, labels: list[Any], expected: list[float]
) -> None:
    spec = TASKS.parse({"kind": kind, "name": "a"})
    cells = pa.chunked_array([[*labels, None]])
    task = TASKS.class_of(type(spec))(TASKS.class_of(type(spec)).fit(spec, cells))
    targets = torch.from_numpy(task.encode(cells))
    np.testing.assert_allclose(constant_answer(task, targets), expected, atol=1e-4)


def test_what_learned_nothing_is_no_worse_than_the_trivial_predictor_also_of_boxes_and_grids() -> None:
    rng = np.random.default_rng(6)
    boxes = [None if there < 0.3 else [0.4 + x, 0.5, 0.2, 0.3] for there, x in rng.random((40, 2)) / [1, 4]]
    grids = rng.integers(0, 3, (40, 2, 3)).tolist()
    for kind, labels in (("box", boxes), ("grid", grids)):
        spec = TASKS.parse({"kind": kind, "name": "a"})
        cells = pa.chunked_array([labels])
        task = TASKS.class_of(type(spec))(TASKS.class_of(type(spec)).fit(spec, cells))
        targets = torch.from_numpy(task.encode(cells))
        answer = torch.from_numpy(constant_answer(task, targets))
        losses = task.answer_losses(answer.expand(len(targets), -1), targets)
        assert float(losses[task.known(targets)].mean()) <= task.trivial_loss(targets) * 1.001
