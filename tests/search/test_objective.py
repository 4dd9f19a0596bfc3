"""Scores: gains over single-task, cut and weighted; an ordinary Optuna objective."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

from mtl_bento.dataset import Dataset
from mtl_bento_search.objective import Objective, gains, score, worst_ratio
from mtl_bento_search.space import Space


def test_gains_are_relative_to_single_task_cut_and_nan_is_the_worst() -> None:
    single = np.array([0.5, 0.005, 2.0, 0.5, 0.5])
    losses = np.array([0.4, 0.0, 1.0, np.nan, 5.0])
    # (.5-.4)/.5; (.005-0)/.01, since a loss under .01 counts as .01; (2-1)/1, since one over 1 counts as 1.
    np.testing.assert_allclose(gains(losses, single), [0.2, 0.5, 1.0, -1.0, -1.0])


def test_the_score_is_the_mean_by_how_much_the_user_cares() -> None:
    losses, single = np.array([0.4, 0.6]), np.array([0.5, 0.5])
    assert score(losses, single, [1, 1]) == pytest.approx(0.0)
    assert score(losses, single, [3, 1]) == pytest.approx((3 * 0.2 - 0.2) / 4)


def test_the_worst_ratio_is_that_of_the_task_that_lost_most() -> None:
    assert worst_ratio(np.array([0.4, 0.6]), np.array([0.5, 0.5])) == pytest.approx(1.2)


def test_any_study_can_optimise_it_without_our_driver(dataset: Dataset) -> None:
    names = [task.name for task in dataset.tasks]
    space = Space(
        list(dataset.inputs.columns), names, trunks=["mlp"], domains={"width": [8, 16]}, batch_size=64, steps=32
    )
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(Objective(dataset, space), n_trials=2)
    assert len(study.trials) == 2
    assert list(study.trials[0].intermediate_values) == [8, 16, 32]
    assert 0 < study.best_value < 1  # better than the trivial predictor, to which it is compared here
    assert set(study.trials[0].user_attrs) == {f"gain.{name}" for name in names}
