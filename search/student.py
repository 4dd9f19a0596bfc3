"""The student: one network of all tasks that learns from what is served, for small latency and size.

Knowledge distillation (Hinton et al., 2015) with teacher annealing (Clark et al., BAM, ACL 2019): the loss goes over
from the teacher's answers to the labels while the student trains. Where BAM's teachers answer rows that they learned,
ours answer each row by members that did not learn it, wherever there are such: the networks of a holdout learned it.

With folds there is a student of each: they say which step is best, and what is answered out of fold, by which the
student is calibrated. The one that is tested and kept has learned all of their rows up to that step. (A fold's teachers
learned the rows that it validates on, and their answers on its training rows carry some of that over: a small lead, in
the choice of a step and in the calibration.)

Letters: N rows of the table, T tasks, V validation rows of all splits together, O numbers of an answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from mtl_bento.dataset import Dataset
from mtl_bento.training import Learned, Member, MemberSpec, stable_seed
from mtl_bento_search.arms import Arm, Arms
from mtl_bento_search.checkpoints import load_members, save_members
from mtl_bento_search.finals import answers_on
from mtl_bento_search.objective import LEAST, score
from mtl_bento_search.problem import Problem
from mtl_bento_search.select import Answers, Candidate, answers, out_of_fold, validation_rows
from mtl_bento_search.study import Driver

FILES = "student-"
"""What the files begin with that hold students."""


@dataclass(frozen=True)
class Student:
    """One network that learned from what is served."""

    trial: int
    """Whose configuration it has."""
    network: Learned
    out_of_fold: list[np.ndarray]
    """What students answer on every validation row that they did not learn, [V, O] a task."""
    name: str
    """Of its file."""

    def arm(self, problem: Problem, rows: np.ndarray) -> Arm:
        """Return its answers on rows [B]."""
        return Arm(answers([self.network], problem.dataset, rows), [{"student": 1.0}] * len(problem.tasks))


def learn(driver: Driver, arms: Arms) -> Student | None:
    """Return the student of what is served, trained or read back; None where somebody interrupted."""
    sitting = driver.sitting
    trial = driver.best_trial().number
    spec = _annealed(driver.candidate(trial)[1])
    name = f"{FILES}{driver.n_told():05d}"
    path = sitting.folder.checkpoint(f"{name}-{_key(arms, spec)}")
    if path.is_file():
        held, _ = load_members(path)
    else:
        sitting.executor.change(partial(Dataset.with_teacher, answers=lessons(arms)))
        trained = _trained(driver, spec, driver.ordinal(trial))
        if trained is None:
            return None
        held = trained
        save_members(path, held, {"trial": trial})
        sitting.folder.keep_only(name, FILES)
    *folds, network = held
    return Student(trial, network, out_of_fold(folds, sitting.dataset), path.stem)


def learn_again(driver: Driver, arms: Arms, student: Student, rows: np.ndarray) -> Learned | None:
    """Return the student trained again on rows [B], or read back; None where somebody interrupted."""
    sitting = driver.sitting
    path = sitting.folder.checkpoint(f"{student.name}-again")
    if path.is_file():
        return load_members(path)[0][0]
    sitting.executor.change(partial(Dataset.with_teacher, answers=lessons(arms)))
    member = replace(student.network.member, until=student.network.step)
    trained = sitting.trained_on(rows, [member], seed=stable_seed(sitting.seed, "student again"))
    if trained is None:
        return None
    if not trained[0].finite:  # it stays as it was tested
        trained = [student.network]
    save_members(path, trained, {})
    return trained[0]


def lessons(arms: Arms) -> list[np.ndarray]:
    """Return what is served on every row, [N, O] a task: by members and trees that did not learn it, where there are.

    The networks of a holdout all learned its training rows; trees have answers to these by cross-fitting.
    """
    problem = arms.problem
    rows, n_rows = validation_rows(problem.dataset), problem.table.num_rows
    out_of_fold = arms.out_of_fold()
    found = [np.empty((n_rows, held.shape[1]), dtype=np.float32) for held in out_of_fold]
    for whole, held in zip(found, out_of_fold, strict=True):
        whole[rows] = held
    learned = np.setdiff1d(problem.protocol.learned, rows)
    others = np.setdiff1d(np.arange(n_rows), np.concatenate([rows, learned]))
    for part, answered in ((learned, partial(_crossed, arms)), (others, partial(answers_on, problem))):
        if len(part):
            each = [answered(candidate, part) for candidate in arms.ours.candidates]
            for t, whole in enumerate(found):
                whole[part] = arms.ours.mixed(each, t)
    return found


def _crossed(arms: Arms, candidate: Candidate, rows: np.ndarray) -> Answers:
    """Return what a candidate answers on rows [B] that its members learned; trees by cross-fitted margins."""
    problem = arms.problem
    if candidate.networks:
        return answers_on(problem, candidate, rows)
    found: list[np.ndarray | None] = []
    for task, grown in zip(problem.tasks, arms.finals.trees, strict=True):
        own = grown is not None and candidate.can(task.name)
        found.append(task.activate(torch.from_numpy(grown.margins[rows])).numpy() if own and grown else None)
    return tuple(found)


def _annealed(spec: MemberSpec) -> MemberSpec:
    return spec.model_copy(update={"training": spec.training.model_copy(update={"label_weight": 0.0})})


def _key(arms: Arms, spec: MemberSpec) -> str:
    """Return what changes with the teacher and the student's configuration."""
    teacher = [[c.name for c in arms.ours.candidates], arms.ours.shares.tolist()]
    return f"{stable_seed(teacher, spec.model_dump_json()):016x}"


def _trained(driver: Driver, spec: MemberSpec, ordinal: int) -> list[Learned] | None:
    """Return a student of each split, and the one that is kept."""
    sitting, references = driver.sitting, driver.references.single_losses
    members = sitting.members(spec, "student", ordinal)
    trip = sitting.round(members, seed=stable_seed(sitting.seed, "student"))
    reference = references.clip(LEAST, None).tolist()
    if not trip.advance(spec.training.steps, reference=reference, deadline=math.inf):
        return None
    folds = [stack.trained(k) for _, (stack, k) in sorted(trip.members().items())]
    if len(folds) == 1:
        return [*folds, *folds]
    scores = {
        step: score(np.mean(losses, axis=0), references, sitting.weights)
        for step, losses in trip.looks(range(len(folds))).items()
    }
    best = max(scores, key=lambda step: (scores[step], -step))
    member = Member(spec, stable_seed(sitting.seed, "student", ordinal), until=best)
    kept = sitting.trained_on(sitting.problem.protocol.learned, [member], seed=stable_seed(sitting.seed, "student"))
    if kept is not None and not kept[0].finite:  # beyond what the folds show: the first of theirs
        kept = folds[:1]
    return None if kept is None else [*folds, *kept]
