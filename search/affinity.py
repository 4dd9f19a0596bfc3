"""Which tasks might share a trunk: affinities between tasks, and the partitions that they propose.

Every affinity predicts the gain of sharing only weakly (Standley et al., ICML 2020, found the same), so that what is
proposed here is trained and judged on validation rows; nothing is decided by an affinity.

Letters: T tasks, V validation rows, B rows of a batch, P parameters outside the heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtl_bento.dataset import Dataset
from mtl_bento.network import Network, Trained, stacks

BATCH = 256
"""Rows of a gradient; fewer where they have positions."""
BATCHES = 32
"""Batches that gradients are taken of at most."""
FEWEST = 10
"""Rows with labels of both tasks below which their errors say nothing."""

Partition = tuple[tuple[int, ...], ...]
"""Places of tasks in groups, each in one."""


def gradient_cosines(member: Trained, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Return how alike the tasks pull at what they share: cosines [T, T] of the gradients of their losses.

    Gradients are of the parameters outside the heads, one a batch of rows [B], without dropout. Inner products and
    squared norms are summed over batches before they are divided: at the end of training the gradient of all rows is
    near zero, while those of batches still differ from it. A task that none of the rows knows, or whose gradient is no
    number, has cosine 0 with others.
    """
    [(_, network)] = stacks([member], dataset.inputs, dataset.tasks)
    network.to(device=dataset.device, dtype=dataset.dtype).requires_grad_(True)
    shared = [p for name, p in network.named_parameters() if not name.startswith("heads.")]
    size = network.rows_at_once(BATCH)
    drawn = np.random.default_rng(0).permutation(rows)[: BATCHES * size]
    index = torch.from_numpy(drawn.astype(np.int64)).to(dataset.device)
    products = torch.zeros(len(dataset.tasks), len(dataset.tasks), dtype=torch.float64)
    for batch in index.split(size):
        gradients = _gradients(network, shared, dataset, batch.unsqueeze(0))
        products += (gradients @ gradients.T).double().cpu()
    norms = products.diagonal().sqrt()
    cosines = (products / (norms[:, None] * norms).clamp_min(1e-30)).nan_to_num(0.0, 0.0, 0.0).numpy()
    np.fill_diagonal(cosines, 1.0)
    return np.asarray(cosines)


def _gradients(network: Network, shared: Sequence[Tensor], dataset: Dataset, index: Tensor) -> Tensor:
    """Return the gradient of each task's loss on rows [1, B] by the shared parameters: [T, P]."""
    losses = [
        task.loss(out, labels, weights)
        for (labels_of, weights) in [dataset.labels_of(index)]
        for task, out, labels in zip(dataset.tasks, network(dataset.inputs_of(index)), labels_of, strict=True)
    ]
    rows = [torch.autograd.grad(loss.sum(), shared, retain_graph=True, allow_unused=True) for loss in losses]
    whole = [
        torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(row, shared, strict=True)])
        for row in rows
    ]
    return torch.stack(whole)


def error_correlations(losses: np.ndarray) -> np.ndarray:
    """Return Spearman's correlations [T, T] of out-of-fold row losses [T, V] over the rows that both tasks know.

    Single-task networks that err on the same rows lack the same knowledge. 0 where fewer than ten rows have both
    labels, or one task's losses are all alike.
    """
    n = len(losses)
    found = np.eye(n)
    for i in range(n):
        for j in range(i):
            both = np.isfinite(losses[[i, j]]).all(0)
            if both.sum() < FEWEST:
                continue
            one, two = (_ranks(losses[t, both]) for t in (i, j))
            spread = one.std() * two.std()
            if spread > 0:
                found[i, j] = found[j, i] = np.mean((one - one.mean()) * (two - two.mean())) / spread
    return found


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks, those of equal values their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def propose(affinities: Sequence[np.ndarray], most: int = 5) -> tuple[Partition, ...]:
    """Return partitions of the tasks that affinities [T, T] suggest, at most `most`, each once.

    Tasks are merged by average linkage; two groups are proposed before three, of all affinities together (standardised)
    before those of each. All in one group and each alone are never among them: those are trained anyway. Two tasks or
    fewer leave nothing to propose.
    """
    if not affinities:
        return ()
    clean = [_standardised(affinity) for affinity in affinities]
    views = [np.mean(clean, axis=0), *clean] if len(clean) > 1 else clean
    levels = [_merged(view) for view in views]
    proposed: dict[Partition, None] = {}
    for n_groups in range(2, len(clean[0])):
        for level in levels:
            proposed.setdefault(level[n_groups])
    return tuple(proposed)[:most]


def _standardised(affinity: np.ndarray) -> np.ndarray:
    """Return an affinity made symmetric, its entries between tasks of mean 0 and spread 1; 0 where not known."""
    both = np.nan_to_num((affinity + affinity.T) / 2)
    between = both[~np.eye(len(both), dtype=bool)]
    return np.asarray((both - between.mean()) / (between.std() or 1.0)) if len(between) else both


def _merged(affinity: np.ndarray) -> dict[int, Partition]:
    """Return the partition into each number of groups: the two groups of the highest mean affinity merge first."""
    groups: list[tuple[int, ...]] = [(t,) for t in range(len(affinity))]
    levels = {len(groups): tuple(groups)}
    while len(groups) > 1:
        pairs = [(a, b) for b in range(len(groups)) for a in range(b)]
        a, b = max(pairs, key=lambda pair: affinity[np.ix_(groups[pair[0]], groups[pair[1]])].mean())
        joined = tuple(sorted(groups[a] + groups[b]))
        groups = sorted([g for k, g in enumerate(groups) if k not in (a, b)] + [joined])
        levels[len(groups)] = tuple(groups)
    return levels
