"""The end of a run: the locked test, once, and everything that is said of it.

Letters: T tasks, B test rows, O numbers of an answer.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import torch
from optuna.trial import TrialState

from mtl_bento.columns._base import COLUMNS
from mtl_bento.encoders._base import ENCODERS, kind_of
from mtl_bento.heads._base import HEADS
from mtl_bento.model import Model
from mtl_bento.network import Trained
from mtl_bento.registry import Registry
from mtl_bento.tasks._base import TASKS
from mtl_bento.trunks._base import TRUNKS
from mtl_bento_search import metrics, select
from mtl_bento_search.explain import out_of_fold_importance
from mtl_bento_search.finals import single_task_candidates
from mtl_bento_search.oof import blended_out_of_fold, write_predictions
from mtl_bento_search.problem import Problem
from mtl_bento_search.run import MODEL
from mtl_bento_search.select import Choice
from mtl_bento_search.shown import shown
from mtl_bento_search.study import Driver

MIN_FOR_IMPORTANCE = 30
"""Complete trials below which the importance of hyperparameters is not shown: ranks would differ from run to run."""


def served(problem: Problem, choice: Choice) -> list[np.ndarray]:
    """Return what is served for each task on the locked rows, [B, O] each; nothing where there are none."""
    rows = problem.protocol.test
    if not len(rows):
        return []
    each = select.answers_by_member(choice.members, problem.dataset, rows)
    return [np.einsum("k,kbo->bo", share, held) for share, held in zip(choice.blend, each, strict=True)]


def test(problem: Problem, choice: Choice, ours: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Score what is served [B, O] a task, and single-task networks, on the locked rows; return one record per task."""
    rows = problem.protocol.test
    if not len(rows):
        return []
    dataset = problem.dataset
    singles = [select.answers(c.members, dataset, rows)[t] for t, c in enumerate(choice.single)]
    weights = None if dataset.weights is None else dataset.weights.cpu().numpy()[rows]
    records = []
    for t, task in enumerate(problem.placed(rows)):
        truth = task.truth(problem.table[task.name].take(pa.array(rows)))
        mine, single = task.scored(ours[t]), task.scored(singles[t])
        same = choice.served_by[t] == choice.single[t].name
        own, (low, high) = _intervals(task.metric, truth, mine, single, weights, same=same)
        higher = metrics.METRICS[task.metric].higher_is_better
        value, alone = (metrics.measure(task.metric, truth, scored, weights) for scored in (mine, single))
        records.append(
            {
                "task": task.name,
                "kind": task.spec.kind,
                "metric": task.metric,
                "higher_is_better": higher,
                "ours": value,
                "interval": own,
                "single_task": alone,
                "difference": 0.0 if same else (value - alone) * (1 if higher else -1),
                "lower": low,
                "upper": high,
                "verdict": verdict(low, high, same=same),
                "served_by": choice.served_by[t],
                "compared_with": choice.single[t].name,
                "n_test": int(metrics.known_rows(truth).sum()),
                "metrics": {name: _quiet(name, truth, mine, weights) for name in task.metrics},
                "single_task_metrics": {name: _quiet(name, truth, single, weights) for name in task.metrics},
            }
        )
    return records


def _intervals(
    name: str, truth: np.ndarray, mine: np.ndarray, single: np.ndarray, weights: np.ndarray | None, *, same: bool
) -> tuple[metrics.Interval, metrics.Interval]:
    """Return the intervals of our metric and of its difference to single-task; 0 where both are one network."""
    if same:
        return metrics.interval(name, truth, mine, weights=weights), (0.0, 0.0)
    return metrics.paired_intervals(name, truth, mine, single, weights=weights)


def verdict(low: float, high: float, *, same: bool) -> str:
    """Return what an interval of the difference to single-task says: better, worse, or nothing shown."""
    if same:
        return "single-task kept"
    if not np.isfinite([low, high]).all():
        return "not measurable"
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def _quiet(name: str, truth: np.ndarray, scored: np.ndarray, weights: np.ndarray | None) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a metric is undefined; NaN says it
        return metrics.measure(name, truth, scored, weights)


