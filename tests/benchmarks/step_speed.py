"""The bare training step: our stacks against two loops written as an expert would.

    python -m tests.benchmarks.step_speed [--widths 32 64 128 256] [--batches 64 256] [--steps 60]

Arms, each on one core and one thread, on the same rows (made up: 50 numbers, 12 categories of 8 levels, three targets):

- loader: one nn.Module a configuration, DataLoader, torch.optim.AdamW(fused=True)
- index:  the same with index batches on resident tensors
- stack:  this project's cohort of K members, at the K that `search/rounds.py` chooses

Prints milliseconds a member-step and ratios; the arms of one row are timed in turn, three times each, the least counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtl_bento.columns._base import COLUMNS
from mtl_bento.dataset import Dataset
from mtl_bento.encoders._base import ENCODERS
from mtl_bento.heads.dense import DenseHeadSpec
from mtl_bento.network import Inputs, NetworkSpec
from mtl_bento.schema import Schema
from mtl_bento.tasks._base import TASKS
from mtl_bento.training import Cohort, Member, MemberSpec, Stack, TrainingSpec, never
from mtl_bento.trunks.mlp import MLPSpec
from mtl_bento_search.rounds import Packing
from mtl_bento_search.tuning import tune_process

ROWS, NUMBERS, CATEGORIES, LEVELS = 20_000, 50, 12, 8
REPEATS = 3
DROPOUT = 0.1


def made_up() -> Dataset:
    """Return rows with a binary target, one of three classes and a number."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(ROWS, NUMBERS))
    levels = rng.integers(0, LEVELS, size=(ROWS, CATEGORIES))
    drive = numbers[:, :5].sum(1) + levels[:, 0] - 3.5
    columns = {f"x{i}": pa.array(numbers[:, i]) for i in range(NUMBERS)}
    columns |= {f"c{i}": pa.array([f"l{v}" for v in levels[:, i]]) for i in range(CATEGORIES)}
    columns |= {"yes": pa.array(drive > 0), "kind": pa.array(np.digitize(drive, [-1, 1])), "much": pa.array(drive)}
    table = pa.table(columns)
    kinds = dict.fromkeys(table.column_names[:NUMBERS], "numeric") | {f"c{i}": "categorical" for i in range(CATEGORIES)}
    schema = Schema(columns=tuple(COLUMNS.spec_class(k).fit(n, table[n]) for n, k in kinds.items()))  # type: ignore[attr-defined]
    tasks = []
    for name, kind in (("yes", "binary"), ("kind", "multiclass"), ("much", "regression")):
        spec = TASKS.parse({"name": name, "kind": kind})
        tasks.append(TASKS.class_of(type(spec))(TASKS.class_of(type(spec)).fit(spec, table[name])))
    blocks = schema.encode(table)
    inputs = Inputs.fit(schema.blocks, {b: torch.from_numpy(v) for b, v in blocks.items()})
    rows = np.arange(ROWS)
    return Dataset.build(tasks, inputs, blocks, [t.encode(table[t.name]) for t in tasks], [(rows[2000:], rows[:2000])])


