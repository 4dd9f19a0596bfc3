"""Whole searches, ours and those of the loops: same space, sampler, seeds, budgets, storage and unit of scores.

All arms use all cores and begin warm: their processes run, hold the rows and have trained a network; trial 0, the
defaults, is told beforehand. What counts is the time of the `n` trials after it.

- ours:   the project's driver, with its executor, in a run folder.
- rungs:  rounds of asked trials whose networks are loops (`loops.py`), thinned at the same rungs by the same pruner. A
          network is trained from rung to rung by whichever process is free, the costliest first, as in ours.
- median: as people write it: a process a core, each with `study.optimize` on the shared journal, which trains a
          configuration's folds side by side, reports at every look, and prunes by Optuna's MedianPruner.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mtl_bento.training import EVALUATIONS, MemberSpec, stable_seed
from mtl_bento_search.executors._base import Executor
from mtl_bento_search.objective import score
from mtl_bento_search.pruning import ROUND
from mtl_bento_search.references import References
from mtl_bento_search.rounds import rungs
from mtl_bento_search.sitting import Sitting
from mtl_bento_search.space import Space
from mtl_bento_search.storage import STUDY, open_storage
from mtl_bento_search.study import MOST_ROUNDS, ROUND_SIZE, Driver, make_sampler
from mtl_bento_search.tuning import tune_process
from tests.benchmarks.loops import Loop, Rows
from tests.benchmarks.sets import Set, new_study, sitting
from tests.benchmarks.timers import TRAINING, Clock, Timers

CORES = len(os.sched_getaffinity(0))
WARM_UP_STEPS = 20


@dataclass(frozen=True)
class Searched:
    """What a search of n trials took and gave."""

    arm: str
    seconds: float
    cpu_s: float
    """Processor time of all processes."""
    n_trials: int
    steps: int
    """Steps of all networks."""
    tabm_share: float
    """Share of the steps that are TabM's, which cost most: searches differ in what their sampler asks for."""
    best_loss: float
    """Lowest validation loss of a trial, trial 0 among them: the mean over tasks, in units of the trivial loss."""
    training_s: float | None = None
    """Seconds in which ours waited for its executor; the others are the driver's."""

    @property
    def step_ms(self) -> float:
        """Wall time of a step of a network, all cores at work."""
        return self.seconds / self.steps * 1e3


def summed_up(arm: str, clock: Clock, study: optuna.Study, n_splits: int) -> Searched:
    """Return what a clock says of a search, and its study of the trials after trial 0."""
    spent = clock.read()
    trials = [t for t in study.get_trials(deepcopy=False) if t.number > 0 and t.state.is_finished()]
    steps = {t.number: (t.last_step or 0) * n_splits for t in trials}
    tabm = sum(steps[t.number] for t in trials if t.params["trunk"] == "tabm")
    return Searched(
        arm, *spent, len(trials), sum(steps.values()), tabm / sum(steps.values()), 1.0 - float(study.best_value)
    )


def search_ours(data: Set, executor: Executor, references: References, n: int, *, seed: int) -> Searched:
    """Search by the project's driver."""
    with sitting(data, executor, seed=seed) as held:
        study = new_study(open_storage(held.folder.path, None))
        driver = Driver(held, study, references)
        driver.search(n_trials=1)
        timers, clock = Timers(), Clock()
        with timers.wrapping([(executor, "advance", TRAINING)]):
            driver.search(n_trials=1 + n)
        searched = summed_up("ours", clock, study, data.n_splits)
        return replace(searched, training_s=timers.seconds[TRAINING])


@dataclass(frozen=True)
class Start:
    """A network that no process has made yet."""

    spec: MemberSpec
    seed: int
    split: int


@dataclass
class Job:
    """A network at rest between two rungs: what a process needs to go on."""

    cost: float
    packed: bytes
    """A pickled `Start` or `Loop`; bytes, so that the driver does not unpack what it only hands on."""
    losses: list[float]
    """Losses [T] of its best look."""


def new_job(spec: MemberSpec, *, seed: int, split: int) -> Job:
    """Return a network that has not begun."""
    trunk = spec.network.trunk
    cost = trunk.copies * trunk.width * (trunk.width * trunk.shared_depth + 256)
    return Job(cost, packed(Start(spec, seed, split)), [])


