"""A small table with everything in it, and what builds datasets and networks for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from mtl_bento.columns._base import COLUMNS
from mtl_bento.dataset import Dataset
from mtl_bento.encoders._base import ENCODERS
from mtl_bento.forest import Forest
from mtl_bento.heads.dense import DenseHeadSpec
from mtl_bento.model import Model
from mtl_bento.network import Inputs, NetworkSpec
from mtl_bento.schema import Schema
from mtl_bento.tasks._base import TASKS
from mtl_bento.training import Member, MemberSpec, Stack, TrainingSpec, advance, lined_up
from mtl_bento.trunks.mlp import MLPSpec

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real multi-task sets, beside the checkout where they are; tests that read them skip where they are not."""


def make_table(n: int = 600, *, seed: int = 0) -> pa.Table:
    """Return a table with names in several scripts, missing cells, and four targets that can be learned."""
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 12, n)
    weight = rng.gamma(8, 10, n)
    state = rng.choice(["CA", "NY", "TX", "São Paulo"], n)
    when = np.datetime64("2024-01-01T00:00") + rng.integers(0, 500_000, n).astype("timedelta64[m]")
    vector = rng.normal(size=(n, 3)).astype(np.float32)
    drive = (age - 40) / 12 + (state == "CA") + vector[:, 0] + rng.normal(0, 0.5, n)
    kind = np.digitize(drive + (weight - 80) / 40, [-0.5, 1.0])
    hours = 40 + 5 * drive + rng.normal(0, 2, n)

    def holes(values: np.ndarray | list[object], share: float, type_: pa.DataType | None = None) -> pa.Array:
        return pa.array(values, type_, mask=rng.random(n) < share)

    return pa.table(
        {
            "age": holes(age.round(1), 0.1),
            "вес, кг": pa.array(weight.round(2)),
            "state": holes(state.tolist(), 0.05, pa.string()),
            "children": pa.array(rng.integers(0, 5, n)),
            "when": pa.array(when.astype("datetime64[s]")),
            "embedding": pa.array(list(vector), pa.list_(pa.float32())),
            "income": pa.array(np.where(drive > 0.5, ">50K", "<=50K")),
            "分类": holes(np.array(["低", "中", "高"])[kind].tolist(), 0.2, pa.string()),
            "hours.per week": holes(hours, 0.3),
            "smoker": pa.array((drive + rng.normal(0, 1, n) > 1).tolist(), pa.bool_()),
        }
    )


KINDS = {
    "age": "numeric",
    "вес, кг": "numeric",
    "state": "categorical",
    "children": "categorical",
    "when": "datetime",
    "embedding": "vector",
}
TARGETS = {"income": "binary", "分类": "multiclass", "hours.per week": "regression", "smoker": "binary"}


def make_dataset(table: pa.Table, *, dtype: torch.dtype = torch.float32, folds: int = 1) -> tuple[Schema, Dataset]:
    """Return schema and dataset of a table made by `make_table`; the last fifth of its rows validates."""
    columns = [COLUMNS.class_of(COLUMNS.spec_class(kind)).fit(name, table[name]) for name, kind in KINDS.items()]
    schema = Schema(columns=tuple(columns), targets=tuple(TARGETS))
    tasks = []
    for name, kind in TARGETS.items():
        spec = TASKS.parse({"kind": kind, "name": name})
        task_class = TASKS.class_of(type(spec))
        tasks.append(task_class(task_class.fit(spec, table[name])))
    blocks = schema.encode(table)
    inputs = Inputs.fit(schema.blocks, {name: torch.from_numpy(block) for name, block in blocks.items()})
    targets = [task.encode(table[task.name]) for task in tasks]
    rows = np.arange(table.num_rows)
    held = [rows % 5 == fold for fold in range(folds)]
    splits = [(rows[~part], rows[part]) for part in held]
    return schema, Dataset.build(tasks, inputs, blocks, targets, splits, dtype=dtype)


def network_spec(dataset: Dataset, trunk: object | None = None, **heads: int) -> NetworkSpec:
    """Return a network for a dataset: linear heads but where a width is given by the task's place, `head0=16`."""
    widths = [heads.get(f"head{t}", 0) for t in range(len(dataset.tasks))]
    return NetworkSpec(
        encoders={block: ENCODERS.spec_class(block)() for block in dataset.inputs.columns},
        trunk=trunk or MLPSpec(width=32, dropout=0.0),
        heads={task.name: DenseHeadSpec(width=width) for task, width in zip(dataset.tasks, widths, strict=True)},
    )


Stump = tuple[int, float, float, float]
"""The feature that it reads, its threshold, and what it adds up to it (or where it is missing) and beyond it."""


def make_forest(task: str, stumps: list[list[Stump]]) -> Forest:
    """Return the forest of these stumps, `stumps[i][o]` that of iteration i for output o."""
    flat = [stump for iteration in stumps for stump in iteration]
    nodes = range(0, 3 * len(flat), 3)
    empty = torch.empty(0, dtype=torch.long)
    tensors = {
        "number_source": torch.tensor([feature for feature, *_ in flat]),
        "number_zero": torch.zeros(len(flat), dtype=torch.bool),
        "number_missing": torch.ones(len(flat), dtype=torch.int8),
        "set_source": empty,
        "set_start": empty,
        "set_words": empty,
        "words": empty.int(),
        "column": torch.arange(len(flat)).repeat_interleave(3),
        "threshold": torch.tensor([at for _, threshold, *_ in flat for at in (threshold, 0.0, 0.0)]),
        "right": torch.tensor([child for node in nodes for child in (node + 1, node + 1, node + 2)]),
        "value": torch.tensor([v for *_, low, high in flat for v in (0.0, high, low)], dtype=torch.float64),
        "roots": torch.tensor(list(nodes)).view(len(stumps), -1),
        "depth": torch.tensor(1),
        "bias": torch.zeros(len(stumps[0]), dtype=torch.float64),
    }
    return Forest(task, tensors)


def make_model(table: pa.Table) -> Model:
    """Return a real model trained on a table: two members, of different depth, blended differently by task."""
    schema, dataset = make_dataset(table)
    training = TrainingSpec(lr=5e-3, batch_size=64, steps=96)
    specs = [network_spec(dataset, MLPSpec(width=w, shared_depth=d), head0=16) for w, d in ((32, 1), (24, 2))]
    members = [Member(MemberSpec(network=s, training=training), seed=i) for i, s in enumerate(specs)]
    done = advance(Stack(lined_up(members), seed=0), dataset, training.steps)
    trained = tuple(done.trained(k) for k in range(len(members)))
    blend = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.25, 0.75]])
    card = {"name": "small", "n_train": 480, "run": "small", "spec_sha256": "0" * 64, "data_sha256": "1" * 64}
    return Model(schema, dataset.tasks, dataset.inputs, trained, blend, card)
