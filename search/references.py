"""The reference cohort: trial 0 at the defaults, and each task alone; their losses are the unit of every score.

Letters: T tasks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtl_bento.errors import RunError
from mtl_bento.training import EVALUATIONS, Learned, Member, stable_seed
from mtl_bento_search.checkpoints import load_members, save_members
from mtl_bento_search.rounds import Round, rungs
from mtl_bento_search.select import Candidate
from mtl_bento_search.sitting import Sitting
from mtl_bento_search.space import within

SEEDS = 3
"""Seeds of each single-task reference on a holdout; with folds, the folds are the repetitions."""
ROUND_COST = 2.0
"""Time that a trial of a round takes, in that of a reference: fewer steps, but up to twice as wide, in smaller stacks
(measured: 1.7 on the flights). Only the first round is sized by it, later ones by the one before."""
REFERENCE_SHARE = 0.3
"""Most of a timeout that the references may take; beyond it, every budget of steps is shortened."""


@dataclass
class References:
    """What the reference cohort gave: trial 0 and each task alone."""

    default: Candidate
    singles: tuple[tuple[Candidate, ...], ...]
    """Each task alone, one candidate a seed."""
    default_losses: np.ndarray
    """Losses [T] of trial 0 on validation, mean over the splits."""
    single_losses: np.ndarray
    """Losses [T] of each task alone, mean over splits and seeds: the unit of every score."""
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    """Looks of each task alone at its validation rows, by task, [[step, mean loss], ...]."""
    rungs: dict[int, list[float]] = field(default_factory=dict)
    """Losses [T] of trial 0 at each rung."""


def obtain(sitting: Sitting) -> References:
    """Train, or read back, trial 0 and each task alone."""
    path = sitting.folder.checkpoint("references")
    if path.is_file():
        return _read(sitting, path)
    spec = sitting.space.member(sitting.space.defaults())
    members = sitting.members(spec, "trial", 0)
    seeds = sitting.folder.read_state().get("reference_seeds", n_seeds(sitting))
    names = sitting.problem.names
    for name in names:
        for seed in range(seeds):
            members += sitting.members(within(spec, [name], names), "single", name, seed)
    marks = rungs(spec.training.steps)
    trip = sitting.round(members, seed=stable_seed(sitting.seed, "references"))
    own = range(sitting.n_splits)
    at_rungs: dict[int, list[float]] = {}
    started = time.monotonic()
    for goal in marks:
        whole = trip.advance(goal, reference=None, deadline=sitting.deadline())
        held = trip.members()
        at_rungs[goal] = np.mean([held[p][0].losses[held[p][1]] for p in own], axis=0).tolist()
        if not whole:
            break
    if sitting.interrupted and not whole:
        # Half of it would be the yardstick of the run for good.
        raise RunError(
            "Interrupted before trial 0 and the networks of each task alone were trained; run the same search again."
        )
    spent = time.monotonic() - started
    found = _gathered(sitting, trip, seeds, at_rungs)
    n_finals = len(names) * sitting.n_splits
    member_s = spent / len(members)
    reached = None if whole else trip.step
    sitting.folder.note(
        finals_s=member_s * n_finals * 1.3, trial_s=member_s * sitting.n_splits * ROUND_COST, references_reached=reached
    )
    info = {
        "default_losses": found.default_losses.tolist(),
        "single_losses": found.single_losses.tolist(),
        "curves": found.curves,
        "rungs": {str(step): losses for step, losses in at_rungs.items()},
    }
    save_members(
        path, [m for c in (found.default, *(c for held in found.singles for c in held)) for m in c.networks], info
    )
    return found


def _gathered(sitting: Sitting, trip: Round, seeds: int, at_rungs: dict[int, list[float]]) -> References:
    held = trip.members()
    n, names = sitting.n_splits, sitting.problem.names
    losses = [held[p][0].losses[held[p][1]] for p in sorted(held)]
    if not np.isfinite(np.array([losses[p] for p in range(n)])).any():
        raise RunError("The search ended before anything was trained; give it more time: --timeout 10m.")

    def trained(first: int) -> tuple[Learned, ...]:
        return tuple(held[p][0].trained(held[p][1]) for p in range(first, first + n))

    singles, single_losses = [], []
    for t, name in enumerate(names):
        first = n + t * seeds * n
        singles.append(tuple(_single(name, seed, trained(first + seed * n)) for seed in range(seeds)))
        own = np.array([losses[p][t] for p in range(first, first + seeds * n)])
        single_losses.append(float(np.nanmean(np.where(np.isfinite(own), own, 1.0))))
    curves = {}
    for t, name in enumerate(names):
        curves[name] = _curve(trip, range(n + t * seeds * n, n + (t + 1) * seeds * n), task=t)
    default_losses = np.nanmean([losses[p] for p in range(n)], axis=0)
    return References(
        Candidate("trial 0", "shared", trained(0)),
        tuple(singles),
        default_losses,
        np.array(single_losses),
        curves,
        at_rungs,
    )


def _read(sitting: Sitting, path: Path) -> References:
    members, info = load_members(path)
    n = sitting.n_splits
    cut = [tuple(members[i : i + n]) for i in range(0, len(members), n)]
    names = sitting.problem.names
    seeds = (len(cut) - 1) // len(names)
    singles = tuple(
        tuple(_single(name, seed, cut[1 + t * seeds + seed]) for seed in range(seeds)) for t, name in enumerate(names)
    )
    return References(
        Candidate("trial 0", "shared", cut[0]),
        singles,
        np.array(info["default_losses"]),
        np.array(info["single_losses"]),
        info["curves"],
        {int(step): losses for step, losses in info["rungs"].items()},
    )


def _single(name: str, seed: int, members: tuple[Learned, ...]) -> Candidate:
    """Return a task alone at the defaults as a candidate."""
    again = f", seed {seed}" if seed else ""
    return Candidate(f"single-task {name}{again}", "single", members, (name,))


def n_seeds(sitting: Sitting) -> int:
    """Return how many seeds each task alone has where there is time enough."""
    return 1 if sitting.n_splits > 1 else SEEDS


def affordable(sitting: Sitting, steps: int) -> tuple[int, int]:
    """Return (steps, seeds of each task alone) that the references can take within their share of the timeout.

    Seeds are given up before steps: they make the unit of the scores steadier, steps make the networks what they are.
    The speed is measured on a few steps of trial 0 and noted in the run, so that a resumed run has the same budget.
    """
    seeds = n_seeds(sitting)
    if sitting.clock.timeout_s is None:
        return steps, seeds
    per_step, look = _speed(sitting)
    for n in sorted({seeds, 1}, reverse=True):
        n_members = sitting.n_splits * (1 + len(sitting.problem.names) * n)
        share = REFERENCE_SHARE * sitting.clock.timeout_s / n_members
        within = (share - EVALUATIONS * look) / per_step
        if within >= steps:
            return steps, n
    return max(32, int(within) // 16 * 16), 1


def _speed(sitting: Sitting) -> tuple[float, float]:
    """Return seconds of wall time of a member-step and of a member's look, all workers busy."""
    spec = sitting.space.member(sitting.space.defaults())
    probe = [Member(spec, seed=k) for k in range(4 * sitting.packing.n_workers)]
    trip = sitting.round(probe, seed=0)
    # Each advance ends with a look at the validation rows; the first also warms up.
    times = []
    for goal in (2, 6, 22):
        started = time.monotonic()
        trip.advance(goal, reference=None, deadline=math.inf)
        times.append((time.monotonic() - started) / len(probe))
    per_step = max((times[2] - times[1]) / 12, 1e-7)
    return per_step, max(times[1] - 4 * per_step, 0.0)


def _curve(trip: Round, places: Sequence[int], *, task: int) -> list[list[float]]:
    """Return [[step, mean loss], ...] of some members on one task."""
    return [[step, float(np.nanmean(np.array(losses)[:, task]))] for step, losses in trip.looks(places).items()]
