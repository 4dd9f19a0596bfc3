"""Fixtures: a small table with everything in it, and a small real model trained on it."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")

import pyarrow as pa
import pytest
import torch
from small import make_dataset, make_model, make_table, network_spec

from mtl_bento.dataset import Dataset
from mtl_bento.model import Model
from mtl_bento.network import NetworkSpec


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
    return make_model(table)


@pytest.fixture(scope="session")
def model_folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small model."""
    folder = tmp_path_factory.mktemp("models") / "small"
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def calibrated_model(model: Model) -> Model:
    """The small model with its answers calibrated on a thousand rows of its own making; one target has a threshold."""
    fresh = make_table(1_000, seed=5)
    answers = model.answers(fresh)
    tasks = [
        task.calibrate(answers[task.name], torch.from_numpy(task.encode(fresh[task.name]))) for task in model.tasks
    ]
    tasks[-1] = tasks[-1].with_spec(threshold=0.3)
    return Model(model.schema, tuple(tasks), model.inputs, model.members, model.blend, model.card)


@pytest.fixture(scope="session")
def calibrated_folder(calibrated_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the calibrated model."""
    folder = tmp_path_factory.mktemp("calibrated") / "calibrated"
    calibrated_model.save(folder)
    return folder
