"""Fixtures: a small table with everything in it, and a small real model trained on it."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")

import numpy as np
import pyarrow as pa
import pytest
from small import make_dataset, make_table, network_spec

from mtl_bento.dataset import Dataset
from mtl_bento.model import Model
from mtl_bento.network import NetworkSpec
from mtl_bento.training import Member, MemberSpec, Stack, TrainingSpec, advance, lined_up
from mtl_bento.trunks.mlp import MLPSpec


@pytest.fixture(scope="session")
def table() -> pa.Table:
    """A small table with everything in it."""
    return make_table()


@pytest.fixture(scope="session")
def dataset(table: pa.Table) -> Dataset:
    """The table as a dataset."""
    return make_dataset(table)[1]


@pytest.fixture(scope="session")
def small_network(dataset: Dataset) -> NetworkSpec:
    """A network of 32 units."""
    return network_spec(dataset)


@pytest.fixture(scope="session")
def model(table: pa.Table) -> Model:
    """A real model of two members, of different depth, blended differently by task."""
    schema, dataset = make_dataset(table)
    training = TrainingSpec(lr=5e-3, batch_size=64, steps=96)
    specs = [network_spec(dataset, MLPSpec(width=w, shared_depth=d), head0=16) for w, d in ((32, 1), (24, 2))]
    members = [Member(MemberSpec(network=s, training=training), seed=i) for i, s in enumerate(specs)]
    done = advance(Stack(lined_up(members), seed=0), dataset, training.steps)
    trained = tuple(done.trained(k) for k in range(len(members)))
    blend = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.25, 0.75]])
    card = {"name": "small", "n_train": 480, "run": "small", "spec_sha256": "0" * 64, "data_sha256": "1" * 64}
    return Model(schema, dataset.tasks, dataset.inputs, trained, blend, card)


@pytest.fixture(scope="session")
def model_folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small model."""
    folder = tmp_path_factory.mktemp("models") / "small"
    model.save(folder)
    return folder
