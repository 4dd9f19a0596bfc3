"""The end of a run: the locked test, once, and everything that is said of it.

Letters: T tasks, B test rows, O numbers of an answer.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import torch
from optuna.trial import TrialState

from mtl_bento.artifact import remove_folder
from mtl_bento.errors import listing
from mtl_bento.forest import Forest
from mtl_bento.network import Trained
from mtl_bento.tasks._base import Task
from mtl_bento.training import Learned
from mtl_bento_search import select
from mtl_bento_search.arms import Arm, Arms, latencies_ms, sizes_tried, too_slow
from mtl_bento_search.config import CHOOSING, Config, SearchSpec
from mtl_bento_search.coverage import calibrated, coverage
from mtl_bento_search.diagnosis import diagnosis
from mtl_bento_search.explain import out_of_fold_importance
from mtl_bento_search.finals import Finals, gather, grow
from mtl_bento_search.importance import importance
from mtl_bento_search.oof import write_predictions
from mtl_bento_search.problem import Problem
from mtl_bento_search.refit import all_rows, refit
from mtl_bento_search.run import MODEL, RESULT_VERSION, STUDENT
from mtl_bento_search.select import NETWORKS, Choice
from mtl_bento_search.served import make_model, measured, served_model, size_of, student_model, trained_again
from mtl_bento_search.shown import shown
from mtl_bento_search.student import Student, learn, learn_again
from mtl_bento_search.study import FINALS_SHARE, Driver
from mtl_bento_search.trees import Trees, learnable
from mtl_bento_search.verdict import verdicts

MOST_TREE_TRIALS = 30
"""Configurations of trees that are tried a task where the number of trials bounds the search."""
FEW_TREE_TRIALS = 3
"""Configurations of trees below which it is said that they had too little time."""
STUDENT_SHARE, REFIT_SHARE = 0.05, 0.15
"""Shares of a timeout that are kept back for the student, and for training again what is served."""


def test(problem: Problem, arms: dict[str, Arm], tasks: Sequence[Task[Any]]) -> list[dict[str, Any]]:
    """Score what is served and what else a user could have had on the locked rows; return one record per task.

    Arms are compared by their answers as they are; "metrics" and "coverage" are those of the calibrated tasks.

    Args:
        problem: whose test rows are scored.
        arms: their answers on the test rows.
        tasks: as they are served, calibrated.
    """
    rows = problem.protocol.test
    if not len(rows):
        return []
    dataset = problem.dataset
    weights = None if dataset.weights is None else dataset.weights.cpu().numpy()[rows]
    held_rows = problem.table.take(pa.array(rows))
    placed = problem.placed(rows)
    truths = [task.truth(held_rows[task.name]) for task in placed]
    records = verdicts(
        placed,
        truths,
        {name: arm.answers for name, arm in arms.items()},
        served_by={name: arm.served_by for name, arm in arms.items()},
        losses={name: _losses(arm.answers, problem, rows, weights) for name, arm in arms.items()},
        weights=weights,
    )
    for record, task, truth, answered in zip(records, tasks, truths, arms["ours"].answers, strict=True):
        assert answered is not None  # ours answers every task
        own = task.place(held_rows, problem.schema.columns)
        scored = own.scored(answered)
        record["metrics"] = measured(own, scored, truth, weights)
        record["diagnosis"] = diagnosis(own, scored, truth)
        record["coverage"] = coverage(own, answered, held_rows[task.name], weights)
    return records


def _losses(
    answers: Sequence[np.ndarray | None], problem: Problem, rows: np.ndarray, weights: np.ndarray | None
) -> list[float]:
    """Return the mean loss of an arm on each task, in units of the trivial predictor's; NaN where it has none."""
    dataset, found = problem.dataset, []
    for t, (task, answer) in enumerate(zip(dataset.tasks, answers, strict=True)):
        if answer is None:
            found.append(float("nan"))
            continue
        targets = dataset.targets[t].cpu()[torch.from_numpy(rows)]
        losses = task.answer_losses(torch.from_numpy(np.array(answer)), targets).double().numpy()
        known = ~np.isnan(losses)
        weight = np.ones(len(rows)) if weights is None else weights
        total = float(weight[known].sum())
        mean = float((weight[known] * losses[known]).sum()) / total if total else float("nan")
        found.append(mean / float(dataset.trivial[t]))
    return found


