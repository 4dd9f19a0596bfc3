"""Where answers are wrong: counts and bins worked out by hand, and how the report draws them."""

from __future__ import annotations

import numpy as np

from mtl_bento.tasks.multiclass import Multiclass, MulticlassSpec
from mtl_bento.tasks.regression import Regression, RegressionSpec
from mtl_bento_search.diagnosis import diagnosis
from mtl_bento_search.report.errors import section

LABELS = Multiclass(MulticlassSpec(name="colour", levels=("red", "green", "blue")))
NUMBERS = Regression(RegressionSpec(name="hours"))


def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Thirty rows and one without a label: ten a colour; all answered green at .8 but the blue ones, right at .6."""
    truth = np.array([0] * 10 + [1] * 10 + [2] * 10 + [-1])
    scored = np.tile([0.1, 0.8, 0.1], (31, 1))
    scored[20:30] = [0.2, 0.2, 0.6]
    return scored, truth


def test_labels_are_counted_by_truth_and_answer_and_sureness_is_held_against_truth() -> None:
    found = diagnosis(LABELS, *labelled())
    assert found is not None
    assert found["confusion"] == [[0, 10, 0], [0, 10, 0], [0, 0, 10]]
    assert found["labels"] == ["red", "green", "blue"]
    # Ten rows at .6, all right; twenty at .8, of which half are.
    np.testing.assert_allclose(found["reliability"], [[0.6, 1.0, 10], [0.8, 0.5, 20]])


def test_numbers_are_held_against_truths_in_ten_bins() -> None:
    scored = np.arange(100.0)
    found = diagnosis(NUMBERS, scored, scored + 3)
    assert found is not None
    assert len(found["against"]) == 10
    # The first ten rows, 0 to 9: their mean, and .9, 4.5 and 8.1 and 3.
    np.testing.assert_allclose(found["against"][0], [4.5, 3.9, 7.5, 11.1, 10])
    assert sum(held[-1] for held in found["against"]) == 100


def test_too_few_rows_and_other_answers_have_none() -> None:
    scored, truth = labelled()
    assert diagnosis(LABELS, scored[:19], truth[:19]) is None
    assert diagnosis(NUMBERS, np.zeros((30, 4)), np.zeros((30, 4))) is None


def test_one_number_for_all_rows_is_one_bin() -> None:
    found = diagnosis(NUMBERS, np.full(50, 2.0), np.arange(50.0))
    assert found is not None
    assert [held[-1] for held in found["against"]] == [50]


def test_the_report_draws_each_and_nothing_where_there_is_none() -> None:
    page = str(section({"tasks": [{"task": "colour", "diagnosis": diagnosis(LABELS, *labelled())}]}))
    assert "colour: which labels are confused" in page
    assert 'title="100% of red"' in page
    assert "answered 80%, true in 50% of 20 rows" in page
    assert section({"tasks": [{"task": "colour"}]}) is None


def test_residuals_are_counted_in_bins_around_zero() -> None:
    # Nineteen of twenty answers are right, one is 3 too low; with reach 3 it lies in the first bin of twenty-one.
    truth = np.arange(100.0)
    scored = truth.copy()
    scored[::20] -= 3
    found = diagnosis(NUMBERS, scored, truth)
    assert found is not None
    held = found["residuals"]
    assert (held["reach"], held["mean"], held["absolute"]) == (3.0, -0.15, 0.15)
    assert held["counts"] == [5, *[0] * 9, 95, *[0] * 10]


def test_what_lies_beyond_the_reach_is_in_the_last_bins() -> None:
    scored = np.zeros(1000)
    truth = np.tile([-1.0, 1.0], 500)
    truth[0] = -100.0
    held = (diagnosis(NUMBERS, scored, truth) or {})["residuals"]
    assert held["reach"] == 1.0
    assert (held["counts"][0], held["counts"][-1]) == (500, 500)


def test_answers_without_any_residual_have_one_bar() -> None:
    held = (diagnosis(NUMBERS, np.zeros(50), np.zeros(50)) or {})["residuals"]
    assert held["counts"] == [*[0] * 10, 50, *[0] * 10]


def test_the_report_draws_residuals_between_the_ends_of_the_intervals() -> None:
    truth = np.arange(100.0)
    scored = truth + np.tile([-2.0, -1.0, 0.0, 1.0, 2.0], 20)
    record = {"task": "hours", "diagnosis": diagnosis(NUMBERS, scored, truth)}
    page = str(section({"tasks": [record]}))
    assert "hours: how far it is off" in page
    assert page.count('class="heap"') == 5
    assert "On average 0; without the sign 1.2." in page
    assert "dotted lines" not in page
    page = str(section({"tasks": [record | {"coverage": {"size": 3.0, "level": 0.6}}]}))
    assert "the intervals that shall hold 60\u00a0% of the rows" in page
