"""Which affinity foretells what two tasks gain by sharing: all pairs are trained, and three affinities set against it.

    python -m tests.benchmarks.affinities --data FOLDER [--sets emotions mtr_atp1d mtr_wq] [--seeds 2] [--steps N]

For each set, at the default configuration: every task alone, every pair of tasks, all tasks together. What task j gains
beside task i is 1 - L(j beside i) / L(j alone) on out-of-fold rows, the mean over seeds; what a pair gains the mean of
its two. Printed are rank correlations (Spearman's) of the pairs' gains with

- gradients:  cosines of the tasks' gradients at the end of training, as a search takes them
- errors:     correlations of the row losses of the tasks alone, as a search takes them
- look-ahead: how much of task j's loss a step along task i's gradient saves, on the same rows, the mean over the course
  of training (TAG; Fifty et al., NeurIPS 2021)

and of one half of the seeds' gains with the other half's, which no affinity can be expected to surpass; and how many
seconds each took beside the training of the network that it reads.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from mtl_bento.dataset import Dataset
from mtl_bento.network import Network, stacks
from mtl_bento.training import Cohort, Learned, Stack
from mtl_bento_search import affinity
from mtl_bento_search.executors.local import make_executor
from mtl_bento_search.select import out_of_fold, task_losses, validation_rows
from mtl_bento_search.sitting import Sitting
from mtl_bento_search.space import within
from tests.benchmarks.search_speed import CORES
from tests.benchmarks.sets import Set, read_set, sitting

SETS = ("emotions", "mtr_atp1d", "mtr_wq")
LOOKS = 12
"""How often on the course of training TAG looks ahead; the paper does at every tenth step."""
RELATIVE_STEP = 0.01
"""Length of the step that is looked ahead, as a share of the length of the parameters that are shared."""


def gains(held: Sitting, data: Set) -> tuple[np.ndarray, np.ndarray, Learned]:
    """Return gains [T, T] of task j beside task i, row losses [T, V] of the tasks alone, and all tasks' network."""
    names, spec = data.problem.names, data.space.member(data.space.defaults())
    alone = [(name,) for name in names]
    groups = [tuple(names), *alone, *itertools.combinations(names, 2)]
    members = [m for group in groups for m in held.members(within(spec, group, names), *group)]
    trip = held.round(members, seed=held.seed)
    trip.advance(spec.training.steps, reference=None, deadline=float("inf"))
    found, n, dataset = trip.members(), held.n_splits, data.problem.dataset
    rows = validation_rows(dataset)
    losses: dict[tuple[str, ...], np.ndarray] = {}
    for i, group in enumerate(groups):
        trained = [found[place][0].trained(found[place][1]) for place in range(i * n, (i + 1) * n)]
        answers = out_of_fold(trained, dataset)
        losses[group] = np.stack([task_losses(held, dataset, t, rows) for t, held in enumerate(answers)])
        if not i:
            whole = trained[0]
    own = np.stack([losses[name,][t] for t, name in enumerate(names)])
    matrix = np.full((len(names), len(names)), np.nan)
    for one, other in itertools.combinations(range(len(names)), 2):
        beside = losses[names[one], names[other]]
        for i, j in ((one, other), (other, one)):
            matrix[i, j] = 1 - np.nanmean(beside[j]) / np.nanmean(own[j])
    return matrix, own, whole


def look_ahead(held: Sitting, data: Set) -> np.ndarray:
    """Return TAG's affinities [T, T], of i to j, over the course of training all tasks together on the first split."""
    dataset = data.problem.dataset
    spec = data.space.member(data.space.defaults())
    member = held.members(spec, *data.problem.names)[0]
    cohort, total = Cohort(Stack((member,), held.seed), dataset), np.zeros((len(dataset.tasks),) * 2)
    rows = dataset.splits[0].train
    for look in range(1, LOOKS + 1):
        cohort.advance(dataset, spec.training.steps * look // LOOKS)
        state = {name: value.clone() for name, value in cohort.network.member_state(0).items()}
        [(_, network)] = stacks([Learned(spec.network, state, member, cohort.step)], dataset.inputs, dataset.tasks)
        network.requires_grad_(True)
        index = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(look))[: affinity.BATCH]]
        total += saved(network, dataset, index.unsqueeze(0))
    return total / LOOKS


