"""What a report is made of: result.json and the study, read once, with every missing figure a NaN.

Letters: T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mtl_bento_search.verdict import told

Curve = list[tuple[float, float]]
"""(step, value), ascending; a value that was not finite is NaN."""


def number(value: Any) -> float:
    """Return a figure as a float, NaN where it is missing or not finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def known(values: Iterable[float]) -> list[float]:
    """Return the values that are finite."""
    return [value for value in values if math.isfinite(value)]


def curve(points: Any) -> Curve:
    """Return [[step, value], ...] as it is plotted."""
    return [(number(step), number(value)) for step, value in points or []]


@dataclass(frozen=True)
class Against:
    """What the test rows say of a task against an opponent."""

    name: str
    """Who it is: "single-task a at trial 8"."""
    value: float
    difference: float
    """Positive where this model is better, whichever way the metric points."""
    lower: float
    upper: float
    verdict: str
    smallest: float
    """The smallest difference that the rows could have shown, where they showed none; else NaN."""
    error: float
    """How far it is from perfect: 1 - score, or the error itself; NaN where it is not."""
    metrics: dict[str, float]

    @classmethod
    def read(cls, held: dict[str, Any], *, higher_is_better: bool) -> Against:
        """Return an entry of a record's "against"."""
        value = number(held["value"])
        error = 1 - value if higher_is_better else value
        return cls(
            name=held["name"],
            value=value,
            difference=number(held["difference"]),
            lower=number(held["lower"]),
            upper=number(held["upper"]),
            verdict=held["verdict"],
            smallest=number(held["smallest"]),
            error=error if error > 0 else math.nan,
            metrics={name: number(v) for name, v in held["metrics"].items()},
        )

    @property
    def relative(self) -> tuple[float, float, float]:
        """The lower bound, the difference and the upper bound as shares of the opponent's error."""
        low, middle, high = (v / self.error for v in (self.lower, self.difference, self.upper))
        return low, middle, high


@dataclass(frozen=True)
class Comparison:
    """A task on the test rows, beside its opponents."""

    name: str
    kind: str
    metric: str
    higher_is_better: bool
    ours: float
    interval: tuple[float, float]
    served_by: dict[str, float]
    """Who answers, with their shares."""
    n_test: int
    metrics: dict[str, float]
    """Every metric of the task's kind."""
    values: dict[str, float]
    """The metric of every arm."""
    losses: dict[str, float]
    """Of every arm, in units of the trivial predictor's."""
    against: dict[str, Against]

    @classmethod
    def read(cls, record: dict[str, Any]) -> Comparison:
        """Return a record of result.json."""
        low, high = (number(v) for v in record["interval"])
        higher = bool(record["higher_is_better"])
        return cls(
            name=record["task"],
            kind=record["kind"],
            metric=record["metric"],
            higher_is_better=higher,
            ours=number(record["ours"]),
            interval=(low, high),
            served_by=record["served_by"],
            n_test=int(record["n_test"]),
            metrics={name: number(v) for name, v in record["metrics"].items()},
            values={arm: number(v) for arm, v in record["values"].items()},
            losses={arm: number(v) for arm, v in record["losses"].items()},
            against={arm: Against.read(a, higher_is_better=higher) for arm, a in record["against"].items()},
        )


@dataclass(frozen=True)
class Point:
    """A trial in the history: its gain, NaN where it was pruned before it had one."""

    number: int
    gain: float
    complete: bool


class Facts:
    """Everything that a page says."""

    def __init__(self, result: dict[str, Any], study: optuna.Study) -> None:
        self.result, self.study = result, study

    @cached_property
    def trials(self) -> dict[int, FrozenTrial]:
        """The study's trials by number."""
        return {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}

    @cached_property
    def tested(self) -> list[Comparison]:
        """The tasks on the test rows; empty where none were kept."""
        return [Comparison.read(record) for record in self.result["tasks"]]

    @cached_property
    def opponents(self) -> list[str]:
        """The arms that the tasks are compared with."""
        return told(self.result["tasks"])

    @cached_property
    def names(self) -> list[str]:
        """Names of the tasks [T]."""
        return list(self.result["single_task_losses"])

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Kind of each task."""
        return {target["name"]: target["kind"] for target in self.result["targets"]}

    @cached_property
    def single_losses(self) -> dict[str, float]:
        """Validation loss of each task alone; 1 is the trivial predictor's."""
        return {task: number(loss) for task, loss in self.result["single_task_losses"].items()}

    @property
    def best(self) -> int:
        """Number of the chosen trial."""
        return int(self.result["trials"]["best"])

    @cached_property
    def history(self) -> list[Point]:
        """The trials in their order."""
        return [Point(int(n), number(v), state == "complete") for n, v, state in self.result["trials"]["gains"]]

    @cached_property
    def complete(self) -> list[Point]:
        """The complete trials, the best first."""
        held = [point for point in self.history if point.complete and math.isfinite(point.gain)]
        return sorted(held, key=lambda point: (-point.gain, point.number))

    @cached_property
    def task_gains(self) -> dict[int, list[float]]:
        """Gains [T] of each complete trial."""
        return {int(n): [number(v) for v in values] for n, values in self.result["trials"]["task_gains"]}

    def attribute(self, trial: int, key: str) -> float:
        """Return a figure that the study keeps with a trial, NaN where it keeps none."""
        held = self.trials.get(trial)
        return number(held.user_attrs.get(key)) if held is not None else math.nan

    def validation(self, task: str) -> tuple[float, float, float]:
        """Return a task's validation losses, alone and in the chosen trial, and the gain."""
        gains = dict(zip(self.names, self.task_gains.get(self.best, []), strict=False))
        return self.single_losses[task], self.attribute(self.best, f"val.{task}.loss"), gains.get(task, math.nan)

    def training_curve(self, trial: int) -> Curve:
        """Return a trial's gain while it trained: at every look where kept, else at its rungs."""
        if found := curve(self.result["curves"]["trials"].get(str(trial))):
            return found
        held = self.trials.get(trial)
        return [] if held is None else [(float(s), number(v)) for s, v in sorted(held.intermediate_values.items())]

    def reference_curve(self, task: str) -> Curve:
        """Return the validation loss of a task alone while it trained."""
        return curve(self.result["curves"]["references"].get(task))

    @cached_property
    def n_failed(self) -> int:
        """Trials that failed, in the history of the study only."""
        return sum(trial.state == TrialState.FAIL for trial in self.trials.values())


def front(points: dict[int, tuple[float, float]]) -> list[int]:
    """Return which points no other beats in both values, by ascending first value."""
    found: list[int] = []
    highest = -math.inf
    for key, (_, second) in sorted(points.items(), key=lambda item: (-item[1][0], -item[1][1], item[0])):
        if second > highest:
            found.append(key)
            highest = second
    return found[::-1]
