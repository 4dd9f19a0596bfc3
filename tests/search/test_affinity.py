"""Affinities of tasks whose relation is known, and what they propose."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from small import network_spec

from mtl_bento.dataset import Dataset
from mtl_bento.network import Trained
from mtl_bento.training import Member, MemberSpec, Stack, TrainingSpec, advance
from mtl_bento.trunks._base import TrunkSpec
from mtl_bento.trunks.mlp import MLPSpec
from mtl_bento.trunks.tabm import TabMSpec
from mtl_bento_search.affinity import error_correlations, gradient_cosines, propose
from mtl_bento_search.config import parse_config
from mtl_bento_search.problem import make_problem

NAMES = ["y", "same", "other", "unknown"]


@pytest.fixture(scope="module")
def related() -> Dataset:
    """Numbers: one, its copy, one that depends on another input, and one with three labels that few batches hold."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    y, other = (x[:, t] + rng.normal(0, 0.1, 600) for t in (0, 1))
    unknown = pa.array(rng.normal(size=600), mask=~np.isin(np.arange(600), (0, 1, 2, 300, 301)))
    table = pa.table({"a": x[:, 0], "b": x[:, 1], "y": y, "same": y, "other": other, "unknown": unknown})
    config = parse_config({"targets": dict.fromkeys(NAMES, "regression"), "split": {"folds": 0}}, where="test")
    return make_problem(config, data=table).dataset


@pytest.mark.parametrize("trunk", [MLPSpec(width=16, dropout=0.5), TabMSpec(width=16, inner=2)], ids=["mlp", "tabm"])
def test_copies_of_a_task_pull_alike_and_unrelated_tasks_do_not(related: Dataset, trunk: TrunkSpec) -> None:
    spec = MemberSpec(network=network_spec(related, trunk), training=TrainingSpec(batch_size=64, steps=128))
    trained = advance(Stack((Member(spec, seed=0),), 0), related, 128).trained(0)
    rows = np.array([r for r in related.splits[0].train.tolist() if r not in (0, 1, 2, 300, 301)])
    cosines = gradient_cosines(trained, related, rows)
    assert cosines.shape == (4, 4)
    np.testing.assert_array_equal(np.diag(cosines), 1)
    np.testing.assert_allclose(cosines, cosines.T)
    assert cosines[0, 1] > abs(cosines[0, 2]) + 0.1
    np.testing.assert_array_equal(cosines[3, :3], 0)  # none of these rows has a label of it
    assert np.isfinite(cosines).all()


def test_a_row_without_a_label_does_not_move_a_cosine(related: Dataset) -> None:
    spec = MemberSpec(network=network_spec(related, MLPSpec(width=16)), training=TrainingSpec(batch_size=64, steps=4))
    trained = advance(Stack((Member(spec, seed=0),), 0), related, 4).trained(0)
    labelled = np.array([0, 1, 2])
    unlabelled = np.array([r for r in related.splits[0].train.tolist() if r > 310][:50])
    both = gradient_cosines(trained, related, np.concatenate([labelled, unlabelled]))
    assert np.isfinite(both).all()
    assert both[3, 0] != 0


def test_gradients_that_are_no_numbers_have_no_cosines(related: Dataset) -> None:
    spec = MemberSpec(network=network_spec(related, MLPSpec(width=16)), training=TrainingSpec(batch_size=64, steps=4))
    trained = advance(Stack((Member(spec, seed=0),), 0), related, 4).trained(0)
    broken = Trained(trained.spec, {name: torch.full_like(held, torch.nan) for name, held in trained.state.items()})
    np.testing.assert_array_equal(gradient_cosines(broken, related, np.arange(600)), np.eye(4))


def test_errors_on_the_same_rows_correlate() -> None:
    losses = np.array(
        [[1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10], [2.0, 4, 6, 8, 10, 12, 14, 16, 18, 400], np.arange(10.0)[::-1]]
    )
    # Ranks alone count: the second rises with the first, the third falls.
    np.testing.assert_allclose(error_correlations(losses), [[1, 1, -1], [1, 1, -1], [-1, -1, 1]])


def test_errors_say_nothing_with_few_common_labels_or_without_spread() -> None:
    losses = np.vstack([np.arange(40.0), np.arange(40.0), np.ones(40)])
    losses[0, :20], losses[1, 29:] = np.nan, np.nan  # nine rows have both
    np.testing.assert_array_equal(error_correlations(losses), np.eye(3))
    losses[1, 29] = 29  # ten rows have both
    assert error_correlations(losses)[0, 1] == pytest.approx(1)


def test_tied_losses_share_their_rank() -> None:
    losses = np.array([[0.0, 0, 0, 0, 0, 1, 1, 1, 1, 1], [0.0, 0, 0, 0, 0, 1, 1, 1, 1, 1]])
    np.testing.assert_allclose(error_correlations(losses), 1)
    crossed = np.array([[0.0, 0, 1, 1] * 5, [0.0, 1, 0, 1] * 5])
    np.testing.assert_allclose(error_correlations(crossed), np.eye(2), atol=1e-12)


def blocks(*groups: tuple[int, ...]) -> np.ndarray:
    """Return an affinity of 1 within groups, 0 between."""
    of = {t: g for g, group in enumerate(groups) for t in group}
    return np.array([[float(of[i] == of[j]) for j in range(len(of))] for i in range(len(of))])


def test_planted_groups_are_proposed_first() -> None:
    assert propose([blocks((0, 2), (1, 3, 4))])[0] == ((0, 2), (1, 3, 4))
    assert propose([blocks((0, 1, 2, 3, 5), (4,))])[0] == ((0, 1, 2, 3, 5), (4,))  # one that fits nobody


def test_partitions_hold_each_task_once_and_differ() -> None:
    rng = np.random.default_rng(0)
    found = propose([rng.normal(size=(7, 7)) for _ in range(3)], most=5)
    assert len(found) == len(set(found)) == 5
    for partition in found:
        assert sorted(t for group in partition for t in group) == list(range(7))
        assert 1 < len(partition) < 7
        assert all(group == tuple(sorted(group)) for group in partition)


def test_nothing_is_proposed_for_two_tasks_or_without_affinities() -> None:
    assert propose([np.eye(2)]) == propose([np.eye(1)]) == propose([]) == ()


def test_three_tasks_have_one_pair_each_way_and_unknown_affinities_are_zero() -> None:
    affinity = np.array([[1, 0.2, np.nan], [0.2, 1, -0.5], [np.nan, -0.5, 1]])
    assert propose([affinity]) == (((0, 1), (2,)),)
    assert len(propose([affinity, blocks((0,), (1, 2)), blocks((1,), (0, 2))])) == 3
