"""The real sets that benchmarks train on, as `datasets.json` beside them describes them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pyarrow.parquet as pq

from mtl_bento_search.api import make_space
from mtl_bento_search.config import parse_config
from mtl_bento_search.executors._base import Executor
from mtl_bento_search.problem import Problem, make_problem
from mtl_bento_search.progress import Progress
from mtl_bento_search.pruning import RoundPruner
from mtl_bento_search.references import References
from mtl_bento_search.rounds import rungs
from mtl_bento_search.run import Clock, Folder
from mtl_bento_search.select import Candidate
from mtl_bento_search.sitting import Sitting
from mtl_bento_search.space import Space


@dataclass(frozen=True)
class Set:
    """A set, and the default space of a search on it."""

    name: str
    problem: Problem
    space: Space

    @property
    def n_splits(self) -> int:
        """Networks that a configuration has: one a fold, or one."""
        return len(self.problem.dataset.splits)

    @property
    def steps(self) -> int:
        """The whole budget of a network."""
        return self.space.member(self.space.defaults()).training.steps


def read_set(folder: Path, name: str, *, steps: int | None = None) -> Set:
    """Return the set of that name: its features, targets and column `split`, no other column.

    `steps` is another budget than that of the default space.
    """
    described = {d["name"]: d for d in json.loads((folder / "datasets.json").read_bytes())["datasets"]}
    if name not in described:
        raise SystemExit(f"{folder} has no set {name!r}; it has {', '.join(described)}.")
    data = described[name]
    targets = {target["name"]: target["kind"] for target in data["targets"]}
    inputs = [feature for kind in data["features"].values() for feature in kind]
    table = pq.read_table(folder / data["file"], columns=[*inputs, *targets, data["split"]["column"]])
    config = parse_config({"targets": targets}, where=name)
    problem = make_problem(config, data=table)
    return Set(name, problem, make_space(problem, config, steps=steps))


@contextmanager
def sitting(data: Set, executor: Executor, *, seed: int) -> Iterator[Sitting]:
    """A sitting of a search in a run folder that is removed afterwards, without a timeout."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(timeout_s=None)
        yield Sitting(data.problem, data.space, executor, Folder(Path(folder)), clock, seed, Progress())


def trial_zero(held: Sitting) -> References:
    """Train trial 0 and return it as references whose unit is the trivial loss: no task alone is trained."""
    spec = held.space.member(held.space.defaults())
    trip = held.round(held.members(spec, "trial", 0), seed=0)
    at_rungs: dict[int, list[float]] = {}
    for goal in rungs(spec.training.steps):
        trip.advance(goal, reference=None, deadline=float("inf"))
        members = trip.members()
        at_rungs[goal] = np.mean([stack.losses[k] for stack, k in members.values()], axis=0).tolist()
    trained = tuple(members[place][0].trained(members[place][1]) for place in sorted(members))
    ones = np.ones(len(held.problem.names))
    return References(Candidate("trial 0", trained), (), np.array(at_rungs[goal]), ones, rungs=at_rungs)


def new_study(storage: optuna.storages.BaseStorage | None = None) -> optuna.Study:
    """Return a study as the project makes it for a run."""
    return optuna.create_study(storage=storage, pruner=RoundPruner(), direction="maximize")
