"""What the test rows say of each task: a record of every arm, and a verdict against each opponent.

An *arm* is a way to answer all tasks that a user could have had: "ours" (what is served), "single_task" (each task's
best single-task network), "ensemble" (single-task networks mixed as ours are), "trees" (tuned), and others that are
shown by their figures alone. Which arms there are is up to the caller: an arm that is not given is not spoken of.

A verdict rests on the difference in the task's own metric on the same rows, by a paired bootstrap:

    better          the corrected p-value is at most .05, and ours is ahead
    worse           the same, and the opponent is ahead
    tie             no difference is shown, and its 95 % interval lies within 1 % of the opponent's figure either way
    inconclusive    no difference is shown, and the rows are too few for a tie; `smallest` says what they could show
    same            one and the same answers: nothing was compared
    not measurable  the metric is undefined on these rows

P-values are corrected by Holm's method over the tasks, for each opponent by itself.

Letters: T tasks, B test rows, O numbers of an answer.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_bento.tasks._base import Task
from mtl_bento_search import metrics

LEVEL = 0.05
"""Chance of any wrong "better" or "worse" against an opponent, over all tasks together."""
TIE = 0.01
"""Share of the opponent's figure that still counts as none."""
BETTER, WORSE, TIED, INCONCLUSIVE, SAME, UNKNOWN = "better", "worse", "tie", "inconclusive", "same", "not measurable"
OPPONENTS = {
    "single_task": "single-task",
    "ensemble": "single-task ensemble",
    "trees": "tuned trees",
    "student": "its student",
}
"""Arms that ours is compared with, in the order in which they are told, with their names."""
NOUNS = {
    "single_task": "single-task networks",
    "ensemble": "single-task ensembles",
    "trees": "tuned trees",
    "student": "the student's answers",
}
"""The same in a sentence."""
ARMS = {
    "ours": "this model",
    **OPPONENTS,
    "networks": "networks only",
    "single_task_default": "single-task at the defaults",
    "shared_default": "shared at the defaults",
    "trivial": "learned nothing",
}
"""Every arm that may be told, by its key in a record."""
RULE = (
    "Better and worse hold after Holm's correction over the targets, at 5 %. Tie: the 95 % interval of the difference "
    "lies within 1 % of the other's figure either way. Inconclusive: too few rows for either."
)
"""How verdicts are given, in words."""

Answers = Sequence[np.ndarray | None]
"""Answers [B, O] by task, None where an arm has none."""
Served = Mapping[str, float]
"""Who answers a task: shares by name."""


