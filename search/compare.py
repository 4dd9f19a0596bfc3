"""Two runs on the same locked rows, task by task: a verdict on the second against the first, as `verdict` gives it."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pyarrow as pa

from mtl_bento import table as tables
from mtl_bento.errors import RunError, listing
from mtl_bento.model import Model
from mtl_bento.tasks._base import Task
from mtl_bento_search import metrics
from mtl_bento_search.oof import GIVEN, part_of, read_predictions
from mtl_bento_search.problem import digest
from mtl_bento_search.run import Run, plain
from mtl_bento_search.verdict import decide

KEYS = (
    "task", "metric", "first", "second", "difference", "lower", "upper", "p", "p_corrected", "verdict", "smallest",
    "n_test",
)  # fmt: skip
"""What is told of a task, in its order."""


def compare(first: str | os.PathLike[str] | Run, second: str | os.PathLike[str] | Run, *, data: Any = None) -> Any:
    """Return a frame with a row per task that both runs learned: is the second better than the first?

    Columns: task, metric, first, second, difference (positive where the second is better, whichever way the metric
    points), lower and upper (95 %, paired bootstrap over the locked test rows), p and p_corrected (Holm over the
    tasks), verdict (better, worse, tie, inconclusive, same or not measurable; see `mtl_bento_search.verdict`), smallest
    (the difference that the rows could have shown, where inconclusive), n_test.

    Args:
        first, second: runs or run folders on the same table, with the same rows locked for the test.
        data: that table, where a task answers by position: its labels and answers are read by the inputs.

    Raises RunError where data or locked rows differ, or no task is common.
    """
    records = comparison(first, second, data=data)
    return tables.like(pa.table({name: [record[name] for record in records] for name in records[0]}), "frame")


def comparison(
    first: str | os.PathLike[str] | Run, second: str | os.PathLike[str] | Run, *, data: Any = None
) -> list[dict[str, Any]]:
    """Return the rows of `compare` as records, NaN as None."""
    runs = [run if isinstance(run, Run) else Run(run) for run in (first, second)]
    _same_data(*runs)
    one, other = (part_of(read_predictions(run.folder), "test") for run in runs)
    if not one.num_rows or not one.column(0).equals(other.column(0)):
        raise RunError(
            f"{runs[0].folder} and {runs[1].folder} lock other rows for the test, so their figures do not compare; "
            "search again with the same split and seed."
        )
    models = [run.model for run in runs]
    common = _common(models, runs)
    cells = _table(data, runs[0], one.column(0)) if data is not None else pa.table({})
    weights = one.column(3).to_numpy()  # the table is the same, its weights may be given to one run alone: the first's
    records = [_judged(tasks, (one, other), models, cells, weights) for tasks in common]
    decide(records)
    return [{key: plain(record[key]) for key in KEYS} for record in records]


def _same_data(one: Run, other: Run) -> None:
    if one.spec["data_sha256"] != other.spec["data_sha256"]:
        raise RunError(
            f"{one.folder} and {other.folder} learned from different tables, so their figures do not compare; "
            "search both on one table."
        )


def _common(models: list[Model], runs: list[Run]) -> list[tuple[Task[Any], Task[Any]]]:
    own, others = ({task.name: task for task in model.tasks} for model in models)
    names = [name for name in own if name in others]
    if not names:
        raise RunError(
            f"{runs[0].folder} and {runs[1].folder} have no task in common: {listing(own)}; and {listing(others)}."
        )
    for name in names:
        kinds = [tasks[name].spec.kind for tasks in (own, others)]
        if kinds[0] != kinds[1]:
            raise RunError(
                f"Task {name!r} is {kinds[0]} in {runs[0].folder} and {kinds[1]} in {runs[1].folder}; "
                "search one of them again with the other's kind."
            )
    return [(own[name], others[name]) for name in names]


def _table(data: Any, run: Run, rows: pa.ChunkedArray) -> pa.Table:
    table = tables.read(data).combine_chunks()
    if digest(table) != run.spec["data_sha256"]:
        raise RunError(f"This is not the table that {run.folder} learned from; give that one.")
    return table.take(rows)


def _judged(
    tasks: tuple[Task[Any], Task[Any]],
    answered: tuple[pa.Table, pa.Table],
    models: list[Model],
    cells: pa.Table,
    weights: np.ndarray,
) -> dict[str, Any]:
    """Return a task's record, of whose "difference" `decide` makes a verdict."""
    task, other = tasks
    if task.positional and not cells.num_columns:
        raise RunError(f"Task {task.name!r} is read by its inputs; give the table of the runs too: --data TABLE.")
    if task.positional:
        task, other = (t.place(cells, m.schema.columns) for t, m in zip(tasks, models, strict=True))
    # The levels of both are those of all rows of one table, in one order: what is true is the same for both.
    truth = task.truth(answered[0][f"{task.name}{GIVEN}"])
    one, two = (
        t.scored_columns({name: table[name] for name in table.column_names})
        for t, table in zip((task, other), answered, strict=True)
    )
    name = task.metric
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a metric is undefined; NaN says it
        _, (difference,) = metrics.compared(name, truth, two, [one], weights=weights)
    first, second = (metrics.measure(name, truth, scored, weights) for scored in (one, two))
    return {
        "task": task.name,
        "metric": name,
        "first": first,
        "second": second,
        "value": first,
        "difference": difference,
        "same": _answers(answered[0], task.name).equals(_answers(answered[1], task.name)),
        "n_test": int(metrics.known_rows(truth).sum()),
    }


def _answers(table: pa.Table, name: str) -> pa.Table:
    """Return the columns that hold a task's answers."""
    return table.select([c for c in table.column_names if c == name or c.startswith(f"{name}__")])
