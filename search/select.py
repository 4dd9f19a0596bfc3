"""Which members are served for which task, decided on validation rows alone.

Letters: T tasks, V validation rows of all splits together, B rows, O numbers of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mtl_bento.dataset import Dataset
from mtl_bento.errors import RunError
from mtl_bento.forest import Forest
from mtl_bento.network import Trained, stacks
from mtl_bento.training import Learned
from mtl_bento_search.blend import pick

CHUNK = 4096
"""Rows per forward pass; fewer where they have positions."""
NETWORKS = ("shared", "group", "single")
"""Kinds of candidates that need no trees."""

Answers = tuple[np.ndarray | None, ...]
"""Answers [B, O] on some rows, one entry a task; None where a candidate has none."""


@dataclass(frozen=True)
class Candidate:
    """Something trained that can answer: one member for each split."""

    name: str
    kind: str
    """shared, group, single (networks of all tasks, of some, of one), trees, or offset (networks on top of trees)."""
    members: tuple[Learned | Forest, ...]
    tasks: tuple[str, ...] | None = None
    """The tasks that it answers; None is all."""

    def can(self, task: str) -> bool:
        """Return whether it answers a task."""
        return self.tasks is None or task in self.tasks

    @property
    def networks(self) -> tuple[Learned, ...]:
        """Those of its members that are networks: all, or none."""
        return tuple(member for member in self.members if isinstance(member, Learned))

    @property
    def forests(self) -> tuple[Forest, ...]:
        """Those of its members that are trees: all, or none."""
        return tuple(member for member in self.members if isinstance(member, Forest))


@dataclass(frozen=True)
class Finalist:
    """A candidate and its answers on every validation row, each by the member that did not learn it."""

    candidate: Candidate
    answers: Answers
    """[V, O] a task."""

    def finite(self, t: int) -> np.ndarray | None:
        """Return its answers for task t; None where it has none, or one is no finite number."""
        return finite(self.answers[t])


def finite(answered: np.ndarray | None) -> np.ndarray | None:
    """Return answers [B, O]; None where there are none, or one is no finite number."""
    return answered if answered is not None and np.isfinite(answered).all() else None


def answers(members: Sequence[Trained], dataset: Dataset, rows: np.ndarray) -> list[np.ndarray]:
    """Return the answers of trained networks on rows [B], averaged over the networks: [B, O] for each task."""
    return [np.mean(held, axis=0) for held in answers_by_member(members, dataset, rows)]


def answers_by_member(members: Sequence[Trained], dataset: Dataset, rows: np.ndarray) -> list[np.ndarray]:
    """Return the answers of each trained network on rows [B]: [members, B, O] for each task.

    Offset networks answer on top of the dataset's margins, which are out of fold: as rows that trees never learned.
    """
    index = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(dataset.device)
    held: list[list[np.ndarray]] = [[np.empty(0)] * len(members) for _ in dataset.tasks]
    with torch.inference_mode():
        for places, network in stacks(members, dataset.inputs, dataset.tasks):
            network.to(device=dataset.device, dtype=dataset.dtype)
            at_once = network.rows_at_once(CHUNK)
            held_rows = [i.unsqueeze(0) for i in index.split(at_once)]
            chunks = [network.answers(dataset.inputs_of(i), dataset.margins_of(i, network)) for i in held_rows]
            for t, parts in enumerate(zip(*chunks, strict=True)):
                joined = torch.cat(parts, 1).cpu().numpy()  # [K, B, O]
                for row, place in enumerate(places):
                    held[t][place] = joined[row]
    return [np.stack(task) for task in held]


def out_of_fold(members: Sequence[Trained], dataset: Dataset) -> list[np.ndarray]:
    """Return answers on every validation row, each by the member that did not learn it: [V, O] a task."""
    parts = [
        answers([member], dataset, split.valid.cpu().numpy())
        for member, split in zip(members, dataset.splits, strict=True)
    ]
    return [np.concatenate(held) for held in zip(*parts, strict=True)]


def validation_rows(dataset: Dataset) -> np.ndarray:
    """Return the validation rows of all splits [V], in the order of `out_of_fold`."""
    return np.concatenate([split.valid.cpu().numpy() for split in dataset.splits])


def row_weights(dataset: Dataset, rows: np.ndarray) -> np.ndarray | None:
    """Return the weights of rows [B], or None where all are 1."""
    return None if dataset.weights is None else dataset.weights.cpu().numpy().astype(np.float64)[rows]


def task_losses(answered: np.ndarray, dataset: Dataset, t: int, rows: np.ndarray) -> np.ndarray:
    """Return losses of one task's answers [B, O] on rows [B], in units of the trivial loss; NaN without a label."""
    targets = dataset.targets[t].cpu()[torch.from_numpy(rows)]
    loss = dataset.tasks[t].answer_losses(torch.from_numpy(np.ascontiguousarray(answered)), targets)
    return np.asarray(loss.double().numpy() / float(dataset.trivial[t]))


