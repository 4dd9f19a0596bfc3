"""What a model's answers rest on: importance of inputs by permutation, and each answer's own by leaving inputs out.

Both read a model only by what it answers, so they serve any blend of members. Inputs are changed as cells of the table,
before anything is encoded: a date, a picture or a vector changes as a whole.

Letters: T tasks, B rows, O numbers of an answer.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mtl_bento.errors import SchemaError, SpecError, listing, nearest
from mtl_bento.model import Model
from mtl_bento_search.problem import Problem

REPEATS = 3
"""Permutations of each input."""
MOST_ROWS = 1_000
"""Rows that importance is measured on at most."""
FEWEST = 20
"""Rows of a part, where it has as many, below which an importance is not measured faster."""
ANSWERED = 50
"""Rows that are answered for an importance, in rows of the largest request that the inputs allow: 50,000 of a table,
3,200 of pictures."""
SPENT_S, SPENT_SHARE = 1.0, 0.01
"""Seconds, and share of the timeout, that the importance of inputs may take at the end of a search."""


def out_of_fold_importance(
    model: Model, problem: Problem, *, timeout_s: float | None = None
) -> list[dict[str, Any]] | None:
    """Return `importance` on validation rows, each judged by members that did not learn it; None without time for it.

    Args:
        model: served by candidates of one member a split each, in the order of the splits.
        problem: what it learned from.
        timeout_s: of the whole search. Without one it is always the same work, and the same result.
    """
    deadline = float("inf") if timeout_s is None else time.monotonic() + SPENT_S + SPENT_SHARE * timeout_s
    splits = [valid for _, valid in problem.protocol.splits]
    rows = affordable_rows(model, np.concatenate(splits))
    parts = [(of_split(model, split, len(splits)), np.intersect1d(valid, rows)) for split, valid in enumerate(splits)]
    return importance(parts, problem.table, deadline=deadline)


def of_split(model: Model, split: int, n: int) -> Model:
    """Return the members of a model that learned in one of n splits, with their shares."""
    blend = model.blend[:, split::n]
    return dataclasses.replace(
        model, members=model.members[split::n], blend=blend / blend.sum(1, keepdims=True), card={}
    )


def importance(
    parts: Sequence[tuple[Model, np.ndarray]],
    table: pa.Table,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
    deadline: float = float("inf"),
) -> list[dict[str, Any]] | None:
    """Return by how much the loss of each task rises when an input's cells are shuffled among the rows.

    Permutation importance (Breiman, 2001). Ours differs: the unit is the loss of the best constant answer, so that the
    tasks compare; the interval is that of the mean over rows of each row's own rise, 95 %, shuffles averaged before.
    Inputs that say the same stand in for one another and look unimportant alone; name them together in `groups`.

    Args:
        parts: pairs of a model and the rows of the table that it is judged by: with folds, each fold's own members on
            the rows that they did not learn.
        table: inputs and labels.
        groups: inputs that are shuffled together, by the name of the group; every other input is a group of its own.
        repeats: shuffles of each group.
        seed: of the shuffles.
        deadline: the `time.monotonic()` after which no other shuffle begins; fewer rows are used where all would take
            longer, which their wider intervals say.

    Returns one record per task and group, {task, input, importance, lower, upper}, the most important first in each
    task; None where the deadline left no time for one shuffle of every group.

    Raises SpecError for a group of what is no input, SchemaError where the table has none of the labels.
    """
    model = parts[0][0]
    held = groups_of(model, table, groups)
    parts = [(model, rows) for model, rows in parts if len(rows)]
    began = time.monotonic()
    judges = [_Judge(model, table, rows) for model, rows in parts]
    # The rows as they are tell how long one shuffle takes; each group's first one shall be done in half the time left.
    now = time.monotonic()
    share = (deadline - now) / (2 * len(held) * (now - began))
    if share < 1:
        judges = [_Judge(model, table, rows[:: max(1, _step(len(rows), share))]) for model, rows in parts]
    rng = np.random.default_rng(seed)
    rises: dict[str, list[np.ndarray]] = {name: [] for name in held}
    for repeat in range(repeats):
        for name, columns in held.items():
            if time.monotonic() > deadline:
                if repeat == 0:
                    return None
                break
            rises[name].append(np.concatenate([judge.rise(columns, rng) for judge in judges], axis=1))
    units = _units(judges)
    records = []
    for t, task in enumerate(judges[0].names):
        own = [_record(task, name, np.mean([rise[t] for rise in found], 0) / units[t]) for name, found in rises.items()]
        records += sorted(own, key=lambda record: -record["importance"])
    return records


def _step(n: int, share: float) -> int:
    """Return which of n rows are kept, every so many, to keep a share of them, and FEWEST at least."""
    return min(int(np.ceil(1 / max(share, 1e-9))), n // FEWEST)


def affordable_rows(model: Model, rows: np.ndarray, *, repeats: int = REPEATS, seed: int = 0) -> np.ndarray:
    """Return the rows that the importance of a model's inputs is measured on: as many as are quickly answered."""
    asked = repeats * len(model.schema.columns) + 1
    most = max(1, min(MOST_ROWS, ANSWERED * model.schema.max_rows // asked))
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def explain(
    model: Model, table: pa.Table, *, groups: Mapping[str, Sequence[str]] | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Return, for each task, by how much each input changes each row's answer: {task: {input: [B]}}.

    The change from the answer without the input (its cell missing) to the answer with it: of a number in its own unit,
    of a label in the probability of the likeliest one; of answers by position the mean change of their numbers,
    without a sign. 0 where the cell was missing.

    Raises SpecError for a group of what is no input, SchemaError where the table has no input.
    """
    held = groups_of(model, table, groups)
    whole = model.answers(table)
    changes: dict[str, dict[str, np.ndarray]] = {task.name: {} for task in model.tasks}
    for name, columns in held.items():
        without = model.answers(_replaced(table, {c: pa.nulls(table.num_rows, table[c].type) for c in columns}))
        for task in model.tasks:
            changes[task.name][name] = task.change(whole[task.name], without[task.name])
    return changes


def groups_of(model: Model, table: pa.Table, groups: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    """Return the inputs that change together, by name: the groups given, and each other input of the table alone."""
    inputs = [name for name in model.schema.names if name in table.column_names]
    if not inputs:
        raise SchemaError(
            f"The table has none of the model's inputs ({listing(map(repr, model.schema.names))}); add them."
        )
    grouped: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for name, columns in (groups or {}).items():
        for column in [columns] if isinstance(columns, str) else columns:
            if column not in inputs:
                raise SpecError(
                    f"Group {name!r}: there is no input {column!r}{nearest(column, inputs) or '.'} "
                    f"Inputs: {listing(inputs)}."
                )
            if column in seen:
                raise SpecError(f"Group {name!r}: input {column!r} is in a group already; name each input once.")
            seen.add(column)
            grouped[name] = (*grouped.get(name, ()), column)
    alone = [name for name in inputs if name not in seen]
    if both := [name for name in alone if name in grouped]:
        raise SpecError(f"Group {both[0]!r} has the name of an input that is not in it; give it another.")
    return grouped | {name: (name,) for name in alone}


class _Judge:
    """A model, some rows with their labels, and the losses of its answers on them as they are."""

    def __init__(self, model: Model, table: pa.Table, rows: np.ndarray) -> None:
        self.model = model
        self.table = table.take(pa.array(rows))
        tasks = [task for task in model.tasks if task.name in table.column_names]
        if not tasks:
            raise SchemaError(
                f"The table has none of the targets ({listing(model.targets)}); importance needs their labels."
            )
        self.tasks = [task.place(self.table, model.schema.columns) for task in tasks]
        self.names = [task.name for task in tasks]
        self.targets = [torch.from_numpy(task.encode(self.table[task.name])) for task in self.tasks]
        self.losses = self._losses(self.table)

    def rise(self, columns: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """Return each row's rise of the loss under one shuffle: [T, B], NaN where the label is missing."""
        order = pa.array(rng.permutation(self.table.num_rows))
        shuffled = _replaced(self.table, {c: self.table[c].take(order) for c in columns})
        return np.asarray(self._losses(shuffled) - self.losses)

    def _losses(self, table: pa.Table) -> np.ndarray:
        answers = self.model.answers(table)
        found = [
            task.answer_losses(torch.from_numpy(answers[task.name]), targets).double().numpy()
            for task, targets in zip(self.tasks, self.targets, strict=True)
        ]
        return np.stack(found)


def _units(judges: Sequence[_Judge]) -> list[float]:
    """Return each task's loss of the best constant answer on all rows."""
    targets = [torch.cat(parts) for parts in zip(*(judge.targets for judge in judges), strict=True)]
    return [task.trivial_loss(labels) for task, labels in zip(judges[0].tasks, targets, strict=True)]


def _record(task: str, name: str, rises: np.ndarray) -> dict[str, Any]:
    known = rises[~np.isnan(rises)]
    mean = float(known.mean()) if len(known) else float("nan")
    slack = 1.96 * float(known.std(ddof=1)) / len(known) ** 0.5 if len(known) > 1 else float("nan")
    return {"task": task, "input": name, "importance": mean, "lower": mean - slack, "upper": mean + slack}


def _replaced(table: pa.Table, cells: Mapping[str, Any]) -> pa.Table:
    for name, values in cells.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table
