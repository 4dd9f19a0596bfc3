"""What a run answered on rows that its members did not learn, kept beside the run: out of fold, and the locked test.

    predictions.parquet   row, part, fold, weight, then a task at a time NAME__given, NAME, NAME__proba__LABEL ...

The first four columns are ours, whatever the targets are called: they are read by their place.

Letters: T tasks, V validation rows of all splits together, B test rows, O numbers of an answer.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from mtl_bento.artifact import write_file
from mtl_bento.errors import RunError
from mtl_bento.table import plain
from mtl_bento_search.problem import Problem

PREDICTIONS = "predictions.parquet"
OWN = ("row", "part", "fold", "weight")
GIVEN = "__given"


def write_predictions(folder: Path, problem: Problem, valid: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> None:
    """Write the answers that a run's model gave to rows that it did not learn.

    Args:
        folder: the run folder.
        problem: the data.
        valid: answers of each task on the validation rows of all splits in their order, T of [V, O], out of fold.
        test: answers of each task on the test rows, T of [B, O]; empty where there are none.
    """
    splits = [(fold, rows) for fold, (_, rows) in enumerate(problem.protocol.splits)]
    rows = np.concatenate([held for _, held in splits])
    folds = np.concatenate([np.full(len(held), fold) for fold, held in splits])
    tables = [_part(problem, "valid", rows, folds, valid)]
    if len(problem.protocol.test):
        tables.append(_part(problem, "test", problem.protocol.test, None, test))
    sink = io.BytesIO()
    parquet.write_table(pa.concat_tables(tables), sink)
    write_file(folder / PREDICTIONS, sink.getbuffer())


def read_predictions(folder: Path) -> pa.Table:
    """Return the table of a run folder; raises RunError where the run has none."""
    path = folder / PREDICTIONS
    if not path.is_file():
        raise RunError(f"{folder} has no predictions yet; run the same search again with a raised total to finish it.")
    try:
        with parquet.ParquetFile(path) as file:
            return file.read()
    except (OSError, pa.ArrowException):
        raise RunError(f"{path} is damaged; run the same search again with a raised total to write it anew.") from None


def part_of(table: pa.Table, name: str) -> pa.Table:
    """Return the rows of one part, "valid" or "test"."""
    return table.filter(pc.equal(table.column(1), name))


def _part(
    problem: Problem, name: str, rows: np.ndarray, folds: np.ndarray | None, answers: Sequence[np.ndarray]
) -> pa.Table:
    n, weights = len(rows), problem.dataset.weights
    columns: list[tuple[str, pa.Array]] = list(
        zip(
            _own_names(problem.names),
            (
                pa.array(rows, pa.int64()),
                pa.array([name] * n, pa.string()),
                pa.nulls(n, pa.int32()) if folds is None else pa.array(folds, pa.int32()),
                pa.array(np.ones(n) if weights is None else weights.cpu().numpy()[rows], pa.float64()),
            ),
            strict=True,
        )
    )
    for task, held in zip(problem.placed(rows), answers, strict=True):
        columns.append((f"{task.name}{GIVEN}", plain(problem.table[task.name].take(pa.array(rows)))))
        columns.append((task.name, task.values(held)))
        columns += [(f"{task.name}__{suffix}", values) for suffix, values in task.columns(held).items()]
    return pa.table([values for _, values in columns], names=[name for name, _ in columns])


def _own_names(targets: Sequence[str]) -> list[str]:
    names = list(OWN)
    while set(names) & set(targets):
        names = [f"{name}_" for name in names]
    return names