def finish(driver: Driver, spec: dict[str, Any], config: Config) -> dict[str, Any]:
    """Tune trees, train the finalists, choose, test once, write model, result and report; return the result."""
    sitting = driver.sitting
    folder, clock = sitting.folder, sitting.clock
    grown, notes = _grown(driver, config)
    with clock.phase("finals"):
        sitting.progress.phase("finals", _finals_in_words(grown))
        finals = gather(driver, grown, groups=config.groups)
        arms = _chosen(sitting.problem, finals, config)
    problem, choice = sitting.problem, arms.ours  # with the trees' margins
    student = _student(driver, arms, config)
    chosen = config.search.model_dump(include=CHOOSING) | {"student": student is not None}
    with clock.phase("test"):
        sitting.progress.phase("test", "the locked rows, once")
        out_of_fold = arms.out_of_fold()
        tasks = calibrated(problem.tasks, out_of_fold, problem.dataset, select.validation_rows(problem.dataset))
        answered = arms.answered(problem.protocol.test)
        if student is not None:
            answered["student"] = student.arm(problem, problem.protocol.test)
        ours = [held for held in answered["ours"].answers if held is not None]  # it answers every task
        records = test(problem, answered, tasks)
        # By what it was chosen from, and how: a test that a kill cut short is the same test, not another look. What is
        # trained again is not tested.
        asked = ", ".join(f"{key} {value}" for key, value in chosen.items() if key != "refit")
        tested = sorted({*folder.read_state().get("tested", ()), f"{driver.n_told()} trials, {asked}"})
        folder.note(tested=tested)
    again = _refitted(driver, arms, student, config)
    chosen["refit"] = again is not None
    with clock.phase("report"):
        result = _result(driver, choice, records, spec, looks=len(tested), notes=notes)
        result |= {
            "chosen_by": chosen,
            "blend": _blended(problem, choice),
            "groups": _proposed(problem, finals),
            "refit": None if again is None else {"rows": len(all_rows(problem))},
        }
        tested_model = served_model(spec, problem, choice, records, tasks)
        model = tested_model if again is None else trained_again(tested_model, again.choice, result["refit"])
        model.save(folder.path / MODEL)
        result["student"] = None
        if student is None:
            remove_folder(folder.path / STUDENT)
        else:
            small = student_model(spec, problem, student, answered["student"])
            if again is not None and again.student is not None:
                small = trained_again(small, again.student, result["refit"])
            small.save(folder.path / STUDENT)
            sizes = {
                name: size_of(folder.path / name, held, problem.table)
                for name, held in ((MODEL, model), (STUDENT, small))
            }
            result["student"] = {"trial": student.trial, "steps": student.network.step, **sizes}
        result["shown"] = shown(problem, tested_model, ours, seed=sitting.seed)
        write_predictions(folder.path, problem, out_of_fold, ours)
        result["input_importance"] = out_of_fold_importance(tested_model, problem, timeout_s=clock.timeout_s)
        result["model"] = {"members": len(model.members), "parameters": model.n_parameters}
    result["phases_s"] = clock.phases
    result["elapsed_s"] = clock.elapsed_s
    folder.write_result(result)
    folder.note(elapsed_s=clock.elapsed_s, phases=clock.phases)
    return result


@dataclass(frozen=True)
class _Again:
    """What was trained again on all rows."""

    choice: Choice
    student: Learned | None


