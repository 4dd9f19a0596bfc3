"""Which test rows a run's report shows, with their pictures and texts: what was there, and what is answered.

A page may be passed on, so no training row may be in it (promise 7 of the design): only rows of the locked test are
picked, and the search has no other way into the section. In what form they stand in result.json, `report.panels` says.

Letters: B test rows, O numbers of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mtl_bento import table as tables
from mtl_bento.columns._base import Column
from mtl_bento.columns.image import is_picture
from mtl_bento.encoders._base import has_positions
from mtl_bento.errors import SchemaError
from mtl_bento.model import Model
from mtl_bento.tasks._base import Task
from mtl_bento_search.problem import Problem
from mtl_bento_search.report.panels import Panel, gather, pick

MOST_TASKS = 12
"""Tasks that are shown, so that a page stays within a few megabytes: first those whose answers lie in their input."""
LISTED = "probabilities"
"""What of an answer is not kept."""

Cell = bytes | str | None


def shown(problem: Problem, model: Model, answered: Sequence[np.ndarray], *, seed: int = 0) -> dict[str, Any] | None:
    """Return what result.json holds under "shown", or None where there is no test, no picture and no text.

    Args:
        problem: the data, with the locked test rows.
        model: the model that is served; the answers shown are its own.
        answered: what is served for each task on the test rows, [B, O] each: by it rows are best or worst.
        seed: of the rows picked at random.
    """
    rows = problem.protocol.test
    columns = [column for column in problem.schema.columns if has_positions(column.block) and _can_be_shown(column)]
    if not len(rows) or not columns:
        return None
    ordered = sorted(enumerate(problem.tasks), key=lambda held: not (held[1].positional or held[1].reads))
    picked = {task.name: _picked(problem, t, answered[t], rows, seed=seed) for t, task in ordered[:MOST_TASKS]}
    every = np.array(sorted({row for held in picked.values() for row, _ in held}), dtype=np.int64)
    cells = {column.name: _cells(problem, column, every) for column in columns}
    objects = dict(zip(every.tolist(), model.rows(problem.table.take(pa.array(every))), strict=True))
    panels = []
    for task in problem.placed(every):
        held = picked.get(task.name)
        if held:
            truths = dict(zip(every.tolist(), task.said(problem.table[task.name].take(pa.array(every))), strict=True))
            # Without all the probabilities, of which a grid has hundreds: the page says the answer's own.
            answers = {row: {k: v for k, v in objects[row][task.name].items() if k != LISTED} for row, _ in held}
            labels = task.card().get("classes", ()) if task.positional else ()
            panels.append(
                Panel(task.name, task.spec.kind, _input(task, cells, held), held, truths, answers, labels=labels)
            )
    return gather(panels, cells)


def _can_be_shown(column: Column) -> bool:
    """Return whether cells are pictures or texts; a foreign kind may read sounds, or lists."""
    kind = column.arrow_type()
    return any(holds(kind) for holds in (pa.types.is_string, pa.types.is_large_string, pa.types.is_large_binary))


def _picked(problem: Problem, t: int, answers: np.ndarray, rows: np.ndarray, *, seed: int) -> list[tuple[int, str]]:
    """Return the rows that are shown of a task, and why."""
    task, targets = problem.tasks[t], problem.dataset.targets[t].cpu()[torch.from_numpy(rows)]
    losses = task.answer_losses(torch.from_numpy(answers), targets)
    return pick(rows.tolist(), losses.tolist(), empty=task.empty(targets).tolist(), seed=seed)


def _cells(problem: Problem, column: Column, rows: np.ndarray) -> dict[int, Cell]:
    """Return the cells of some rows: pictures as bytes, read from their files; None also where one is there no more."""
    if column.name not in problem.table.column_names:
        return dict.fromkeys(rows.tolist())
    folder = tables.folder_of(problem.table)
    held: dict[int, Cell] = {}
    for row in rows.tolist():
        try:
            values = column.sent(column.located(problem.table[column.name].slice(row, 1), folder))
            cell = tables.plain(values)[0].as_py() or None
        except SchemaError:  # a file that was there when the search began
            cell = None
        held[row] = None if isinstance(cell, bytes) and not is_picture(cell) else cell
    return held


def _input(task: Task[Any], cells: Mapping[str, Mapping[int, Cell]], rows: Sequence[tuple[int, str]]) -> str:
    """Return the input that a task is shown in: the one that it names, else a picture before a text that is there."""
    if task.reads is not None and task.reads in cells:
        return task.reads

    def rank(name: str) -> tuple[bool, bool]:
        there = [cell for row, _ in rows if (cell := cells[name][row]) is not None]
        return not there, not any(isinstance(cell, bytes) for cell in there)

    return min(cells, key=rank)
