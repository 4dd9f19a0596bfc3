"""Ordinary torch modules as trunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Generator, Tensor, nn

from mtl_bento.errors import SpecError
from mtl_bento.testing import check_trunk, sample_dataset, sample_members
from mtl_bento.training import Stack, advance
from mtl_bento.trunks._base import TRUNKS, TrunkSizes
from mtl_bento.trunks.module import ModuleTrunk, ModuleTrunkSpec


class Residual(nn.Module):
    """A module with a skip connection, a normalisation, and a parameter of its own: nothing of it can be stacked."""

    def __init__(self, n_features: int, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(n_features, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(depth))
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return x * self.scale


class ResidualSpec(ModuleTrunkSpec):
    kind: Literal["test_residual"] = "test_residual"

    def module(self, n_features: int) -> nn.Module:
        return Residual(n_features, self.width, self.shared_depth)


class DroppingSpec(ModuleTrunkSpec):
    kind: Literal["test_dropping"] = "test_dropping"

    def module(self, n_features: int) -> nn.Module:
        return nn.Sequential(nn.Linear(n_features, self.width), nn.ReLU(), nn.Dropout(self.dropout))


class NormalisedSpec(ModuleTrunkSpec):
    kind: Literal["test_normalised"] = "test_normalised"

    def module(self, n_features: int) -> nn.Module:
        return nn.Sequential(nn.Linear(n_features, self.width), nn.BatchNorm1d(self.width))


KINDS = (ResidualSpec, DroppingSpec, NormalisedSpec)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register the kinds of this file for one test, so that no other test meets them."""
    TRUNKS.kinds()
    for spec in KINDS:
        TRUNKS.register(spec)(ModuleTrunk)
    yield
    for spec in KINDS:
        del TRUNKS._specs[spec.model_fields["kind"].default], TRUNKS._classes[spec]


def test_an_ordinary_module_keeps_the_promises_of_a_trunk() -> None:
    check_trunk(ResidualSpec)


def test_the_state_is_what_the_module_answers() -> None:
    trunk = ModuleTrunk([ResidualSpec(width=3)], TrunkSizes(4, 2), [Generator().manual_seed(0)])
    features = torch.randn(1, 5, 4, generator=Generator().manual_seed(1))
    first, second = trunk(features)
    assert torch.equal(first[0, 0], trunk.modules_of_members[0](features[0]))
    assert torch.equal(first, second)


def test_initial_weights_come_from_the_members_own_generator_and_leave_the_global_one_alone() -> None:
    before = torch.random.get_rng_state()
    trunks = [ModuleTrunk([ResidualSpec(width=3)], TrunkSizes(4, 1), [Generator().manual_seed(s)]) for s in (5, 5, 6)]
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [trunk.get_parameter("modules_of_members.0.first.weight") for trunk in trunks]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    dataset = sample_dataset()
    (member,) = sample_members(dataset, trunks=[ResidualSpec(width=3)])
    from mtl_bento.network import Network

    network = Network([member.spec.network], dataset.inputs, dataset.tasks, [0])
    decayed = {part.name: part.decay for part in network.parts() if part.name.startswith("trunk.")}
    prefix = "trunk.modules_of_members."
    assert decayed[f"{prefix}first.weight"]
    assert not decayed[f"{prefix}first.bias"]
    assert not decayed[f"{prefix}scale"]


def test_a_module_with_running_statistics_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'test_normalised': its module has buffers .*LayerNorm instead of BatchNorm"):
        ModuleTrunk([NormalisedSpec()], TrunkSizes(4, 1), [Generator()])


def test_dropout_inside_a_module_is_drawn_from_the_stacks_seed() -> None:
    # It was drawn from torch's global generator: the same trial twice gave two results.
    dataset = sample_dataset()
    members = sample_members(dataset, trunks=[DroppingSpec(width=8, dropout=0.5)], steps=2)
    ends = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            ends.append(advance(Stack(tuple(members), seed=3), dataset, 2).states[0].tensors["data"])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