def _finals_in_words(grown: Sequence[Trees | None]) -> str:
    on_top = ", networks on top of trees" if any(held is not None for held in grown) else ""
    return f"each task alone at the best configurations, groups{on_top}"


def kept_share(search: SearchSpec) -> float:
    """Return the share of a timeout that is kept back for what comes after the finals."""
    return STUDENT_SHARE * search.student + REFIT_SHARE * search.refit


def _student(driver: Driver, arms: Arms, config: Config) -> Student | None:
    """Return the student, None where none is wanted, or somebody interrupted."""
    if not config.search.student or driver.sitting.interrupted:
        return None
    with driver.sitting.clock.phase("student"):
        driver.sitting.progress.phase("student", "one network learns from what is served")
        return learn(driver, arms)


def _refitted(driver: Driver, arms: Arms, student: Student | None, config: Config) -> _Again | None:
    """Return what is served, and the student, trained again on all rows; None as above."""
    if not config.search.refit or driver.sitting.interrupted:
        return None
    with driver.sitting.clock.phase("refit"):
        driver.sitting.progress.phase("refit", "what is served, again on all rows")
        choice = refit(driver, arms.finals, arms.ours)
        small = None
        if choice is not None and student is not None:
            small = learn_again(driver, arms, student, all_rows(arms.problem))
        return None if choice is None or (student is not None and small is None) else _Again(choice, small)


def _grown(driver: Driver, config: Config) -> tuple[tuple[Trees | None, ...], list[str]]:
    """Return the tuned trees of each task, for which there is as much time as the trials took, and what is noted.

    None for a task without any.
    """
    sitting, clock = driver.sitting, driver.sitting.clock
    if not config.search.trees or sitting.interrupted:
        return (None,) * len(sitting.problem.tasks), []
    # By time where time bounds the search; by number where the number of trials does, so that a run can be repeated.
    by_number = config.search.n_trials is not None
    left = max(0.0, sitting.deadline() - time.monotonic()) * (1 - FINALS_SHARE)
    seconds = None if by_number and math.isinf(left) else min(left, math.inf if by_number else clock.phases["search"])
    with clock.phase("trees"):
        sitting.progress.phase("trees", "boosted trees for each task, tuned for as long")
        n_trials = min(driver.n_told(), MOST_TREE_TRIALS) if by_number else None
        grown = grow(driver, seconds=seconds, n_trials=n_trials)
    notes = tree_notes(sitting.problem, grown, n_trials)
    for note in notes:
        sitting.progress.say(f"{note[0].upper()}{note[1:]}.")
    return grown, notes


def tree_notes(problem: Problem, grown: Sequence[Trees | None], wanted: int | None) -> list[str]:
    """Return a note for trees that time left no configuration, or a few: they are no opponent that was tuned.

    Args:
        problem: whose tasks have the trees.
        grown: tuned where there was time.
        wanted: configurations a task that the search was to try; None is as many as time allows.
    """
    enough = FEW_TREE_TRIALS if wanted is None else min(FEW_TREE_TRIALS, wanted)
    held: dict[int, list[str]] = {}
    for t, (name, trees) in enumerate(zip(problem.names, grown, strict=True)):
        n = 0 if trees is None else trees.n_trials
        if n < enough and learnable(problem, t):
            held.setdefault(n, []).append(name)
    words = {0: "no configuration", 1: "one configuration"}
    return [
        f"the time left {words.get(n, f'{n} configurations')} to the trees of {listing(held[n])}" for n in sorted(held)
    ]


def _chosen(problem: Problem, finals: Finals, config: Config) -> Arms:
    """Return the arms, ours as many candidates a task as are allowed and answer in time; raises RunError else."""
    search = config.search
    kinds = NETWORKS if search.members == "networks" else None
    fastest = math.inf
    for most in sizes_tried(search.max_members):
        ours = select.choose(finals.finalists, problem.dataset, most=most, kinds=kinds)
        arms = Arms(problem, finals, ours, most)
        if search.max_latency_ms is None:
            return arms
        took = max(latencies_ms(make_model(problem, ours.members, ours.blend, card={}), problem.table).values())
        if took <= search.max_latency_ms:
            return arms
        fastest = min(fastest, took)
    assert search.max_latency_ms is not None
    raise too_slow(search.max_latency_ms, fastest)


