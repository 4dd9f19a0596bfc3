"""Who answers a task: greedy selection on hand-made answers whose best mixture is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mtl_bento_search.blend import clearly_better, pick

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(400, 1))
NOISE = RNG.normal(size=(6, 400, 1))
"""Independent errors of six candidates: the mean of n of them has 1/n of the squared error of one."""


def squared(truth: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Squared error by row, NaN where the truth is."""
    return lambda answers: ((answers - truth) ** 2)[:, 0]


def test_equally_good_candidates_share_and_a_far_worse_one_does_not() -> None:
    answers = [TRUTH + NOISE[0], TRUTH + NOISE[1], TRUTH + 30 * NOISE[2]]
    # Errors 1 and independent: half each has the least loss, .5.
    np.testing.assert_array_equal(pick(answers, ["shared"] * 3, squared(TRUTH), most=2), [0.5, 0.5, 0])


def test_copies_of_one_candidate_gain_nothing_and_one_takes_all() -> None:
    answers = [TRUTH + NOISE[0]] * 3
    np.testing.assert_array_equal(pick(answers, ["shared", "single", "trees"], squared(TRUTH)), [1, 0, 0])


def test_a_pick_that_saves_less_than_the_threshold_is_not_made() -> None:
    truth = np.zeros((400, 1))
    one, two = np.full((400, 1), 1.0), np.full((400, 1), 0.997)
    # Half each has loss (1.997 / 2)^2 = .997, lower than 1 but not than .994 of the better one alone.
    np.testing.assert_array_equal(pick([one, two], ["shared"] * 2, squared(truth)), [0, 1])
    # 1 and -.9 make .05: loss .0025 instead of .81.
    three = np.full((400, 1), -0.9)
    np.testing.assert_array_equal(pick([one, three], ["shared"] * 2, squared(truth), most=2), [0.5, 0.5])


def test_picks_are_bounded() -> None:
    shares = pick([TRUTH + n for n in NOISE], ["shared"] * 6, squared(TRUTH), most=4)
    assert (shares > 0).sum() <= 4
    assert shares.sum() == 1
    np.testing.assert_array_equal(pick([TRUTH + n for n in NOISE], ["shared"] * 6, squared(TRUTH), most=1).max(), 1)


def test_candidates_that_do_not_answer_or_diverged_have_no_share() -> None:
    diverged = np.full((400, 1), np.nan)
    answers = [None, diverged, TRUTH + NOISE[0], TRUTH + np.inf]
    np.testing.assert_array_equal(pick(answers, ["single", "shared", "shared", "trees"], squared(TRUTH)), [0, 0, 1, 0])
    with pytest.raises(ValueError, match="no candidate answers"):
        pick([None, diverged], ["shared", "shared"], squared(TRUTH))


def test_a_pool_of_one_takes_all() -> None:
    np.testing.assert_array_equal(pick([TRUTH], ["shared"], squared(TRUTH)), [1])


def test_rows_without_a_label_or_weight_do_not_count() -> None:
    truth = TRUTH.copy()
    good, bad = TRUTH + 0.1, TRUTH + 1
    truth[200:] = np.nan  # the second half is not labelled: answers there may be anything
    switched = [np.where(np.arange(400)[:, None] < 200, a, b) for a, b in ((good, bad), (bad, good))]
    np.testing.assert_array_equal(pick(switched, ["shared"] * 2, squared(truth)), [1, 0])
    weights = (np.arange(400) >= 200).astype(float)
    np.testing.assert_array_equal(pick(switched, ["shared"] * 2, squared(TRUTH), weights=weights), [0, 1])


def test_without_any_label_the_first_that_answers_serves() -> None:
    truth = np.full((400, 1), np.nan)
    np.testing.assert_array_equal(pick([None, TRUTH, TRUTH], ["single", "shared", "trees"], squared(truth)), [0, 1, 0])


def test_three_labels_suffice() -> None:
    truth = np.full((400, 1), np.nan)
    truth[:3] = TRUTH[:3]
    np.testing.assert_array_equal(pick([TRUTH + 1, TRUTH], ["shared", "single"], squared(truth)), [0, 1])


def test_clearly_better_only_beyond_one_standard_error_and_one_percent() -> None:
    single = np.full(100, 1.0)
    assert not clearly_better(single, single + 0.009)  # certain, but under 1 %
    assert clearly_better(single, single + 0.011)
    # Mean difference .05, spread .5: its standard error is .5 / sqrt(100) = .05, so just not beyond it.
    noisy = single + np.where(np.arange(100) % 2, 0.55, -0.45)
    assert not clearly_better(single, noisy)
    assert clearly_better(single, noisy + 0.001)
