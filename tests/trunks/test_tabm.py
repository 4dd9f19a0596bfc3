"""TabM-mini."""

from __future__ import annotations

import torch
from torch import Generator

from mtl_bento.trunks._base import TrunkSizes
from mtl_bento.trunks.mlp import MLP, MLPSpec
from mtl_bento.trunks.tabm import TabM, TabMSpec

SIZES = TrunkSizes(n_features=5, n_tasks=2)


def generators(n: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in range(n)]


def test_each_inner_network_is_the_shared_mlp_behind_its_own_scaling_of_the_inputs() -> None:
    trunk = TabM([TabMSpec(width=4, shared_depth=2, dropout=0, inner=3)], SIZES, generators(1))
    mlp = MLP([MLPSpec(width=4, shared_depth=2, dropout=0)], SIZES, generators(1))
    mlp.layers.load_state_dict(trunk.layers.state_dict())
    features = torch.randn(1, 6, 5, generator=Generator().manual_seed(1))
    states = trunk(features)
    assert states[0].shape == (1, 3, 6, 4)
    for m in range(3):
        torch.testing.assert_close(states[1][:, m], mlp(features * trunk.scaling[:, m])[1][:, 0])


def test_scalings_begin_as_signs_and_differ_between_inner_networks() -> None:
    scaling = TabM([TabMSpec(inner=8)], TrunkSizes(50, 1), generators(1)).scaling[0, :, 0]
    assert set(scaling.flatten().tolist()) == {-1, 1}
    assert len({tuple(row.tolist()) for row in scaling}) == 8


def test_weight_decay_leaves_scalings_alone() -> None:
    trunk = TabM([TabMSpec(inner=2)], SIZES, generators(1))
    assert trunk.undecayed == {"scaling"}


def test_members_of_different_inner_size_do_not_share_a_stack() -> None:
    assert TabMSpec(inner=4).stack_key() != TabMSpec(inner=8).stack_key()
    assert TabMSpec(inner=4, width=32).stack_key() == TabMSpec(inner=4, width=64, shared_depth=3).stack_key()
