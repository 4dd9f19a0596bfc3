"""Scores from losses: how much better than single-task networks a trial is.

Letters: T tasks. Losses are in units of the trivial predictor's: 1 is "learned nothing".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from numpy.typing import NDArray

from mtl_bento.dataset import Dataset
from mtl_bento.training import Member, Stack, advance, stable_seed
from mtl_bento_search.rounds import rungs
from mtl_bento_search.space import Space

LEAST, MOST = 0.01, 1.0
"""A task's gain is divided by its single-task loss, cut to this range: nearly solved tasks do not drown the others."""

Losses = NDArray[np.float64]


def gains(losses: Losses, single: Losses) -> Losses:
    """Return each task's gain [T] over the single-task loss, cut to [-1, 1]; NaN losses count as -1."""
    raw = (single - losses) / single.clip(LEAST, MOST)
    return np.asarray(np.nan_to_num(raw, nan=-1.0, posinf=-1.0, neginf=-1.0).clip(-1.0, 1.0))


def score(losses: Losses, single: Losses, weights: Sequence[float]) -> float:
    """Return `gain`: the mean of the tasks' gains, weighted by how much the user cares."""
    return float(np.average(gains(losses, single), weights=np.asarray(weights)))


def worst_ratio(losses: Losses, single: Losses) -> float:
    """Return the worst task's loss as a multiple of its single-task loss."""
    return float(np.nan_to_num(losses / single.clip(1e-12), nan=np.inf).max())


class Objective:
    """One trial as an Optuna objective: `study.optimize(mb.Objective(dataset, space))` works without our driver.

    Trials run one after another, not stacked; each reports its score at the rungs and heeds the study's pruner.

    Args:
        dataset: rows, tasks and splits.
        space: what to choose from.
        single: loss of each task alone [T], in units of the trivial loss; by default the trivial loss itself.
        seed: of every draw but the sampler's.
    """

    def __init__(self, dataset: Dataset, space: Space, *, single: Sequence[float] | None = None, seed: int = 0) -> None:
        self.dataset, self.space, self.seed = dataset, space, seed
        self.single = np.ones(len(dataset.tasks)) if single is None else np.asarray(single, dtype=np.float64)
        self.weights = [task.spec.weight for task in dataset.tasks]

    def __call__(self, trial: optuna.Trial) -> float:
        """Return `gain`, to maximise; raises TrialPruned where the pruner says so."""
        spec = self.space.member(self.space.suggest(trial))
        splits = range(len(self.dataset.splits))
        seeds = [stable_seed(self.seed, trial.number, s) for s in splits]
        stacks = [Stack((Member(spec, seed, s),), seed) for s, seed in zip(splits, seeds, strict=True)]
        reference = self.single.clip(LEAST, None).tolist()
        value = -1.0
        for goal in rungs(spec.training.steps):
            stacks = [advance(stack, self.dataset, goal, reference=reference) for stack in stacks]
            losses = np.mean([stack.losses[0] for stack in stacks], axis=0)
            value = score(losses, self.single, self.weights)
            trial.report(value, goal)
            if goal < spec.training.steps and trial.should_prune():
                raise optuna.TrialPruned
        for task, gain in zip(self.dataset.tasks, gains(losses, self.single).tolist(), strict=True):
            trial.set_user_attr(f"gain.{task.name}", gain)
        return value
