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

from mtl_bento.errors import RunError
from mtl_bento.model import Model
from mtl_bento_search.finals import Finals, answers_on
from mtl_bento_search.problem import Problem
from mtl_bento_search.select import NETWORKS, Answers, Candidate, Choice, best_of, choose

LATENCY_ROWS = (1, 64)
"""Rows of the requests whose time `max_latency_ms` bounds."""
TIMED = 5
"""How often a request is timed; the median counts."""


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
        """What networks alone would have served, the best of them; None where ours are such."""
        if all(c.kind in NETWORKS for c in self.ours.candidates):
            return None
        return choose(self.finals.finalists, self.problem.dataset, most=self.most, kinds=NETWORKS)

    @cached_property
    def ensemble(self) -> Choice:
        """Single-task networks mixed as ours are: what fusion gives without sharing."""
        return choose(self.finals.finalists, self.problem.dataset, most=self.most, kinds=("single",))

    @cached_property
    def single(self) -> list[Candidate]:
        """Each task's single-task network that is best on validation."""
        found = [best_of(self.finals.finalists, self.problem.dataset, t, "single") for t in range(self.n_tasks)]
        return [finalist.candidate for finalist in found if finalist is not None]

    @property
    def n_tasks(self) -> int:
        """T."""
        return len(self.problem.tasks)

    def answers(self, rows: np.ndarray) -> dict[str, list[np.ndarray | None]]:
        """Return what each arm answers on rows [B]: [B, O] a task, None where it has no answer."""
        defaults = [self._named(f"single-task {name}") for name in self.problem.names]
        found: dict[str, list[np.ndarray | None]] = {
            "ours": self._mixed(self.ours, rows),
            "single_task": [self._of(c, rows)[t] for t, c in enumerate(self.single)],
            "single_task_default": [self._of(c, rows)[t] for t, c in enumerate(defaults)],
            "ensemble": self._mixed(self.ensemble, rows),
        }
        if self.networks is not None:
            found["networks"] = self._mixed(self.networks, rows)
        trial_0 = [f.candidate for f in self.finals.finalists if f.candidate.name == "trial 0"]
        if trial_0:
            found["shared_default"] = list(self._of(trial_0[0], rows))
        grown = {f.candidate.tasks: f.candidate for f in self.finals.finalists if f.candidate.kind == "trees"}
        if grown:
            held = [grown.get((name,)) for name in self.problem.names]
            found["trees"] = [None if c is None else self._of(c, rows)[t] for t, c in enumerate(held)]
        return found

    def _named(self, name: str) -> Candidate:
        return self.finals.named(name).candidate

    def _mixed(self, choice: Choice, rows: np.ndarray) -> list[np.ndarray | None]:
        each = [self._of(c, rows) if choice.shares[:, i].any() else () for i, c in enumerate(choice.candidates)]
        return [choice.mixed(each, t) for t in range(self.n_tasks)]

    def _of(self, candidate: Candidate, rows: np.ndarray) -> Answers:
        key = f"{candidate.name}|{hash(rows.tobytes())}"
        if key not in self._answered:
            self._answered[key] = answers_on(self.problem, candidate, rows)
        return self._answered[key]


def latency_ms(model: Model, table: pa.Table) -> float:
    """Return the milliseconds that a model takes for a request, the most of those of one row and of 64: the median."""
    worst = 0.0
    for n in LATENCY_ROWS:
        rows = table.take(pa.array(np.arange(n) % max(1, table.num_rows)))
        times = []
        for _ in range(TIMED + 1):  # the first warms up
            started = time.perf_counter()
            model.rows(rows)
            times.append(time.perf_counter() - started)
        worst = max(worst, float(np.median(times[1:])) * 1e3)
    return worst


def too_slow(bound: float, fastest: float) -> RunError:
    """Return the error of a bound that no choice of members meets."""
    return RunError(
        f"--max-latency-ms {bound:g} cannot be met: the smallest choice of members takes {fastest:.2g} ms here. "
        f"Allow {fastest * 1.2:.2g} or more, or search smaller networks: `search: {{space: {{width: 64}}}}`."
    )


def sizes_tried(most: int) -> Sequence[int]:
    """Return how many candidates may serve a task, from the most that is allowed down to one."""
    tried = [most]
    while tried[-1] > 1:
        tried.append(tried[-1] // 2)
    return tried
