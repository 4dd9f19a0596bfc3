"""The finals: each task alone at the best configuration, so that sharing meets single-task networks as well tuned."""

from __future__ import annotations

import math

from optuna.trial import FrozenTrial

from mtl_bento.training import stable_seed
from mtl_bento_search.checkpoints import load_members, save_members
from mtl_bento_search.select import Candidate
from mtl_bento_search.space import alone
from mtl_bento_search.study import Driver


def single_task_candidates(driver: Driver, best: FrozenTrial) -> list[list[Candidate]]:
    """Return, for each task, its single-task candidates: at the defaults, and at the best trial's configuration.

    The latter are trained here, as far as the time allows; where nobody has time for a look, the defaults stand alone.
    """
    sitting = driver.sitting
    singles = [[candidate] for candidate in driver.references.singles]
    names = sitting.problem.names
    if best.number == 0 or len(names) == 1:
        return singles
    path = sitting.folder.checkpoint(f"singles-of-trial-{best.number:05d}")
    if not path.is_file():
        spec, ordinal = driver.candidate(best.number)[1], driver.ordinal(best.number)
        members = [m for name in names for m in sitting.members(alone(spec, name, names), "final", ordinal, name)]
        trip = sitting.round(members, seed=stable_seed(sitting.seed, "finals", ordinal))
        if sitting.interrupted:
            return singles
        trip.advance(spec.training.steps, reference=None, deadline=sitting.deadline())
        held = trip.members()
        if not all(math.isfinite(held[p][0].states[held[p][1]].score) for p in held):
            return singles
        save_members(path, [held[p][0].trained(held[p][1]) for p in sorted(held)], {"trial": best.number})
    members_, _ = load_members(path)
    for t, name in enumerate(names):
        own = tuple(members_[t * sitting.n_splits : (t + 1) * sitting.n_splits])
        singles[t].append(Candidate(f"single-task {name} at trial {best.number}", own))
    return singles
