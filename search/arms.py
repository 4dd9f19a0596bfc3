"""The arms of the comparison: what is served, and what a user could have had instead, each chosen on validation rows.

Letters: T tasks, B rows, O numbers of an answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch

from mtl_bento.errors import RunError
from mtl_bento.model import Model
from mtl_bento_search.finals import Finals, answers_on, trees_name
from mtl_bento_search.problem import Problem
from mtl_bento_search.said import rounded
from mtl_bento_search.select import NETWORKS, Answers, Candidate, Choice, best_of, choose, finite
from mtl_bento_search.trivial import constant_answer

LATENCY_ROWS = (1, 64)
"""Rows of the requests whose time `max_latency_ms` bounds."""
TIMED = 5
"""How often a request is timed; the median counts."""
ENOUGH_S = 2.0
"""Seconds after which a request is not timed again, once it was beside the one that warms up."""


@dataclass(frozen=True)
class Arm:
    """One way to answer all tasks."""

    answers: Sequence[np.ndarray | None]
    """On some rows, [B, O] a task; None where it has none."""
    served_by: Sequence[dict[str, float]]
    """Who answers each task: shares by name."""


@dataclass(frozen=True)
class Arms:
    """Who answers in each arm, by task."""

    problem: Problem
    finals: Finals
    ours: Choice
    most: int
    """Candidates that may serve a task."""
    _answered: dict[str, Answers] = field(default_factory=dict, repr=False)

    @cached_property
    def networks(self) -> Choice | None:
        """What networks alone would have served, the best of them; None where ours are such, or there is none."""
        if all(c.kind in NETWORKS for c in self.ours.candidates):
            return None
        return self._choice(NETWORKS)

    @cached_property
    def ensemble(self) -> Choice | None:
        """Single-task networks mixed as ours are: what fusion gives without sharing; None where a task has none."""
        return self._choice(("single",))

    @cached_property
    def single(self) -> list[Candidate | None]:
        """Each task's single-task network that is best on validation; None where none answers in numbers."""
        found = [best_of(self.finals.finalists, self.problem.dataset, t, "single") for t in range(self.n_tasks)]
        return [None if finalist is None else finalist.candidate for finalist in found]

    def _choice(self, kinds: Sequence[str]) -> Choice | None:
        """Return the choice among some kinds: an arm that diverged ends no run in which another serves."""
        try:
            return choose(self.finals.finalists, self.problem.dataset, most=self.most, kinds=kinds)
        except RunError:
            return None

    @property
    def n_tasks(self) -> int:
        """T."""
        return len(self.problem.tasks)

    def out_of_fold(self) -> list[np.ndarray]:
        """Return what is served on every validation row, each by members that did not learn it: [V, O] a task."""
        by_name = {f.candidate.name: f.answers for f in self.finals.finalists}
        held = [by_name[c.name] for c in self.ours.candidates]
        return [self.ours.mixed(held, t) for t in range(self.n_tasks)]

    def answered(self, rows: np.ndarray) -> dict[str, Arm]:
        """Return what each arm answers on rows [B], and by whom."""
        defaults = [self.finals.named(f"single-task {name}").candidate for name in self.problem.names]
        found = {
            "ours": self._mixed(self.ours, rows),
            "single_task": self._each(self.single, rows),
            "single_task_default": self._each(defaults, rows),
        }
        for name, choice in (("ensemble", self.ensemble), ("networks", self.networks)):
            if choice is not None:
                found[name] = self._mixed(choice, rows)
        named = {f.candidate.name: f.candidate for f in self.finals.finalists}
        if (default := named.get("trial 0")) is not None:
            found["shared_default"] = self._each([default] * self.n_tasks, rows)
        grown = [named.get(trees_name(name)) for name in self.problem.names]
        if any(c is not None for c in grown):
            found["trees"] = self._each(grown, rows)
        found["trivial"] = self._trivial(len(rows))
        return found

    def _each(self, candidates: Sequence[Candidate | None], rows: np.ndarray) -> Arm:
        """Return the arm of one candidate a task; no answers where it has none, or one that is no number."""
        answers = [None if c is None else finite(self._of(c, rows)[t]) for t, c in enumerate(candidates)]
        return Arm(answers, [{} if c is None else {c.name: 1.0} for c in candidates])

    def _mixed(self, choice: Choice, rows: np.ndarray) -> Arm:
        each = [self._of(c, rows) if choice.shares[:, i].any() else () for i, c in enumerate(choice.candidates)]
        mixed = [choice.mixed(each, t) for t in range(self.n_tasks)]
        return Arm(mixed, [choice.served_by(t) for t in range(self.n_tasks)])

    def _trivial(self, n: int) -> Arm:
        learned = torch.from_numpy(self.problem.protocol.learned)
        targets = self.problem.dataset.targets
        held = zip(self.problem.tasks, targets, strict=True)
        constants = [constant_answer(task, y.cpu()[learned]) for task, y in held]
        answers = [np.broadcast_to(constant, (n, len(constant))) for constant in constants]
        return Arm(answers, [{"learned nothing": 1.0}] * self.n_tasks)

    def _of(self, candidate: Candidate, rows: np.ndarray) -> Answers:
        key = f"{candidate.name}|{hash(rows.tobytes())}"
        if key not in self._answered:
            self._answered[key] = answers_on(self.problem, candidate, rows)
        return self._answered[key]


def latencies_ms(model: Model, table: pa.Table) -> dict[int, float]:
    """Return the milliseconds that a model takes for a request of one row and of 64, by rows: the median.

    Slow ones, such as of texts, are timed less often: they vary less, and a search shall not end in minutes of timing.
    """
    found = {}
    for n in LATENCY_ROWS:
        rows = table.take(pa.array(np.arange(n) % max(1, table.num_rows)))
        times = []
        for _ in range(TIMED + 1):  # the first warms up
            started = time.perf_counter()
            model.rows(rows)
            times.append(time.perf_counter() - started)
            if len(times) > 1 and sum(times) > ENOUGH_S:
                break
        found[n] = float(np.median(times[1:])) * 1e3
    return found


def too_slow(bound: float, fastest: float) -> RunError:
    """Return the error of a bound that no choice of members meets."""
    return RunError(
        f"--max-latency-ms {bound:g} cannot be met: the smallest choice of members takes {rounded(fastest)} ms here. "
        f"Allow {rounded(fastest * 1.2)} or more, or search smaller networks: `search: {{space: {{width: 64}}}}`."
    )


def sizes_tried(most: int) -> Sequence[int]:
    """Return how many candidates may serve a task, from the most that is allowed down to one."""
    tried = [most]
    while tried[-1] > 1:
        tried.append(tried[-1] // 2)
    return tried