def mean_loss(losses: np.ndarray, weights: np.ndarray | None) -> float:
    """Return the mean of losses [B] where there is a label; infinite where there is none, or an answer is no number."""
    held = ~np.isnan(losses)
    return float(np.average(losses[held], weights=None if weights is None else weights[held])) if held.any() else np.inf


@dataclass(frozen=True)
class Choice:
    """Who serves each task."""

    candidates: tuple[Candidate, ...]
    """Those that take part, those whose trees others build on among them."""
    shares: np.ndarray
    """Share of each candidate in each task's answer, [T, candidates], rows summing to one."""

    @property
    def members(self) -> tuple[Learned | Forest, ...]:
        """The members of all candidates."""
        return tuple(member for candidate in self.candidates for member in candidate.members)

    @property
    def blend(self) -> np.ndarray:
        """[T, members], rows summing to one: the members of a candidate share alike."""
        sizes = [len(candidate.members) for candidate in self.candidates]
        return np.asarray(np.repeat(self.shares / np.array(sizes), sizes, axis=1))

    def served_by(self, t: int) -> dict[str, float]:
        """Return the names of the candidates that serve task t and their shares, the largest first."""
        held = [(c.name, float(share)) for c, share in zip(self.candidates, self.shares[t], strict=True) if share]
        return dict(sorted(held, key=lambda pair: -pair[1]))

    def mixed(self, answers_of: Sequence[Answers], t: int) -> np.ndarray:
        """Return what the choice answers for task t, given each candidate's own answers: [B, O]."""
        parts = [(share, held[t]) for share, held in zip(self.shares[t], answers_of, strict=True) if share]
        return np.asarray(sum(share * part for share, part in parts if part is not None))


def choose(finalists: Sequence[Finalist], dataset: Dataset, *, most: int, kinds: Sequence[str] | None = None) -> Choice:
    """Return who serves each task: greedily the finalists of some kinds (default all), see `blend.pick`.

    Args:
        finalists: with their out-of-fold answers.
        dataset: whose validation rows decide.
        most: candidates that may serve a task.
        kinds: those that may take part.

    Raises RunError naming a task that none of them answers with finite numbers.
    """
    rows = validation_rows(dataset)
    weights = row_weights(dataset, rows)
    held = [f for f in finalists if kinds is None or f.candidate.kind in kinds]
    shares = np.zeros((len(dataset.tasks), len(held)))
    for t, task in enumerate(dataset.tasks):
        places = [p for p, f in enumerate(held) if f.finite(t) is not None]
        if not places:
            raise RunError(
                f"Nothing that may be served answers target {task.name!r} with finite numbers; "
                "allow more members, or lower `search: {space: {lr: ...}}`."
            )
        loss = partial(task_losses, dataset=dataset, t=t, rows=rows)
        shares[t, places] = pick(
            [held[p].answers[t] for p in places],
            [held[p].candidate.kind for p in places],
            loss,
            weights=weights,
            most=most,
        )
    kept = [p for p in range(len(held)) if shares[:, p].any() or _built_on(held, p, shares, dataset)]
    return Choice(tuple(held[p].candidate for p in kept), shares[:, kept])


def _built_on(held: Sequence[Finalist], place: int, shares: np.ndarray, dataset: Dataset) -> bool:
    """Return whether a finalist is the trees of a task that a network on top of trees serves."""
    trees = held[place].candidate
    if trees.kind != "trees":
        return False
    served = [
        task.name
        for t, task in enumerate(dataset.tasks)
        for p, share in enumerate(shares[t])
        if share and held[p].candidate.kind == "offset"
    ]
    return any(map(trees.can, served))


def best_of(finalists: Sequence[Finalist], dataset: Dataset, t: int, kind: str) -> Finalist | None:
    """Return the finalist of a kind with the lowest validation loss on task t; None where none answers in numbers."""
    rows = validation_rows(dataset)
    weights = row_weights(dataset, rows)
    found = [
        (mean_loss(task_losses(held, dataset, t, rows), weights), place)
        for place, f in enumerate(finalists)
        if f.candidate.kind == kind and (held := f.finite(t)) is not None
    ]
    return finalists[min(found)[1]] if found else None