def packed(data: Any) -> bytes:
    """Return data as bytes: of tensors sent as such, multiprocessing would share file descriptors."""
    return pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL)


class Pool:
    """A process a core, each with one thread and the rows; `kind` says how its loops get their batches."""

    def __init__(self, data: Set, kind: str) -> None:
        self.kind, self.data = kind, data
        spec = data.space.member(data.space.defaults())
        self.rows = Rows.of(data.problem.dataset, spec.network)
        context = multiprocessing.get_context("spawn")
        self.taken = context.Value("i", 0)
        self._processes = ProcessPoolExecutor(
            CORES, context, _begin, (packed(self.rows), kind, context.Barrier(CORES), self.taken)
        )
        for future in [self._processes.submit(_warm_up, packed(Start(spec, 0, 0))) for _ in range(CORES)]:
            future.result()

    def advance(self, jobs: Sequence[Job], goal: int) -> list[Job]:
        """Return every network trained up to step `goal`, the costliest first."""
        order = sorted(range(len(jobs)), key=lambda i: -jobs[i].cost)
        futures = {i: self._processes.submit(_advance, jobs[i].packed, goal) for i in order}
        return [Job(job.cost, *futures[i].result()) for i, job in enumerate(jobs)]

    def optimise(self, journal: Path, space: Space, n: int, *, seed: int) -> None:
        """Have every process run `study.optimize` until n trials are taken."""
        self.taken.value = 0
        futures: list[Future[None]] = [
            self._processes.submit(_optimise, str(journal), packed(space), n, seed) for _ in range(CORES)
        ]
        for future in futures:
            future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.shutdown()


def search_by_rungs(data: Set, pool: Pool, default: FrozenTrial, n: int, *, seed: int) -> Searched:
    """Search by rounds of loops, thinned as ours are."""
    with tempfile.TemporaryDirectory() as folder:
        storage = JournalStorage(JournalFileBackend(str(Path(folder) / STUDY)))
        study = new_study(storage)
        study.add_trial(default)
        clock = Clock()
        size = round_size(data)
        for first in range(1, n + 1, size):
            _one_round(data, pool, study, range(first, min(first + size, n + 1)), seed=seed)
        return summed_up(f"{pool.kind} + rungs", clock, study, data.n_splits)