class Plain(nn.Module):
    """The same network as an expert writes it for one configuration."""

    def __init__(self, n_features: int, width: int) -> None:
        super().__init__()
        layers = [nn.Linear(n_features, width), nn.ReLU(), nn.Dropout(DROPOUT)]
        self.trunk = nn.Sequential(*layers, nn.Linear(width, width), nn.ReLU(), nn.Dropout(DROPOUT))
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in (1, 3, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """x [B, F] -> outputs of the three heads."""
        state = self.trunk(x)
        return [head(state) for head in self.heads]


def plain_loss(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Return the sum of the three losses."""
    yes, kind, much = outputs
    a = nn.functional.binary_cross_entropy_with_logits(yes.squeeze(-1), targets[0].float())
    return a + nn.functional.cross_entropy(kind, targets[1]) + nn.functional.mse_loss(much.squeeze(-1), targets[2])


def loop(batches: Iterator[list[Tensor]], n_features: int, width: int, steps: int) -> Callable[[], None]:
    """Return a function that takes `steps` steps of the plain network."""
    model = Plain(n_features, width)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)

    def run() -> None:
        for _ in range(steps):
            x, *targets = next(batches)
            loss = plain_loss(model(x), targets)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    return run


def loader_batches(tensors: list[Tensor], batch: int) -> Iterator[list[Tensor]]:
    """Yield batches of a DataLoader for ever."""
    while True:
        yield from DataLoader(TensorDataset(*tensors), batch_size=batch, shuffle=True, drop_last=True)


def index_batches(tensors: list[Tensor], batch: int) -> Iterator[list[Tensor]]:
    """Yield batches by index for ever."""
    n = len(tensors[0])
    while True:
        order = torch.randperm(n)
        for start in range(0, n - batch + 1, batch):
            rows = order[start : start + batch]
            yield [tensor.index_select(0, rows) for tensor in tensors]


def stack(dataset: Dataset, width: int, batch: int, steps: int) -> tuple[Callable[[], None], int]:
    """Return a function that takes `steps` steps of a stack, and its K."""
    network = NetworkSpec(
        encoders={block: ENCODERS.spec_class(block)() for block in dataset.inputs.columns},
        trunk=MLPSpec(width=width, shared_depth=2, dropout=DROPOUT),
        heads={task.name: DenseHeadSpec() for task in dataset.tasks},
    )
    spec = MemberSpec(network=network, training=TrainingSpec(batch_size=batch, steps=100_000))
    n = Packing.suited(dataset.device, n_workers=1).stack_size(Member(spec, seed=0))
    cohort = Cohort(Stack(tuple(Member(spec, seed=k) for k in range(n)), 0), dataset)
    cohort.network.set_generator(torch.Generator().manual_seed(0))

    def run() -> None:
        cohort._train(dataset, cohort.step + steps, never)

    return run, n


def least(arms: list[tuple[Callable[[], None], int]], steps: int) -> list[float]:
    """Return the least milliseconds a member-step of each arm, the arms timed in turn."""
    best = [float("inf")] * len(arms)
    for run, _ in arms:
        run()  # warm up
    for _ in range(REPEATS):
        for i, (run, members) in enumerate(arms):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], (time.perf_counter() - start) / steps / members * 1e3)
    return best


def main() -> None:
    """Print a row for each width and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tune_process()
    dataset = made_up()
    encoder_specs = [ENCODERS.spec_class(block)() for block in dataset.inputs.columns]
    encoders = [
        ENCODERS.class_of(type(spec))([spec], columns, dataset.inputs.fitted[block], [torch.Generator()])
        for spec, (block, columns) in zip(encoder_specs, dataset.inputs.columns.items(), strict=True)
    ]
    with torch.no_grad():  # the loops get their features ready-made, which favours them
        parts = [encoder(values.unsqueeze(0))[0] for encoder, values in zip(encoders, dataset.blocks, strict=True)]
    x = torch.cat(parts, -1)
    tensors = [x, *dataset.targets]
    print(f"{x.shape[1]} features, one thread; ms a member-step, and how many times faster than the loops")
    print("width batch   K  loader   index   stack   loader/stack  index/stack")
    for width in options.widths:
        for batch in options.batches:
            ours, n = stack(dataset, width, batch, options.steps)
            arms = [
                (loop(loader_batches(tensors, batch), x.shape[1], width, options.steps), 1),
                (loop(index_batches(tensors, batch), x.shape[1], width, options.steps), 1),
                (ours, n),
            ]
            a, b, c = least(arms, options.steps)
            print(f"{width:5d} {batch:5d} {n:3d} {a:7.3f} {b:7.3f} {c:7.3f} {a / c:13.1f} {b / c:12.1f}", flush=True)


if __name__ == "__main__":
    main()
