"""The finals: what may serve a task is gathered, and what the search itself did not train is trained.

Everything that is trained here is a configuration and the tasks that it is for: one task alone, a group that the
affinities propose, or all of them on top of the trees. Validation decides between them and the trials.

Letters: N rows of the table, T tasks, V validation rows of all splits together, O numbers of an answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from optuna.trial import FrozenTrial, TrialState

from mtl_bento.dataset import Dataset
from mtl_bento.training import Learned, MemberSpec, stable_seed
from mtl_bento_search import affinity, trees
from mtl_bento_search.checkpoints import load_members, save_members
from mtl_bento_search.problem import Problem
from mtl_bento_search.run import Folder
from mtl_bento_search.select import (
    Answers,
    Candidate,
    Finalist,
    answers,
    out_of_fold,
    task_losses,
    validation_rows,
)
from mtl_bento_search.space import within
from mtl_bento_search.study import Driver
from mtl_bento_search.trees import Trees

MOST_TRIALS = 8
"""Complete trials that enter the finals for their gain; each task's best one enters besides."""
SINGLE_CONFIGURATIONS = 3
"""Best configurations at which each task alone is trained, as far as the time allows."""
MOST_PARTITIONS = 5
"""Partitions of the tasks that the affinities propose."""


FINALS = "finals-"
"""What the files begin with that hold what the finals trained, and by how many trials they were chosen."""


@dataclass(frozen=True)
class Entry:
    """A configuration to be trained for some tasks, one network a split."""

    name: str
    kind: str
    spec: MemberSpec
    tasks: tuple[str, ...]
    identity: tuple[Any, ...]
    """What its seeds come from."""


@dataclass(frozen=True)
class Proposals:
    """Which tasks might share, and why."""

    affinities: dict[str, list[list[float]]]
    """Matrices [T, T] by what they measure."""
    partitions: tuple[tuple[tuple[str, ...], ...], ...]
    """Each in groups of tasks."""


@dataclass(frozen=True)
class Finals:
    """Everything that may serve."""

    finalists: tuple[Finalist, ...]
    proposals: Proposals
    trees: tuple[Trees | None, ...]
    """The tuned trees of each task; None where there are none."""

    def named(self, name: str) -> Finalist:
        """Return the finalist of a name."""
        return next(f for f in self.finalists if f.candidate.name == name)


def gather(driver: Driver, grown: Sequence[Trees | None], *, groups: Sequence[Sequence[str]] | None) -> Finals:
    """Return the finalists with their out-of-fold answers, after training what is missing as far as the time allows.

    Args:
        driver: its trials and references are told.
        grown: the tuned trees of each task.
        groups: the partition that the user forces; None lets the affinities propose.
    """
    shared = [driver.candidate(t.number)[0] for t in _best_trials(driver)] if groups is None else []
    singles = [candidate for held in driver.references.singles for candidate in held]
    finalists = [_answered(driver, candidate) for candidate in (*shared, *singles)]
    proposals = _proposals(driver, finalists, groups)
    trained = _trained(driver, list(_entries(driver, proposals, grown)))
    finalists += [_answered(driver, candidate) for candidate in trained]
    finalists += [_of_trees(driver, t, held) for t, held in enumerate(grown) if held is not None]
    return Finals(tuple(finalists), proposals, tuple(grown))


def _best_trials(driver: Driver) -> list[FrozenTrial]:
    """Return the complete trials of the highest gain, the best of each task, and trial 0, in the order of numbers."""
    trials = driver.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = sorted(trials, key=lambda t: (-(t.value if t.value is not None else -math.inf), t.number))
    chosen = {t.number: t for t in (*ranked[:MOST_TRIALS], *(t for t in trials if t.number == 0))}
    for name in driver.sitting.problem.names:
        known = [t for t in trials if f"val.{name}.loss" in t.user_attrs]
        if known:
            best = min(known, key=lambda t: (t.user_attrs[f"val.{name}.loss"], t.number))
            chosen[best.number] = best
    return [chosen[number] for number in sorted(chosen)]


def _proposals(driver: Driver, finalists: Sequence[Finalist], groups: Sequence[Sequence[str]] | None) -> Proposals:
    problem = driver.sitting.problem
    names, dataset = problem.names, problem.dataset
    if groups is not None:
        return Proposals({}, (tuple(tuple(group) for group in groups),))
    if len(names) < 3:  # two tasks share, or they do not
        return Proposals({}, ())
    losses = losses_alone(finalists, dataset)
    learned = dataset.splits[0].train.cpu().numpy()
    matrices = {
        "gradients": affinity.gradient_cosines(driver.references.default.networks[0], dataset, learned),
        "errors": affinity.error_correlations(losses),
    }
    partitions = affinity.propose(list(matrices.values()), most=MOST_PARTITIONS)
    named = tuple(tuple(tuple(names[t] for t in group) for group in partition) for partition in partitions)
    return Proposals({name: np.asarray(matrix).tolist() for name, matrix in matrices.items()}, named)


