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
    np.testing.assert_array_equal(pick(answers, ["shared"] * 3, squared(TRUTH)), [1, 0, 0])


def test_shares_are_drawn_by_a_quarter_towards_the_best_of_each_kind() -> None:
    # 1 and -1 cancel: half each of the second and third. The best of each kind are the second, third and fourth, their
    # mean .2 off: a third each. Drawn by a quarter that is .05 off, which no row loss of 0 is clearly better than when
    # each row also errs by 10 in a way of its own.
    own = 10 * NOISE[0]
    answers = [TRUTH + own + error for error in (3.0, 1.0, -1.0, 0.6)]
    kinds = ["shared", "shared", "trees", "offset"]
    chosen = pick(answers, kinds, squared(TRUTH), drawn=0)
    expected = 0.75 * chosen + 0.25 * np.array([0, 1, 1, 1]) / 3
    np.testing.assert_allclose(pick(answers, kinds, squared(TRUTH)), expected)


def test_shares_are_not_drawn_towards_a_kind_that_would_cost_clearly() -> None:
    answers = [TRUTH + 0.1 * NOISE[0], TRUTH + NOISE[1]]  # errors .01 and 1: an eighth of the latter costs .0156
    np.testing.assert_array_equal(pick(answers, ["trees", "shared"], squared(TRUTH)), [1, 0])


def test_shares_are_not_drawn_towards_a_kind_half_again_as_bad_though_few_rows_tell() -> None:
    # Two rows of a hundred err: losses 1.25 and 2.05. An eighth of the latter costs .078, within its standard error of
    # .105. A third answer of loss 1.79 is near enough to be drawn to by the same eighth.
    truth = np.zeros((100, 1))
    best, far, near = np.zeros((3, 100, 1))
    best[:2, 0], far[:2, 0], near[:2, 0] = (10, 5), (14, 3), (13, 3.1)
    assert pick([best, far], ["offset", "shared"], squared(truth)).tolist() == [1, 0]
    assert pick([best, near], ["offset", "shared"], squared(truth)).tolist() == [0.875, 0.125]


@pytest.mark.parametrize(("kind", "shares"), [("trees", [1, 0]), ("single", [1, 0]), ("offset", [0.875, 0.125])])
def test_what_learned_alone_and_gains_by_no_mixing_stays_alone(kind: str, shares: list[float]) -> None:
    # Half of each is .5 % worse; an eighth of the other costs .1 %.
    truth = np.zeros((100, 1))
    assert pick([truth + 1, truth + 1.005], [kind, "shared"], squared(truth)).tolist() == shares


def test_shares_are_not_drawn_where_that_would_take_more_candidates_than_allowed() -> None:
    answers = [TRUTH + NOISE[0], TRUTH + NOISE[1]]
    np.testing.assert_array_equal(np.sort(pick(answers, ["trees", "shared"], squared(TRUTH), most=1)), [0, 1])


@pytest.mark.parametrize(("kind", "shares"), [("single", [0, 1, 0]), ("group", [10 / 12, 1 / 12, 1 / 12])])
def test_what_learned_alone_serves_where_it_is_clearly_better_than_the_mixture(kind: str, shares: list[float]) -> None:
    # Losses that mix as answers do. The first has the lowest, .999 on average; drawn towards all it is .038 worse, less
    # than a standard error (.1 * 5 / sqrt(100) = .05). The second is .037 better than that on every row.
    noise = np.where(np.arange(100) % 2, 5.0, -5.0)
    losses = [1 - 0.001 - 0.1 * noise, np.ones(100), 1.45 + noise]
    found = pick([loss[:, None] for loss in losses], ["shared", kind, "offset"], lambda answers: answers[:, 0])
    np.testing.assert_allclose(found, shares)


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