def verdicts(
    tasks: Sequence[Task[Any]],
    truths: Sequence[np.ndarray],
    arms: Mapping[str, Answers],
    *,
    served_by: Mapping[str, Sequence[Served]],
    losses: Mapping[str, Sequence[float]] | None = None,
    weights: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Return a record per task: figures of every arm, and under "against" a verdict for each opponent there is.

    Args:
        tasks: placed on the test rows.
        truths: labels of the test rows by task, as `Task.truth` gives them.
        arms: "ours" and others, with their answers.
        served_by: for each arm, who answers each task. What is served by the same in the same shares is the same.
        losses: for each arm, the mean loss of each task in units of the trivial predictor's.
        weights: of the rows [B], or None for equal ones.
    """
    records = [
        _record(
            task,
            truths[t],
            {arm: answers[t] for arm, answers in arms.items()},
            {arm: served[t] for arm, served in served_by.items()},
            weights,
        )
        for t, task in enumerate(tasks)
    ]
    for t, record in enumerate(records):
        record["losses"] = {arm: held[t] for arm, held in (losses or {}).items()}
    for opponent in OPPONENTS:
        decide([record["against"][opponent] for record in records if opponent in record["against"]])
    return records


def _record(
    task: Task[Any],
    truth: np.ndarray,
    answers: Mapping[str, np.ndarray | None],
    served_by: Mapping[str, Served],
    weights: np.ndarray | None,
) -> dict[str, Any]:
    """Return a task's record; in "against" there is the difference itself, of which `decide` makes a verdict."""
    scored = {arm: task.scored(answer) for arm, answer in answers.items() if answer is not None}
    others = [arm for arm in OPPONENTS if arm in scored]
    every = {
        arm: {name: metrics.measure(name, truth, scored[arm], weights) for name in task.metrics}
        for arm in ("ours", *others)
    }
    values = {
        arm: every[arm][task.metric] if arm in every else metrics.measure(task.metric, truth, each, weights)
        for arm, each in scored.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a metric is undefined; NaN says it
        own, differences = metrics.compared(
            task.metric, truth, scored["ours"], [scored[arm] for arm in others], weights=weights
        )
    against = {
        arm: {
            "name": names(served_by[arm]),
            "value": values[arm],
            "difference": difference,
            "same": served_by[arm] == served_by["ours"],
            "metrics": every[arm],
        }
        for arm, difference in zip(others, differences, strict=True)
    }
    return {
        "task": task.name,
        "kind": task.spec.kind,
        "metric": task.metric,
        "higher_is_better": metrics.METRICS[task.metric].higher_is_better,
        "ours": values["ours"],
        "interval": own,
        "n_test": int(metrics.known_rows(truth).sum()),
        "served_by": dict(served_by["ours"]),
        "metrics": every["ours"],
        "values": values,
        "against": against,
    }


def decide(held: Sequence[dict[str, Any]]) -> None:
    """Turn the differences of all tasks to one opponent into verdicts, in place.

    Each record comes with "difference" (a `metrics.Difference`), "value" (the opponent's figure) and "same" (whether
    both are one and the same answers), and has difference, lower, upper, p, p_corrected, verdict and smallest then.

    A task whose answers are the opponent's own, or whose metric is undefined, is no comparison and corrects no other.
    """
    found: list[metrics.Difference] = [entry["difference"] for entry in held]
    same = [entry.pop("same") for entry in held]
    corrected = holm([math.nan if kept else d.p for d, kept in zip(found, same, strict=True)])
    shown = [p <= LEVEL for p in corrected]  # NaN is not
    # From here a task not yet shown would be: Holm asks this of the smallest p-value that is left.
    level = LEVEL / max(1, sum(not math.isnan(p) for p in corrected) - sum(shown))
    for entry, d, kept, p, is_shown in zip(held, found, same, corrected, shown, strict=True):
        low, high = (0.0, 0.0) if kept else d.interval
        word = SAME if kept else _word(d, entry["value"], shown=is_shown)
        entry |= {
            "difference": 0.0 if kept else d.difference,
            "lower": low,
            "upper": high,
            "p": math.nan if kept else d.p,
            "p_corrected": p,
            "verdict": word,
            "smallest": d.shown_from(level) if word == INCONCLUSIVE else math.nan,
        }


def _word(difference: metrics.Difference, other: float, *, shown: bool) -> str:
    if math.isnan(difference.difference):
        return UNKNOWN
    if shown:
        return BETTER if difference.difference > 0 else WORSE
    low, high = difference.interval
    return TIED if max(-low, high) <= TIE * abs(other) else INCONCLUSIVE  # NaN is inconclusive


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method (1979); NaN stays, and does not count."""
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    found, highest = [math.nan] * len(p), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p[i]))
        found[i] = highest
    return found


def names(served: Served) -> str:
    """Return who answers a task in words: "trial 8", or "trial 8 (60 %), single-task a (40 %)", the most first."""
    if len(served) == 1:
        return next(iter(served))
    most_first = sorted(served.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} ({100 * share:.0f} %)" for name, share in most_first)


def told(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the opponents that records speak of, in their order."""
    return [arm for arm in OPPONENTS if any(arm in record["against"] for record in records)]
