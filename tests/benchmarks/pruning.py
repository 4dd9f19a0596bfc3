"""What thinning a round saves and costs: configurations trained to the end once, thinned in many orders afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from mtl_bento.training import MemberSpec
from mtl_bento_search.objective import score
from mtl_bento_search.pruning import ROUND, RoundPruner
from mtl_bento_search.rounds import rungs
from mtl_bento_search.sitting import Sitting
from mtl_bento_search.study import ROUND_SIZE

ORDERS = 50
"""Orders in which the configurations are replayed: which of them share a round is chance."""


@dataclass(frozen=True)
class Curves:
    """Configurations trained to the end."""

    goals: list[int]
    """The rungs, the last being the whole budget."""
    losses: np.ndarray
    """Validation loss of each configuration at each rung [n, rungs]: 1 is the trivial loss."""

    def to_the_end(self, order: Sequence[int]) -> float:
        """Return the lowest loss of some configurations, none pruned."""
        return float(self.losses[list(order), -1].min())


@dataclass(frozen=True)
class Replayed:
    """One order of the configurations, thinned in rounds."""

    saved: float
    """All steps as a multiple of those taken."""
    regret: float
    """How much higher the lowest loss is than with all configurations trained to the end, in %."""
    regret_of_fewer: float
    """The same where as many steps train the first configurations of the order, and no others, to the end."""


def trained_to_the_end(held: Sitting, specs: Sequence[MemberSpec]) -> Curves:
    """Train configurations in rounds, none pruned, and note their losses at the rungs."""
    goals = rungs(specs[0].training.steps)
    losses = np.empty((len(specs), len(goals)))
    for first in range(0, len(specs), ROUND_SIZE):
        part = specs[first : first + ROUND_SIZE]
        members = [m for i, spec in enumerate(part) for m in held.members(spec, "replay", first + i)]
        trip = held.round(members, seed=first)
        for rung, goal in enumerate(goals):
            trip.advance(goal, reference=None, deadline=float("inf"))
            at = trip.members()
            for i in range(len(part)):
                own = [at[place] for place in range(i * held.n_splits, (i + 1) * held.n_splits)]
                mean = np.mean([stack.losses[k] for stack, k in own], axis=0)
                losses[first + i, rung] = 1.0 - score(mean, np.ones(len(mean)), held.weights)
    return Curves(goals, losses)


def replayed(curves: Curves, order: Sequence[int]) -> Replayed:
    """Thin the configurations in rounds of that order, by the search's own pruner."""
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(), pruner=RoundPruner(keep=()), direction="maximize"
    )
    taken, best = 0, float("inf")
    for first in range(0, len(order), ROUND_SIZE):
        living = {i: study.ask() for i in order[first : first + ROUND_SIZE]}
        for trial in living.values():
            trial.set_user_attr(ROUND, first)
        at = 0
        for rung, goal in enumerate(curves.goals):
            taken, at = taken + len(living) * (goal - at), goal
            for i, trial in living.items():
                trial.report(-curves.losses[i, rung], goal)
            if goal < curves.goals[-1]:
                living = {i: trial for i, trial in living.items() if not trial.should_prune()}
        best = min(best, curves.to_the_end(list(living)))
    steps = curves.goals[-1]
    least, fewer = curves.to_the_end(order), curves.to_the_end(order[: max(1, taken // steps)])
    return Replayed(len(order) * steps / taken, (best / least - 1) * 100, (fewer / least - 1) * 100)


def replayed_often(curves: Curves, *, seed: int) -> list[Replayed]:
    """Replay the configurations in their own order, then in others drawn at random."""
    n, rng = len(curves.losses), np.random.default_rng(seed)
    orders = [np.arange(n), *(rng.permutation(n) for _ in range(ORDERS - 1))]
    return [replayed(curves, order.tolist()) for order in orders]


def rank_correlations(curves: Curves) -> list[float]:
    """Return Spearman's correlation of the losses at each rung with those at the end."""
    ranks = curves.losses.argsort(0).argsort(0)
    return [float(np.corrcoef(ranks[:, rung], ranks[:, -1])[0, 1]) for rung in range(len(curves.goals))]
