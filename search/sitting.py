"""One sitting of a search: the data, the space, where it trains and what it knows of time; its phases share it."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from mtl_bento.dataset import Dataset
from mtl_bento.network import Network
from mtl_bento.training import Learned, Member, MemberSpec, Stack, stable_seed
from mtl_bento_search.executors._base import Executor
from mtl_bento_search.problem import Problem
from mtl_bento_search.progress import Progress
from mtl_bento_search.rounds import Packing, Round
from mtl_bento_search.run import Clock, Folder
from mtl_bento_search.space import Space

REPORT_S, REPORT_SHARE = 4.0, 0.03
"""Seconds, and share of the timeout, kept back for the test, the report and the model."""


@dataclass
class Sitting:
    """What all phases of a search work with."""

    problem: Problem
    space: Space
    executor: Executor
    folder: Folder
    clock: Clock
    seed: int
    progress: Progress
    kept_share: float = 0.0
    """Share of the timeout that is kept back for what is trained after the finals."""
    interrupted: bool = False
    """Whether somebody asked to finish with what there is."""
    packing: Packing = field(init=False)
    """The run's own, recorded by its first sitting: a run that goes on elsewhere stacks as it did where it was made."""

    def __post_init__(self) -> None:
        recorded = self.folder.read_state().get("packing")
        if recorded is not None:
            self.packing = Packing.model_validate(recorded)
        else:
            spec = self.space.member(self.space.defaults()).network
            network = Network([spec], self.dataset.inputs, self.dataset.tasks, [0])
            sizes = {"n_features": network.trunk.sizes.n_features, "length": network.most_positions}
            self._record(Packing.suited(self.dataset.device, n_workers=self.executor.n_workers, **sizes))

    def _record(self, packing: Packing) -> None:
        self.packing = packing
        self.folder.note(packing=packing.model_dump(mode="json"))

    @property
    def dataset(self) -> Dataset:
        """The rows."""
        return self.problem.dataset

    @property
    def weights(self) -> list[float]:
        """How much the user cares for each task."""
        return [task.spec.weight for task in self.problem.tasks]

    @property
    def n_splits(self) -> int:
        """Members of a configuration: one a split."""
        return len(self.dataset.splits)

    def members(self, spec: MemberSpec, *identity: Any) -> list[Member]:
        """Return the members of a configuration, one a split, their seeds from what identifies them."""
        return [Member(spec, stable_seed(self.seed, *identity, split), split) for split in range(self.n_splits)]

    def round(
        self, members: Sequence[Member], *, seed: int, packed: Sequence[tuple[list[int], Stack]] | None = None
    ) -> Round:
        """Return a round of members, or of the stacks of one that was on its way, packed as the run packs."""
        return Round(members, self.executor, self.packing, seed=seed, packed=packed, halved=self._stack_fewer)

    def see_margins(self, margins: Sequence[np.ndarray | None]) -> None:
        """Let networks train on top of trees from now on: margins [N, O] of each task, None (0) where it has none."""
        n = self.problem.table.num_rows
        blank = [np.zeros((n, task.n_outputs), dtype=np.float32) for task in self.problem.tasks]
        joined = np.concatenate([b if m is None else m for m, b in zip(margins, blank, strict=True)], axis=1)
        self.problem = replace(self.problem, dataset=self.dataset.with_margins(joined))
        self.executor.change(partial(Dataset.with_margins, margins=joined))

    def trained_on(self, rows: np.ndarray, members: Sequence[Member], *, seed: int) -> list[Learned] | None:
        """Return members trained on rows [B], each `until` its step; None where somebody interrupted.

        No deadline ends it: what is trained again is whole, or it is of no use.
        """
        here = [replace(member, split=0) for member in members]
        self.executor.change(partial(Dataset.with_splits, splits=[(rows, rows[:0])]))
        try:
            trip = self.round(here, seed=seed)
            whole = trip.advance(max(m.spec.training.steps for m in here), reference=None, deadline=math.inf)
        finally:
            self.executor.change(partial(Dataset.with_splits, splits=self.problem.protocol.splits))
        return [stack.trained(k) for _, (stack, k) in sorted(trip.members().items())] if whole else None

    def _stack_fewer(self, packing: Packing) -> None:
        for note in packing.notes[len(self.packing.notes) :]:
            self.progress.say(f"Training: {note}.")
        self._record(packing)

    def deadline(self, reserve_s: float = 0.0) -> float:
        """Return the `time.monotonic()` by which training must end, `reserve_s` earlier than the report needs."""
        share = REPORT_SHARE + self.kept_share
        return self.clock.deadline(REPORT_S + share * (self.clock.timeout_s or 0.0) + reserve_s)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a first Ctrl-C end the training and finish with what there is, and a second one stop at once."""

        def interrupt(_number: int, _frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            self.progress.say(
                "Interrupted: writing model and report from what is finished (Ctrl-C again stops at once)."
            )
            self.executor.stop()

        try:
            held = signal.signal(signal.SIGINT, interrupt)
        except ValueError:  # not the main thread: whoever owns it decides
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, held)
