"""What a run leaves to be served, the blend and its student, as models with their cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtl_bento.columns._base import COLUMNS
from mtl_bento.encoders._base import ENCODERS, kind_of
from mtl_bento.forest import Forest
from mtl_bento.heads._base import HEADS
from mtl_bento.model import Model
from mtl_bento.network import Trained
from mtl_bento.registry import Registry
from mtl_bento.tasks._base import TASKS, Task
from mtl_bento.training import Learned
from mtl_bento.trunks._base import TRUNKS
from mtl_bento_search import metrics, select
from mtl_bento_search.arms import Arm, latencies_ms
from mtl_bento_search.coverage import calibrated
from mtl_bento_search.problem import Problem
from mtl_bento_search.run import plain
from mtl_bento_search.select import Choice
from mtl_bento_search.student import Student


def make_model(
    problem: Problem,
    members: Sequence[Trained | Forest],
    blend: np.ndarray,
    *,
    card: dict[str, Any],
    tasks: Sequence[Task[Any]] | None = None,
) -> Model:
    """Return the model of some members on a problem's schema; its tasks are the problem's, or calibrated ones."""
    held = tuple(member.cpu() for member in members)
    return Model(problem.schema, tuple(tasks or problem.tasks), problem.dataset.inputs, held, blend, card)


def served_model(
    spec: dict[str, Any],
    problem: Problem,
    choice: Choice,
    records: Sequence[dict[str, Any]],
    tasks: Sequence[Task[Any]],
) -> Model:
    """Return what a choice serves as a model, with what the test says of it; its tasks are calibrated."""
    card = card_of(spec, problem, {r["task"]: r["metrics"] for r in records}, choice.members) | {
        "verdicts": {r["task"]: {arm: _told(held) for arm, held in r["against"].items()} for r in records},
        "served_by": {name: choice.served_by(t) for t, name in enumerate(problem.names)},
    }
    return make_model(problem, choice.members, choice.blend, card=card, tasks=tasks)


def student_model(spec: dict[str, Any], problem: Problem, student: Student, arm: Arm) -> Model:
    """Return the student as a model of its own, calibrated by what students answered out of fold."""
    rows = problem.protocol.test
    out_of_fold = student.out_of_fold
    tasks = calibrated(problem.tasks, out_of_fold, problem.dataset, select.validation_rows(problem.dataset))
    figures: dict[str, dict[str, float]] = {}
    if len(rows):
        held = problem.table.take(pa.array(rows))
        weights = select.row_weights(problem.dataset, rows)
        for task, answered in zip(tasks, arm.answers, strict=True):
            own = task.place(held, problem.schema.columns)
            assert answered is not None  # a student answers every task
            figures[task.name] = measured(own, own.scored(answered), own.truth(held[task.name]), weights)
    card = card_of(spec, problem, figures, [student.network])
    card |= {"name": f"{spec['name']}, the student", "student_of": spec["name"]}
    return make_model(problem, [student.network], np.ones((len(tasks), 1)), card=card, tasks=tasks)


def trained_again(model: Model, again: Choice | Learned, refitted: dict[str, int]) -> Model:
    """Return a model with members that were trained again, a choice's or the student, and a card that says so."""
    members = (again,) if isinstance(again, Learned) else again.members
    # One forest may stand for several that would be equal, so the shares of members are not those of before.
    blend = model.blend if isinstance(again, Learned) else again.blend
    held = tuple(member.cpu() for member in members)
    return replace(model, members=held, blend=blend, card=model.card | {"refit": refitted["rows"]})


def size_of(folder: Path, model: Model, table: pa.Table) -> dict[str, Any]:
    """Return what a model takes: parameters, bytes of its folder, and milliseconds by rows of a request."""
    return {
        "parameters": model.n_parameters,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "latency_ms": {str(n): took for n, took in latencies_ms(model, table).items()},
    }


def card_of(
    spec: dict[str, Any],
    problem: Problem,
    figures: dict[str, dict[str, float]],
    members: Sequence[Trained | Forest],
) -> dict[str, Any]:
    """Return provenance and figures (every metric by task) for the model folder."""
    return {
        "name": spec["name"],
        "run": spec["name"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "framework_version": version("mtl-bento"),
        "spec_sha256": spec["sha256"],
        "data_sha256": problem.data_sha256,
        "split_sha256": problem.protocol.digest(),
        "sample_weight": spec["sample_weight"],
        "n_train": len(problem.protocol.learned),
        "n_test": len(problem.protocol.test),
        "metrics": plain(figures),
        "requires": requirements(problem, members),
    }


def _told(against: dict[str, Any]) -> dict[str, Any]:
    """Return a comparison as a model's card tells it."""
    return {key: value for key, value in plain(against).items() if key != "metrics"}


def measured(task: Task[Any], scored: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
    """Return every metric of a placed task's scored answers."""
    return {name: metrics.measure(name, truth, metrics.read(name, task, scored), weights) for name in task.metrics}


def requirements(problem: Problem, members: Sequence[Trained | Forest]) -> list[str]:
    """Return `distribution==version` of what brought a kind that the model uses, and of what such kinds need."""
    held: set[tuple[Registry[Any], str]] = {(TASKS, task.spec.kind) for task in problem.tasks}
    held |= {(COLUMNS, column.kind) for column in problem.schema.columns}
    for member in [m for m in members if isinstance(m, Trained)]:
        held.add((TRUNKS, member.spec.trunk.kind))
        held |= {(ENCODERS, encoder.kind) for encoder in member.spec.encoders.values()}
        held |= {(HEADS, head.kind) for head in member.spec.heads.values()}
    origins = {registry.origin(kind) for registry, kind in held}
    needed = {name: version(name) for column in problem.schema.columns for name in column.requires}
    needed |= dict(found for found in origins if found is not None)
    for block, columns in problem.schema.blocks.items():
        needed |= ENCODERS.class_of(ENCODERS.spec_class(kind_of(block))).needs(columns)
    return sorted(f"{name}=={pinned}" for name, pinned in needed.items())