def saved(network: Network, dataset: Dataset, index: Tensor) -> np.ndarray:
    """Return the share of task j's loss on rows [1, B] that a step along task i's gradient saves: [T, T]."""
    shared = [p for name, p in network.named_parameters() if not name.startswith("heads.")]

    def losses() -> list[Tensor]:
        labels, weights = dataset.labels_of(index)
        outputs = network(dataset.inputs_of(index))
        return [task.loss(o, y, weights).sum() for task, o, y in zip(dataset.tasks, outputs, labels, strict=True)]

    before = losses()
    slopes = [torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True) for loss in before]
    length = torch.stack([p.norm() for p in shared]).norm()
    found = np.zeros((len(before),) * 2)
    for i, slope in enumerate(slopes):
        step = [torch.zeros_like(p) if g is None else g for g, p in zip(slope, shared, strict=True)]
        rate = RELATIVE_STEP * length / torch.stack([g.norm() for g in step]).norm().clamp_min(1e-12)
        with torch.no_grad():
            kept = [p.clone() for p in shared]
            for p, g in zip(shared, step, strict=True):
                p.sub_(rate * g)
            after = losses()
            for p, old in zip(shared, kept, strict=True):
                p.copy_(old)
        found[i] = [1 - (new / old).item() for new, old in zip(after, before, strict=True)]
    return found


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's correlation of two matrices [T, T] over pairs, the two directions of each averaged."""
    upper = np.triu_indices(len(one), 1)
    return float(spearmanr(((one + one.T) / 2)[upper], ((other + other.T) / 2)[upper]).statistic)


def measured(data: Set, seeds: Sequence[int]) -> None:
    """Print one set's correlations."""
    each: list[np.ndarray] = []
    kinds: dict[str, list[np.ndarray]] = {"gradients": [], "errors": [], "look-ahead": []}
    took = dict.fromkeys([*kinds, "training"], 0.0)
    for seed in seeds:
        dataset = data.problem.dataset
        with make_executor(dataset, n_workers=CORES) as executor, sitting(data, executor, seed=seed) as held:
            started = time.perf_counter()
            matrix, own, whole = gains(held, data)
            took["training"] += time.perf_counter() - started
            each.append(matrix)
            rows = dataset.splits[0].train.numpy()
            for kind, of in (
                ("gradients", partial(affinity.gradient_cosines, whole, dataset, rows)),
                ("errors", partial(affinity.error_correlations, own)),
                ("look-ahead", partial(look_ahead, held, data)),
            ):
                started = time.perf_counter()
                kinds[kind].append(of())
                took[kind] += time.perf_counter() - started
    mean = np.mean(each, axis=0)
    halves = [np.mean(each[i::2], axis=0) for i in (0, 1)]
    n = len(mean)
    pairs = ((mean + mean.T) / 2)[np.triu_indices(n, 1)]
    said = ", ".join(f"{kind} {correlation(np.mean(held, axis=0), mean):+.2f}" for kind, held in kinds.items())
    print(
        f"{data.name}: {n * (n - 1) // 2} pairs gain {pairs.mean():+.3f} ({pairs.min():+.3f} to {pairs.max():+.3f}); "
        f"{said}; the gains of other seeds {correlation(*halves):+.2f}; seconds "
        + ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in took.items()),
        flush=True,
    )


def main() -> None:
    """Run the benchmark."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of datasets.json")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", type=int, default=2, help="at least 2")
    parser.add_argument("--steps", type=int, help="of a network, in place of the default's")
    asked = parser.parse_args()
    for name in asked.sets:
        measured(read_set(asked.data, name, steps=asked.steps), range(max(2, asked.seeds)))


if __name__ == "__main__":
    main()
