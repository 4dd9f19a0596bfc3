"""Which members are served for which task, decided on validation rows alone.

Letters: T tasks, V validation rows of all splits together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mtl_bento.dataset import Dataset
from mtl_bento.network import Trained, stacks

CHUNK = 4096
"""Rows per forward pass; fewer where they have positions."""
MARGIN = 0.01
"""A single-task network must be better by more than this share of its own loss ..."""


@dataclass(frozen=True)
class Candidate:
    """A trained configuration: one member for each split."""

    name: str
    members: tuple[Trained, ...]


def answers(members: Sequence[Trained], dataset: Dataset, rows: np.ndarray) -> list[np.ndarray]:
    """Return the answers of trained members on rows [B], averaged over the members: [B, O] for each task."""
    parts = answers_by_member(members, dataset, rows)
    return [np.mean(held, axis=0) for held in parts]


def answers_by_member(members: Sequence[Trained], dataset: Dataset, rows: np.ndarray) -> list[np.ndarray]:
    """Return the answers of each trained member on rows [B]: [members, B, O] for each task.

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


def out_of_fold(candidate: Candidate, dataset: Dataset) -> list[np.ndarray]:
    """Return a candidate's answers on every validation row, each by the member that did not learn it: [V, O] a task."""
    parts = [
        answers([member], dataset, split.valid.cpu().numpy())
        for member, split in zip(candidate.members, dataset.splits, strict=True)
    ]
    return [np.concatenate(held) for held in zip(*parts, strict=True)]


def validation_rows(dataset: Dataset) -> np.ndarray:
    """Return the validation rows of all splits [V], in the order of `out_of_fold`."""
    return np.concatenate([split.valid.cpu().numpy() for split in dataset.splits])


def row_losses(answered: Sequence[np.ndarray], dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Return losses of answers on rows [V], in units of the trivial loss: [T, V], NaN where a label is missing."""
    losses = []
    for t, task in enumerate(dataset.tasks):
        targets = dataset.targets[t].cpu()[torch.from_numpy(rows)]
        loss = task.answer_losses(torch.from_numpy(answered[t]), targets)
        losses.append(loss.double().numpy() / float(dataset.trivial[t]))
    return np.stack(losses)


def single_wins(shared: np.ndarray, single: np.ndarray, weights: np.ndarray | None = None) -> bool:
    """Return whether a single-task network is better by more than max(1 standard error, 1 %) on paired row losses [V].

    Rows without a label are NaN in both. The standard error is that of the mean paired difference.
    """
    held = ~np.isnan(shared)
    difference = shared[held] - single[held]
    weight = np.ones(len(difference)) if weights is None else weights[held]
    if len(difference) < 2 or not weight.sum():
        return False
    mean = float(np.average(difference, weights=weight))
    spread = np.sqrt(float(np.average((difference - mean) ** 2, weights=weight)))
    error = spread * np.sqrt(float((weight**2).sum())) / float(weight.sum())
    return bool(mean > max(error, MARGIN * float(np.average(single[held], weights=weight))))


@dataclass(frozen=True)
class Choice:
    """Who serves each task."""

    members: tuple[Trained, ...]
    blend: np.ndarray
    """[T, members], rows summing to one."""
    served_by: tuple[str, ...]
    """Name of the candidate that serves each task."""
    single: tuple[Candidate, ...]
    """The single-task candidate of each task that the shared one was compared with: the best on validation."""


def choose(shared: Candidate, singles: Sequence[Sequence[Candidate]], dataset: Dataset) -> Choice:
    """Return the shared candidate for every task, but a single-task one where that is better by the rule.

    Args:
        shared: the best trial.
        singles: for each task, its single-task candidates (at the defaults, at the best configuration).
        dataset: whose validation rows decide.
    """
    rows = validation_rows(dataset)
    weights = None if dataset.weights is None else dataset.weights.cpu().numpy().astype(np.float64)[rows]
    ours = row_losses(out_of_fold(shared, dataset), dataset, rows)
    best: list[Candidate] = []
    served: list[Candidate] = []
    for t, candidates in enumerate(singles):
        losses = [row_losses(out_of_fold(c, dataset), dataset, rows)[t] for c in candidates]
        means = [_mean(loss, weights) for loss in losses]
        first = int(np.argmin(means))
        best.append(candidates[first])
        served.append(candidates[first] if single_wins(ours[t], losses[first], weights) else shared)
    pool = list({id(c): c for c in served}.values())
    members = tuple(member for candidate in pool for member in candidate.members)
    owner = [candidate for candidate in pool for _ in candidate.members]
    blend = np.array([[float(o is s) / len(s.members) for o in owner] for s in served])
    return Choice(members, blend, tuple(c.name for c in served), tuple(best))


def _mean(losses: np.ndarray, weights: np.ndarray | None) -> float:
    held = ~np.isnan(losses)
    return float(np.average(losses[held], weights=None if weights is None else weights[held])) if held.any() else np.inf
