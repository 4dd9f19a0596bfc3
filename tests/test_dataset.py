"""Rows as tensors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtl_bento.columns.numeric import NumericColumn
from mtl_bento.dataset import Dataset
from mtl_bento.network import Inputs, Network, NetworkSpec
from mtl_bento.tasks.binary import Binary, BinarySpec
from mtl_bento.tasks.regression import Regression, RegressionSpec
from mtl_bento.training import Cohort, Member, MemberSpec, Stack, TrainingSpec


def build(**given: object) -> Dataset:
    """Return eight rows of one number with a binary task and a number, learned on the first six."""
    columns = {"numeric": (NumericColumn(name="x"),)}
    blocks = {"numeric": np.arange(8, dtype=np.float32).reshape(-1, 1)}
    yes = pa.chunked_array([pa.array([True, False, False, False, None, None, True, True])])
    number = pa.chunked_array([pa.array([1.0, 3.0, None, None, None, None, 100.0, None])])
    tasks = (Binary(Binary.fit(BinarySpec(name="yes"), yes)), Regression(RegressionSpec(name="n", mean=2, spread=1)))
    targets = [task.encode(cells) for task, cells in zip(tasks, (yes, number), strict=True)]
    inputs = Inputs.fit(columns, {name: torch.from_numpy(block) for name, block in blocks.items()})
    splits = [(np.arange(6), np.arange(6, 8))]
    return Dataset.build(tasks, inputs, blocks, targets, **{"splits": splits, **given})  # type: ignore[arg-type]


def test_the_unit_of_losses_is_the_best_constant_on_the_rows_learned_from() -> None:
    # One of four labels is true: 0.5623 nats. Standardised numbers -1 and 1: variance 1. Rows 6 and 7 do not count.
    expected = [-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), 1]
    assert build().trivial.tolist() == pytest.approx(expected)


def test_with_folds_the_unit_of_losses_comes_from_all_rows_that_a_fold_learns_from() -> None:
    rows = np.arange(8)
    folds = [(rows[rows % 2 != f], rows[rows % 2 == f]) for f in range(2)]
    assert build(splits=folds).trivial[0].item() == pytest.approx(np.log(2))  # three of six


def test_rows_are_gathered_for_each_member() -> None:
    dataset = build(weights=np.arange(8.0))
    index = torch.tensor([[0, 7, 7], [3, 4, 5]])
    blocks, (targets, weights) = dataset.inputs_of(index), dataset.labels_of(index)
    assert blocks[0].shape == (2, 3, 1)
    assert torch.equal(blocks[0][0, 1], dataset.blocks[0][7])
    assert targets[0].tolist() == [[1, 1, 1], [0, -1, -1]]
    assert weights is not None
    assert weights.tolist() == [[0, 7, 7], [3, 4, 5]]


def test_rows_of_equal_weight_have_none() -> None:
    assert build().labels_of(torch.zeros(1, 1, dtype=torch.long))[1] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_of_the_dtype_asked_for(dtype: torch.dtype) -> None:
    dataset = build(dtype=dtype, weights=np.ones(8, dtype=np.float32))
    assert dataset.dtype == dtype
    assert dataset.blocks[0].dtype == dtype
    assert dataset.weights is not None
    assert dataset.weights.dtype == dtype
    assert dataset.device == torch.device("cpu")


def test_splits_may_be_of_any_integer_type() -> None:
    dataset = build(splits=[(np.arange(6, dtype=np.int32), np.arange(6, 8, dtype=np.uint8))])
    assert dataset.splits[0].train.dtype == torch.int64
    assert dataset.splits[0].valid.tolist() == [6, 7]


def test_features_of_all_rows_are_those_of_each_batch(dataset: Dataset, small_network: NetworkSpec) -> None:
    network = Network([small_network], dataset.inputs, dataset.tasks, [0])
    whole = dataset.unfolded(network)
    assert whole is not None
    assert dataset.unfolded(network) is whole  # kept for the next stack
    index = torch.tensor([[3, 0, 3]])
    for parts, expected in zip(whole, network.unfold(dataset.inputs_of(index)), strict=True):
        for part, alone in zip(parts, expected, strict=True):
            assert torch.equal(dataset.take(part, index), alone)


def test_features_of_too_many_rows_are_left_to_each_batch(
    dataset: Dataset, small_network: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = dataclasses.replace(dataset, _kept={})
    member = Member(MemberSpec(network=small_network, training=TrainingSpec(batch_size=32, steps=8)), seed=0)
    losses = []
    for most in (2**20, 0):
        monkeypatch.setattr("mtl_bento.dataset.UNFOLDED_BYTES", most)
        fresh._kept.clear()
        cohort = Cohort(Stack((member,), 0), fresh)
        assert (cohort.unfolded is None) == (most == 0)
        cohort.advance(fresh, 8)
        losses.append(cohort.stack().losses)
    assert losses[0] == losses[1]