def losses_alone(finalists: Sequence[Finalist], dataset: Dataset) -> np.ndarray:
    """Return the losses [T, V] of each task's first single-task network that answers with numbers on validation rows.

    NaN for a task that none answers so: what it shares with others is not known.
    """
    rows = validation_rows(dataset)
    losses = np.full((len(dataset.tasks), len(rows)), np.nan)
    singles = [finalist for finalist in finalists if finalist.candidate.kind == "single"]
    for t in range(len(losses)):
        if (first := next((held for f in singles if (held := f.finite(t)) is not None), None)) is not None:
            losses[t] = task_losses(first, dataset, t, rows)
    return losses


def _entries(driver: Driver, proposals: Proposals, grown: Sequence[Trees | None]) -> Iterator[Entry]:
    """Yield what the finals should train, the most wanted first."""
    sitting = driver.sitting
    names = sitting.problem.names
    trials = driver.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = sorted(trials, key=lambda t: (-(t.value if t.value is not None else -math.inf), t.number))
    best, *others = ranked[:SINGLE_CONFIGURATIONS]
    if len(names) > 1 and best.number:
        yield from _for_groups(driver, best, [(name,) for name in names])
    if any(held is not None for held in grown):
        for trial in {t.number: t for t in (*(t for t in trials if t.number == 0), best)}.values():
            spec = driver.candidate(trial.number)[1]
            on_top = spec.model_copy(update={"network": spec.network.model_copy(update={"offset": True})})
            ordinal = driver.ordinal(trial.number)
            yield Entry(
                f"trial {trial.number} on trees", "offset", on_top, tuple(names), ("offset", ordinal, driver.n_told())
            )
    groups = dict.fromkeys(group for partition in proposals.partitions for group in partition if len(group) > 1)
    yield from _for_groups(driver, best, list(groups))
    if len(names) > 1:
        for trial in others:
            if trial.number:
                yield from _for_groups(driver, trial, [(name,) for name in names])


def _for_groups(driver: Driver, trial: FrozenTrial, groups: Sequence[tuple[str, ...]]) -> Iterator[Entry]:
    """Yield the configuration of a trial for each of some groups of tasks."""
    spec, ordinal = driver.candidate(trial.number)[1], driver.ordinal(trial.number)
    names = driver.sitting.problem.names
    for group in groups:
        kind, title = ("single", f"single-task {group[0]}") if len(group) == 1 else ("group", " + ".join(group))
        own = within(spec, group, names)
        yield Entry(f"{title} at trial {trial.number}", kind, own, group, ("final", ordinal, *group))


def _trained(driver: Driver, entries: Sequence[Entry]) -> list[Candidate]:
    """Return the entries as candidates, trained as far as the time allows, or read back.

    What nobody had time for a look at is left out. What is trained at once is written at once: of a batch that a kill
    cut short the other half would be stacked, and so drawn, otherwise.
    """
    sitting, name = driver.sitting, f"{FINALS}{driver.n_told():05d}"
    held = _read_back(sitting.folder, name)
    waiting = [entry for entry in entries if _key(entry) not in held]
    waiting = waiting[: _affordable(driver, len(waiting))]
    if waiting and not sitting.interrupted:
        held |= _train(driver, waiting)
        members = [member for own in held.values() for member in own]
        save_members(sitting.folder.checkpoint(name), members, {"keys": list(held)})
        sitting.folder.keep_only(name, FINALS)
    named = [(entry, held.get(_key(entry))) for entry in entries]
    return [Candidate(entry.name, entry.kind, own, entry.tasks) for entry, own in named if own is not None]


def _train(driver: Driver, entries: Sequence[Entry]) -> dict[str, tuple[Learned, ...]]:
    """Return the members of entries by key, those that had a look."""
    sitting, n = driver.sitting, driver.sitting.n_splits
    members = [m for entry in entries for m in sitting.members(entry.spec, *entry.identity)]
    trip = sitting.round(members, seed=stable_seed(sitting.seed, "finals", *(e.name for e in entries)))
    trip.advance(max(e.spec.training.steps for e in entries), reference=None, deadline=sitting.deadline())
    held = trip.members()
    found = {}
    for i, entry in enumerate(entries):
        places = [held[p] for p in range(i * n, (i + 1) * n)]
        if all(math.isfinite(stack.states[k].score) for stack, k in places):
            found[_key(entry)] = tuple(stack.trained(k) for stack, k in places)
    return found