def round_size(data: Set) -> int:
    """Return how many trials our driver asks together."""
    return min(MOST_ROUNDS * ROUND_SIZE, max(ROUND_SIZE, ROUND_SIZE * CORES // data.n_splits))


def _one_round(data: Set, pool: Pool, study: optuna.Study, ordinals: range, *, seed: int) -> None:
    splits = range(data.n_splits)
    trials: dict[int, optuna.Trial] = {}
    jobs: dict[int, list[Job]] = {}
    for i in ordinals:
        study.sampler = make_sampler(stable_seed(seed, "ask", i) % 2**32)
        trials[i] = study.ask()
        spec = data.space.member(data.space.suggest(trials[i]))
        trials[i].set_user_attr(ROUND, ordinals[0])
        jobs[i] = [new_job(spec, seed=stable_seed(seed, "trial", i, s), split=s) for s in splits]
    for goal in rungs(data.steps):
        done = iter(pool.advance([job for i in trials for job in jobs[i]], goal))
        jobs = {i: [next(done) for _ in splits] for i in trials}
        values = {i: value_of([job.losses for job in jobs[i]], data) for i in trials}
        for i, trial in trials.items():
            trial.report(values[i], goal)
        pruned = [] if goal == data.steps else [i for i, trial in trials.items() if trial.should_prune()]
        for i in pruned:
            study.tell(trials.pop(i), state=TrialState.PRUNED)
    for i, trial in trials.items():
        study.tell(trial, values[i])


def search_by_median(data: Set, pool: Pool, default: FrozenTrial, n: int, *, seed: int) -> Searched:
    """Search as people write it: each process by itself, pruned by the median."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / STUDY
        study = optuna.create_study(
            study_name=STUDY, storage=JournalStorage(JournalFileBackend(str(journal))), direction="maximize"
        )
        study.add_trial(default)
        clock = Clock()
        pool.optimise(journal, data.space, n, seed=seed)
        return summed_up(f"{pool.kind} + median", clock, study, data.n_splits)


def value_of(losses: Sequence[Sequence[float]], data: Set) -> float:
    """Return a trial's value from the losses [T] of its networks: how far below the trivial loss, as in ours."""
    tasks = data.problem.tasks
    return score(np.mean(losses, axis=0), np.ones(len(tasks)), [task.spec.weight for task in tasks])


def told_default(held: Sitting, references: References) -> FrozenTrial:
    """Return trial 0 as our driver tells it, to be added to the studies of the loops."""
    study = new_study()
    Driver(held, study, references).search(n_trials=1)
    return study.trials[0]


def fixed_specs(data: Set, n: int, *, seed: int, trunk: str | None = None) -> list[MemberSpec]:
    """Return n configurations drawn at random from the default space, all of one trunk where it is given."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    specs = []
    for _ in range(n):
        study.enqueue_trial({} if trunk is None else {"trunk": trunk})
        specs.append(data.space.member(data.space.suggest(study.ask())))
    return specs


def train_ours(held: Sitting, specs: Sequence[MemberSpec], goal: int) -> float:
    """Return the seconds that our cohorts take to train configurations up to step `goal`, none pruned."""
    members = [m for i, spec in enumerate(specs) for m in held.members(spec, "fixed", i)]
    started = time.perf_counter()
    trip = held.round(members, seed=0)
    trip.advance(goal, reference=None, deadline=float("inf"))
    return time.perf_counter() - started


def train_loops(pool: Pool, specs: Sequence[MemberSpec], goal: int) -> float:
    """Return the seconds that loops take to train the same."""
    splits = range(pool.data.n_splits)
    jobs = [new_job(spec, seed=stable_seed("fixed", i, s), split=s) for i, spec in enumerate(specs) for s in splits]
    started = time.perf_counter()
    pool.advance(jobs, goal)
    return time.perf_counter() - started


# What follows runs in the processes of a pool.

_rows: Rows
_kind: str
_barrier: Barrier
_taken: Any


def _begin(rows: bytes, kind: str, barrier: Barrier, taken: Any) -> None:
    global _rows, _kind, _barrier, _taken
    torch.set_num_threads(1)
    tune_process()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _rows, _kind, _barrier, _taken = pickle.loads(rows), kind, barrier, taken


def _warm_up(start: bytes) -> None:
    _barrier.wait()  # each process takes one of these
    _made(pickle.loads(start)).advance(_rows, WARM_UP_STEPS, batches=_kind)


def _made(held: Start | Loop) -> Loop:
    return Loop(held.spec, _rows, seed=held.seed, split=held.split) if isinstance(held, Start) else held


def _advance(job: bytes, goal: int) -> tuple[bytes, list[float]]:
    loop = _made(pickle.loads(job))
    loop.advance(_rows, goal, batches=_kind)
    return packed(loop), loop.best_losses


def _optimise(journal: str, packed_space: bytes, n: int, seed: int) -> None:
    space: Space = pickle.loads(packed_space)
    study = optuna.load_study(
        study_name=STUDY,
        storage=JournalStorage(JournalFileBackend(journal)),
        pruner=optuna.pruners.MedianPruner(),
    )
    while True:
        with _taken.get_lock():
            _taken.value += 1
            ordinal = _taken.value
        if ordinal > n:
            return
        study.sampler = make_sampler(stable_seed(seed, "ask", ordinal) % 2**32)
        study.optimize(partial(_objective, space=space, seed=seed, ordinal=ordinal), n_trials=1)


def _objective(trial: optuna.Trial, *, space: Space, seed: int, ordinal: int) -> float:
    spec = space.member(space.suggest(trial))
    splits = range(len(_rows.splits))
    loops = [Loop(spec, _rows, seed=stable_seed(seed, "trial", ordinal, s), split=s) for s in splits]
    steps, value = spec.training.steps, -1.0
    every = max(1, steps // EVALUATIONS)
    for goal in sorted({*range(every, steps, every), steps}):
        for loop in loops:
            loop.advance(_rows, goal, batches=_kind)
        losses = np.mean([loop.best_losses for loop in loops], axis=0)
        value = score(losses, np.ones(len(losses)), [task.spec.weight for task in _rows.tasks])
        trial.report(value, goal)
        if goal < steps and trial.should_prune():
            raise optuna.TrialPruned
    return value
