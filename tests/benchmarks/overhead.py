"""What the driver takes beside training: a long search whose networks are not trained, timed part by part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from mtl_bento.dataset import Dataset
from mtl_bento.network import Network
from mtl_bento.training import EVALUATIONS, Member, MemberState, Stack
from mtl_bento_search import study as driving
from mtl_bento_search.executors._base import Change, Executor
from mtl_bento_search.rounds import Round
from mtl_bento_search.storage import open_storage
from mtl_bento_search.study import Driver
from tests.benchmarks.sets import Set, new_study, sitting, trial_zero
from tests.benchmarks.timers import TRAINING, Timers, resident_mb

PARTS: list[tuple[Any, str, str]] = [
    (Driver, "_ask", "asking"),
    (JournalFileBackend, "append_logs", "storing"),
    (JournalStorage, "_sync_with_backend", "storing"),
    (Driver, "_thin", "reporting"),
    (Driver, "_note_curves", "reporting"),
    (Driver, "_prune", "telling"),
    (Driver, "_complete_all", "telling"),
    (Driver, "_valid_metrics", "metrics"),
    (driving, "save_round", "checkpoints"),
    (driving, "save_members", "checkpoints"),
    (Round, "keep", "stacking"),
    (Round, "__init__", "stacking"),
]
"""What is timed, and as what; time in a part that is called by another counts for the inner one alone."""
REST = "the rest"


class Pretended(Executor):
    """Returns stacks at once, their weights as they began, with made-up losses that fall as steps are taken."""

    def __init__(self, dataset: Dataset, n_workers: int) -> None:
        self.dataset, self._n_workers = dataset, n_workers

    @property
    def n_workers(self) -> int:
        """As many as the real executor would have: stacks are cut by it."""
        return self._n_workers

    def advance(
        self, stacks: Sequence[Stack], goal: int, *, reference: Sequence[float] | None, deadline: float
    ) -> list[Stack]:
        """Return every stack at step `goal`."""
        del reference, deadline
        return [self._advanced(stack, goal) for stack in stacks]

    def _advanced(self, stack: Stack, goal: int) -> Stack:
        steps = stack.members[0].spec.training.steps
        every = max(1, steps // EVALUATIONS)
        looks = sorted({*range(stack.step + every, goal, every), goal})
        curve = tuple((step, [self._losses(m, step / steps) for m in stack.members]) for step in looks)
        states = [
            replace(state, score=float(np.mean(losses)), losses=losses)
            for state, losses in zip(stack.states or self._begun(stack), curve[-1][1], strict=True)
        ]
        return replace(stack, step=goal, states=tuple(states), curve=(*stack.curve, *curve))

    def _begun(self, stack: Stack) -> list[MemberState]:
        dataset, members = self.dataset, stack.members
        network = Network([m.spec.network for m in members], dataset.inputs, dataset.tasks, [m.seed for m in members])
        names = ("data", "first", "second", "best")
        return [MemberState({n: network.member_state(k) for n in names}, 0.0, [], 0) for k in range(len(members))]

    def _losses(self, member: Member, share: float) -> list[float]:
        """Return a loss [T] between 0.3 and 1 by how much of the budget is used."""
        lowest = np.random.default_rng(member.seed).uniform(0.3, 0.6, len(self.dataset.tasks))
        return [float(low + (1 - low) * math.exp(-5 * share)) for low in lowest]

    def change(self, change: Change) -> None:
        """Nobody reads the rows."""
        del change

    def stop(self) -> None:
        """Nothing trains."""

    def close(self) -> None:
        """There is no worker to end."""


@dataclass(frozen=True)
class Mark:
    """The driver after so many trials."""

    n_trials: int
    seconds: dict[str, float]
    """By part, from the first trial on; the pretended training is not among them."""
    memory_mb: float
    """Resident memory of the driver's process."""

    @property
    def total_s(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())


def driver_marks(data: Set, at: Sequence[int], *, n_workers: int, seed: int) -> list[Mark]:
    """Search to as many trials as the last of `at` without training, and note where the driver stands at each."""
    timers = Timers()
    marks: list[Mark] = []

    def mark(study: optuna.Study, trial: FrozenTrial) -> None:
        del trial
        n = sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))
        if n in at:
            parts = {part: seconds for part, seconds in timers.seconds.items() if part != TRAINING}
            marks.append(Mark(n, parts, resident_mb()))

    with sitting(data, executor := Pretended(data.problem.dataset, n_workers), seed=seed) as held:
        storage = open_storage(held.folder.path, None)
        driver = Driver(held, new_study(storage), trial_zero(held), callbacks=[mark])
        with timers.wrapping([*PARTS, (executor, "advance", TRAINING)]), timers.during(REST):
            driver.search(n_trials=max(at))
    return marks