def _read_back(folder: Folder, name: str) -> dict[str, tuple[Learned, ...]]:
    """Return what finals after as many trials have trained already, by key."""
    path = folder.checkpoint(name)
    if not path.is_file():
        return {}
    members, info = load_members(path)
    n = len(members) // max(1, len(info["keys"]))
    return {key: tuple(members[i * n : (i + 1) * n]) for i, key in enumerate(info["keys"])}


def _key(entry: Entry) -> str:
    return f"{stable_seed(*entry.identity):016x}"


def _affordable(driver: Driver, n: int) -> int:
    """Return how many of n entries the time left is enough for: fewer that are whole serve better than more halves."""
    left = driver.sitting.deadline() - time.monotonic()
    entry_s = float(driver.sitting.folder.read_state().get("finals_s", 0.0)) / max(1, len(driver.sitting.problem.names))
    best_s = float(driver.best_trial().user_attrs.get("train_s", 0.0))
    if math.isinf(left) or not max(entry_s, best_s):
        return n
    # Each task alone is wanted in any case, be it as far as it gets.
    return min(n, max(len(driver.sitting.problem.names), int(left / max(entry_s, best_s))))


def _answered(driver: Driver, candidate: Candidate) -> Finalist:
    """Return a candidate of networks with its out-of-fold answers."""
    problem = driver.sitting.problem
    held = out_of_fold(candidate.networks, problem.dataset)
    answered: Answers = tuple(a if candidate.can(name) else None for name, a in zip(problem.names, held, strict=True))
    return Finalist(candidate, answered)


def _of_trees(driver: Driver, t: int, grown: Trees) -> Finalist:
    """Return the trees of a task with their out-of-fold answers."""
    problem = driver.sitting.problem
    rows = validation_rows(problem.dataset)
    held = problem.tasks[t].activate(torch.from_numpy(grown.margins[rows])).numpy()
    candidate = Candidate(trees_name(grown.task), "trees", grown.forests, (grown.task,))
    return Finalist(candidate, tuple(held if name == grown.task else None for name in problem.names))


def trees_name(task: str) -> str:
    """Return the name of the candidate that a task's trees are."""
    return f"trees {task}"


def answers_on(problem: Problem, candidate: Candidate, rows: np.ndarray) -> Answers:
    """Return what a candidate answers on rows [B], the mean over its members: [B, O] a task, as a model serves it."""
    if candidate.networks:
        held = answers(candidate.networks, problem.dataset, rows)
        return tuple(a if candidate.can(name) else None for name, a in zip(problem.names, held, strict=True))
    found: list[np.ndarray | None] = []
    for task in problem.tasks:
        forests = [forest for forest in candidate.forests if forest.task == task.name]
        features = problem.features[torch.from_numpy(rows)] if forests else problem.features[:0]
        parts = [task.activate(forest.margins(features)).cpu().numpy() for forest in forests]
        found.append(np.mean(parts, axis=0) if parts else None)
    return tuple(found)


def grow(driver: Driver, *, seconds: float | None, n_trials: int | None) -> tuple[Trees | None, ...]:
    """Return the tuned trees of each task, tuned now or read back, and let the networks see their margins."""
    sitting = driver.sitting
    problem = sitting.problem
    paths = [sitting.folder.checkpoint(f"trees-{t:03d}") for t in range(len(problem.tasks))]
    done = sitting.folder.read_state().get("trees_for")
    if done == driver.n_told():
        grown = tuple(trees.load(path) if path.is_file() else None for path in paths)
    else:
        grown = trees.tune(
            problem,
            features=problem.features,
            seconds=seconds,
            n_trials=n_trials,
            seed=tree_seed(sitting.seed),
            n_workers=max(1, sitting.packing.n_workers),
            stop=lambda: sitting.interrupted,
        )
        for path, held in zip(paths, grown, strict=True):
            if held is not None:
                trees.save(path, held)
        sitting.folder.note(trees_for=driver.n_told())
    if any(held is not None for held in grown):
        sitting.see_margins([None if held is None else held.margins for held in grown])
    return grown


def tree_seed(seed: int) -> int:
    """Return the seed of all trees of a run."""
    return stable_seed(seed, "trees") % 2**31