def finish(driver: Driver, spec: dict[str, Any]) -> dict[str, Any]:
    """Choose, test, write model, result and report; return the result."""
    sitting = driver.sitting
    problem, folder, clock = sitting.problem, sitting.folder, sitting.clock
    best = driver.best_trial()
    with clock.phase("finals"):
        sitting.progress.phase("finals", "single-task networks at the best configuration")
        singles = single_task_candidates(driver, best)
    with clock.phase("test"):
        sitting.progress.phase("test", "the locked rows, once")
        choice = select.choose(driver.candidate(best.number)[0], singles, problem.dataset)
        ours = served(problem, choice)
        records = test(problem, choice, ours)
        # By how many trials it was chosen from: a test that a kill cut short is the same test, not another look.
        tested = sorted({*folder.read_state().get("tested", ()), driver.n_told()})
        folder.note(tested=tested)
    with clock.phase("report"):
        result = _result(driver, choice, records, spec, looks=len(tested))
        model = make_model(problem, choice.members, choice.blend, card=_card(spec, problem, records, choice))
        model.save(folder.path / MODEL)
        result["shown"] = shown(problem, model, ours, seed=sitting.seed)
        write_predictions(folder.path, problem, blended_out_of_fold(problem, choice.members, choice.blend), ours)
        result["input_importance"] = out_of_fold_importance(model, problem, timeout_s=clock.timeout_s)
        result["model"] = {"members": len(choice.members), "parameters": model.n_parameters}
    result["phases_s"] = clock.phases
    result["elapsed_s"] = clock.elapsed_s
    folder.write_result(result)
    folder.note(elapsed_s=clock.elapsed_s, phases=clock.phases)
    return result


def make_model(problem: Problem, members: Sequence[Any], blend: np.ndarray, *, card: dict[str, Any]) -> Model:
    """Return the model of some members on a problem's schema."""
    held = tuple(type(m)(m.spec, {name: tensor.detach().cpu() for name, tensor in m.state.items()}) for m in members)
    return Model(problem.schema, problem.tasks, problem.dataset.inputs, held, blend, card)