def _result(
    driver: Driver,
    choice: Choice,
    records: list[dict[str, Any]],
    spec: dict[str, Any],
    *,
    looks: int,
    notes: Sequence[str],
) -> dict[str, Any]:
    problem, study, references = driver.sitting.problem, driver.study, driver.references
    # A round that was interrupted goes on another time: its trials are running, and not spoken of.
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    best = driver.best_trial()
    n_valid = sum(len(valid) for _, valid in problem.protocol.splits)
    return {
        "version": RESULT_VERSION,
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
        "notes": [*problem.notes, *problem.leaks, *_shortened(driver), *notes, *driver.sitting.packing.notes],
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
        "importance": importance(complete, seed=driver.sitting.seed, timeout_s=driver.sitting.clock.timeout_s),
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


def _drawn(problem: Problem, choice: Choice) -> dict[str, Any]:
    """Return the chosen networks and trees in words and numbers, for the picture in the report."""
    groups: list[dict[str, Any]] = []
    forests: list[dict[str, Any]] = []
    specs = [m.spec for m in choice.members if isinstance(m, Trained)]
    for place, candidate in enumerate(choice.candidates):
        tasks = [name for name, share in zip(problem.names, choice.shares[:, place], strict=True) if share]
        member = candidate.members[0]
        if isinstance(member, Trained):
            groups.append(
                {
                    "name": candidate.name,
                    "kind": candidate.kind,
                    "tasks": tasks,
                    "members": len(candidate.members),
                    "trunk": member.spec.trunk.model_dump(mode="json"),
                    "heads": {t: member.spec.heads[t].model_dump(mode="json") for t in tasks},
                    "parameters": member.n_parameters,
                }
            )
        else:
            n_trees = [m.n_trees for m in candidate.members if isinstance(m, Forest)]
            forests.append({"name": candidate.name, "tasks": tasks, "members": len(n_trees), "trees": sum(n_trees)})
    blocks = {
        block: {
            "columns": [c.name for c in columns],
            "encoder": specs[0].encoders[block].model_dump() if specs else None,
        }
        for block, columns in problem.dataset.inputs.columns.items()
    }
    return {"blocks": blocks, "groups": groups, "forests": forests}


def _blended(problem: Problem, choice: Choice) -> dict[str, Any]:
    """Return who serves each task, and by which share."""
    return {
        "candidates": [{"name": c.name, "kind": c.kind, "members": len(c.members)} for c in choice.candidates],
        "shares": dict(zip(problem.names, choice.shares.tolist(), strict=True)),
    }


def _proposed(problem: Problem, finals: Finals) -> dict[str, Any]:
    """Return the affinities, and what became of each partition: its groups' mean loss on validation rows, by task."""
    dataset = problem.dataset
    rows = select.validation_rows(dataset)
    weights = select.row_weights(dataset, rows)
    losses: dict[tuple[str, ...], list[float | None]] = {}
    for finalist in finals.finalists:
        candidate = finalist.candidate
        if candidate.kind in ("group", "single") and candidate.tasks is not None:
            held = [
                None if a is None else select.mean_loss(select.task_losses(a, dataset, t, rows), weights)
                for t, a in enumerate(finalist.answers)
            ]
            losses[candidate.tasks] = held  # the last one is that at the best configuration
    partitions = []
    for partition in finals.proposals.partitions:
        own = [
            next((losses[g][t] for g in partition if name in g and g in losses), None)
            for t, name in enumerate(problem.names)
        ]
        partitions.append({"groups": [list(group) for group in partition], "losses": own})
    return {"affinities": finals.proposals.affinities, "partitions": partitions}
