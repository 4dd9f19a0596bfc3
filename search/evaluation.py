"""Metrics per task of any source (folder, run, tag, URL) on a labelled table, with bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mtl_bento import table as tables
from mtl_bento.columns._base import Column
from mtl_bento.errors import SchemaError, listing
from mtl_bento.model import Model
from mtl_bento.schema import Schema
from mtl_bento.tasks._base import TASKS, Task
from mtl_bento_search import metrics
from mtl_bento_search.coverage import coverage_of_columns
from mtl_bento_search.problem import row_weights


def evaluate(
    predict: Any,
    tasks: Sequence[Task[Any]],
    data: Any,
    *,
    inputs: Sequence[Column] = (),
    sample_weight: str | None = None,
) -> list[dict[str, Any]]:
    """Return one record per task and metric: task, kind, metric, value, lower, upper, n.

    Where answers come with intervals or prediction sets, one more has the metric "coverage": the share that holds the
    truth, beside the `level` aimed at and their mean `size`.

    Args:
        predict: a function from an Arrow table to one with the columns of `output="full"`.
        tasks: the tasks to judge; those whose column the table lacks are passed over.
        data: a table with labels.
        inputs: the input columns of whoever predicts; some tasks read labels and answers by their cells.
        sample_weight: the column of the row weights by which every figure is a mean; None weighs rows alike.

    Raises SchemaError where the table has none of the targets, a label that its task does not know or what is no
    weight, SpecError where it lacks the column of the weights.
    """
    table = tables.read(data)
    judged = [task for task in tasks if task.name in table.column_names]
    if not judged:
        raise SchemaError(
            f"The table has none of the targets ({listing(task.name for task in tasks)}); evaluate needs their labels."
        )
    weights = None if sample_weight is None else row_weights(table, sample_weight)
    answered: pa.Table = predict(table)
    columns = {name: answered[name] for name in answered.column_names}
    return [
        record for task in judged for record in _judge(task.place(table, inputs), table[task.name], columns, weights)
    ]


def judged(source: Any) -> tuple[list[Task[Any]], Sequence[Column], dict[str, Any]]:
    """Return tasks, inputs and card of a model, or of a service by what it says of them."""
    if isinstance(source, Model):
        return list(source.tasks), source.schema.columns, source.card
    said = source.model()
    specs = [TASKS.parse(task["spec"]) for task in said["tasks"]]
    tasks = [TASKS.class_of(type(spec))(spec) for spec in specs]
    return tasks, Schema.model_validate(said["schema"]).columns, dict(said["card"])


def _judge(
    task: Task[Any], labels: pa.ChunkedArray, columns: dict[str, pa.ChunkedArray], weights: np.ndarray | None
) -> list[dict[str, Any]]:
    truth, scored = task.truth(labels), task.scored_columns(columns)
    names = [task.metric, *(name for name in task.metrics if name != task.metric)]
    records = []
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns where a metric is undefined; NaN says it
            seen = metrics.read(name, task, scored)
            low, high = metrics.interval(name, truth, seen, weights=weights)
            value = metrics.measure(name, truth, seen, weights)
        records.append(
            {
                "task": task.name,
                "kind": task.spec.kind,
                "metric": name,
                "value": _json(value),
                "lower": _json(low),
                "upper": _json(high),
                "n": int(metrics.known_rows(truth).sum()),
            }
        )
    if (covered := coverage_of_columns(task, columns, truth, weights)) is not None:
        records.append({**covered, "kind": task.spec.kind, "metric": "coverage"})
    return records


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