def _card(spec: dict[str, Any], problem: Problem, records: list[dict[str, Any]], choice: Choice) -> dict[str, Any]:
    """Return provenance and figures for the model folder."""
    return {
        "name": spec["name"],
        "run": spec["name"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "framework_version": version("mtl-bento"),
        "spec_sha256": spec["sha256"],
        "data_sha256": problem.data_sha256,
        "split_sha256": problem.protocol.digest(),
        "n_train": len(problem.protocol.learned),
        "n_test": len(problem.protocol.test),
        "metrics": {r["task"]: _finite(r["metrics"]) for r in records},
        "verdicts": {r["task"]: r["verdict"] for r in records},
        "served_by": dict(zip(problem.names, choice.served_by, strict=True)),
        "requires": requirements(problem, choice.members),
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def requirements(problem: Problem, members: Sequence[Trained]) -> list[str]:
    """Return `distribution==version` of what brought a kind that the model uses, and of what such kinds need."""
    held: set[tuple[Registry[Any], str]] = {(TASKS, task.spec.kind) for task in problem.tasks}
    held |= {(COLUMNS, column.kind) for column in problem.schema.columns}
    for member in members:
        held.add((TRUNKS, member.spec.trunk.kind))
        held |= {(ENCODERS, encoder.kind) for encoder in member.spec.encoders.values()}
        held |= {(HEADS, head.kind) for head in member.spec.heads.values()}
    origins = {registry.origin(kind) for registry, kind in held}
    needed = {name: version(name) for column in problem.schema.columns for name in column.requires}
    needed |= dict(found for found in origins if found is not None)
    for block, columns in problem.schema.blocks.items():
        needed |= ENCODERS.class_of(ENCODERS.spec_class(kind_of(block))).needs(columns)
    return sorted(f"{name}=={pinned}" for name, pinned in needed.items())


def _result(
    driver: Driver,
    choice: Choice,
    records: list[dict[str, Any]],
    spec: dict[str, Any],
    *,
    looks: int,
) -> dict[str, Any]:
    problem, study, references = driver.sitting.problem, driver.study, driver.references
    # A round that was interrupted goes on another time: its trials are running, and not spoken of.
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    best = driver.best_trial()
    n_valid = sum(len(valid) for _, valid in problem.protocol.splits)
    return {
        "version": 1,
        "name": spec["name"],
        "seed": driver.sitting.seed,
        "device": str(problem.dataset.device),
        "packing": driver.sitting.packing.model_dump(mode="json"),
        "torch": torch.__version__,
        "optuna": optuna.__version__,
        "python": platform.python_version(),
        "rows": {
            "train": len(problem.protocol.learned),
            "valid": n_valid,
            "test": len(problem.protocol.test),
            "folds": len(problem.protocol.splits),
        },
        "test_looks": looks,
        "notes": [*problem.notes, *problem.leaks, *_shortened(driver), *driver.sitting.packing.notes],
        "targets": [
            {"name": t.name, "kind": t.spec.kind, "metric": t.metric, "weight": t.spec.weight} for t in problem.tasks
        ],
        "inputs": [{"name": c.name, "kind": c.kind, "what": c.describe()} for c in problem.schema.columns],
        "left_out": [{"name": x.name, "reason": x.reason, "remedy": x.remedy} for x in problem.left_out],
        "tasks": records,
        "single_task_losses": dict(zip(problem.names, references.single_losses.tolist(), strict=True)),
        "trials": {
            "total": len(trials),
            "complete": len(complete),
            "pruned": len([t for t in trials if t.state == TrialState.PRUNED]),
            "best": best.number,
            "best_gain": best.value,
            "best_params": best.params,
            "default_gain": next((t.value for t in complete if t.number == 0), None),
            "gains": [[t.number, t.value, t.state.name.lower()] for t in trials],
            "task_gains": [[t.number, [t.user_attrs.get(f"gain.{name}") for name in problem.names]] for t in complete],
        },
        "curves": {
            "references": references.curves,
            "trials": {str(t.number): t.user_attrs["curve"] for t in complete if "curve" in t.user_attrs},
        },
        "importance": importance(study) if len(complete) >= MIN_FOR_IMPORTANCE else None,
        "network": _drawn(problem, choice),
    }


def _shortened(driver: Driver) -> list[str]:
    """Return a note where the timeout left each network fewer steps than it would have had."""
    state = driver.sitting.folder.read_state()
    steps, whole = int(state["steps"]), int(state.get("whole_steps", state["steps"]))
    notes = [f"the timeout allowed {steps:,} of {whole:,} steps a network"] if steps < whole else []
    if (reached := state.get("references_reached")) is not None:
        notes.append(f"trial 0 and the networks of each task alone ended at the deadline, after {reached:,} steps")
    return notes


def importance(study: optuna.Study) -> dict[str, float] | None:
    """Return Optuna's importance of each parameter, or None where it cannot be told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(optuna.importance.get_param_importances(study, target=lambda t: -float(t.value or 0.0)))
        except (ValueError, RuntimeError):  # fewer than two different values, or no parameter in common
            return None


def _drawn(problem: Problem, choice: Choice) -> dict[str, Any]:
    """Return the chosen networks in words and numbers, for the picture in the report."""
    groups: list[dict[str, Any]] = []
    for name in dict.fromkeys(choice.served_by):
        tasks = [t for t, served in zip(problem.names, choice.served_by, strict=True) if served == name]
        row = choice.blend[choice.served_by.index(name)]
        member = choice.members[int(row.argmax())]
        trunk = member.spec.trunk
        groups.append(
            {
                "name": name,
                "tasks": tasks,
                "members": int((row > 0).sum()),
                "trunk": trunk.model_dump(mode="json"),
                "heads": {t: member.spec.heads[t].model_dump(mode="json") for t in tasks},
                "parameters": member.n_parameters,
            }
        )
    blocks = {
        block: {"columns": [c.name for c in columns], "encoder": choice.members[0].spec.encoders[block].model_dump()}
        for block, columns in problem.dataset.inputs.columns.items()
    }
    return {"blocks": blocks, "groups": groups}
