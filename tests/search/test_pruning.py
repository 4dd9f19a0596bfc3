"""The pruner keeps the better half of a round, whatever the order in which its trials are asked."""

from __future__ import annotations

import itertools

import optuna

from mtl_bento_search.pruning import ROUND, RoundPruner


def study_of(
    values: list[float], *, rounds: list[int] | None = None, step: int = 10
) -> tuple[optuna.Study, list[optuna.Trial]]:
    study = optuna.create_study(direction="maximize", pruner=RoundPruner(keep=()))
    trials = [study.ask() for _ in values]
    for trial, value, number in zip(trials, values, rounds or [0] * len(values), strict=True):
        trial.set_user_attr(ROUND, number)
        trial.report(value, step)
    return study, trials


def test_the_better_half_goes_on_in_every_order_of_asking() -> None:
    values = [0.1, 0.4, 0.3, 0.2]
    for order in itertools.permutations(range(4)):
        _, trials = study_of(values)
        pruned = {i: trials[i].should_prune() for i in order}
        assert pruned == {0: True, 1: False, 2: False, 3: True}


def test_an_odd_round_keeps_the_larger_half_and_equals_the_earlier_trials() -> None:
    _, trials = study_of([0.5, 0.5, 0.5])
    assert [trial.should_prune() for trial in trials] == [False, False, True]


def test_only_the_own_round_counts() -> None:
    _, trials = study_of([0.9, 0.8, 0.1, 0.2], rounds=[0, 0, 1, 1])
    assert [trial.should_prune() for trial in trials] == [False, True, True, False]


def test_trials_told_meanwhile_still_count_in_the_ranking() -> None:
    study, trials = study_of([0.1, 0.4, 0.3, 0.2])
    study.tell(trials[0], state=optuna.trial.TrialState.PRUNED)
    assert [trial.should_prune() for trial in trials[1:]] == [False, False, True]


def test_nan_is_the_worst() -> None:
    _, trials = study_of([float("nan"), -5.0])
    assert [trial.should_prune() for trial in trials] == [True, False]


def test_trial_zero_is_never_pruned_by_default() -> None:
    study = optuna.create_study(direction="maximize", pruner=RoundPruner())
    trials = [study.ask() for _ in range(4)]
    for trial, value in zip(trials, [-1.0, 0.3, 0.2, 0.1], strict=True):
        trial.set_user_attr(ROUND, 0)
        trial.report(value, 1)
    assert [trial.should_prune() for trial in trials] == [False, False, False, True]
