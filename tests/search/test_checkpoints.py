"""Checkpoints: what was written is read, and a flipped byte is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mtl_bento.dataset import Dataset
from mtl_bento.errors import RunError
from mtl_bento.network import NetworkSpec, Trained
from mtl_bento.training import Member, MemberSpec, Stack, TrainingSpec, advance
from mtl_bento.trunks.mlp import MLPSpec
from mtl_bento.trunks.tabm import TabMSpec
from mtl_bento_search.checkpoints import HEADER, load_members, load_round, save_members, save_round

TRUNKS = [MLPSpec(width=8, shared_depth=2), MLPSpec(width=5, shared_depth=1)]


def stack_of(network: NetworkSpec, *, trunks: Any = TRUNKS, **fields: Any) -> Stack:
    training = TrainingSpec(batch_size=32, steps=8)
    specs = [MemberSpec(network=network.model_copy(update={"trunk": trunk}), training=training) for trunk in trunks]
    return Stack(tuple(Member(spec, seed=k, **fields) for k, spec in enumerate(specs)), seed=3)


@pytest.fixture(scope="module")
def stacks(dataset: Dataset, small_network: NetworkSpec) -> list[Stack]:
    """Two stacks at half their budget: two plain trunks of several sizes, and a TabM."""
    tabm = stack_of(small_network, trunks=[TabMSpec(width=4, inner=2)])
    return [advance(stack, dataset, 4) for stack in (stack_of(small_network), tabm)]


def same(found: Stack, expected: Stack, *, matrices: set[str]) -> None:
    """Assert that a stack was read as it was written, with these matrices of its states."""
    for a, b in zip(found.states, expected.states, strict=True):
        assert (a.score, a.losses) == (b.score, b.losses)
        assert set(a.tensors) == matrices
        for matrix in matrices:
            assert a.tensors[matrix].keys() == b.tensors[matrix].keys()
            assert all(a.tensors[matrix][name].equal(b.tensors[matrix][name]) for name in a.tensors[matrix])
    assert replace(found, states=()) == replace(expected, states=())


def test_a_round_on_its_way_is_read_as_it_was_written(stacks: list[Stack], tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "round.safetensors"
    save_round(path, [([2, 0], stacks[0]), ([1], stacks[1])], {"first": 7, "name": "año"})
    packed, info = load_round(path)
    assert info == {"first": 7, "name": "año"}
    assert [places for places, _ in packed] == [[2, 0], [1]]
    for (_, found), expected in zip(packed, stacks, strict=True):
        same(found, expected, matrices={"data", "first", "second", "best"})


def test_a_round_that_has_not_begun_is_read_as_it_was_written(small_network: NetworkSpec, tmp_path: Path) -> None:
    stack = stack_of(small_network, split=2, tasks=(True, False, True, True))
    save_round(tmp_path / "round", [([0, 1], stack)], {})
    assert load_round(tmp_path / "round") == ([([0, 1], stack)], {})
    with safetensors.safe_open(tmp_path / "round", framework="pt") as file:
        assert list(file.keys()) == []
        assert set(file.metadata()) == {HEADER, "sha256"}


def test_a_round_of_two_sorts_of_numbers_is_read_as_it_was_written(stacks: list[Stack], tmp_path: Path) -> None:
    (state,) = stacks[1].states
    odd = {"data": {"flags": torch.tensor([True, False, True]), "one": torch.tensor(0.5, dtype=torch.float64)}}
    mixed = replace(stacks[1], states=(replace(state, tensors={**state.tensors, **odd}),))
    save_round(tmp_path / "round", [([0], mixed)], {})
    ((_, found),), _ = load_round(tmp_path / "round")
    same(found, mixed, matrices={"data", "first", "second", "best"})
    assert found.states[0].tensors["data"]["flags"].dtype is torch.bool
    assert found.states[0].tensors["data"]["one"].shape == ()


def test_a_round_at_the_end_of_its_budget_keeps_what_is_served_of_it(
    dataset: Dataset, small_network: NetworkSpec, tmp_path: Path
) -> None:
    whole = advance(stack_of(small_network), dataset, 8)
    save_round(tmp_path / "round", [([0, 1], whole)], {})
    ((_, found),), _ = load_round(tmp_path / "round")
    same(found, whole, matrices={"best"})
    assert found.trained(1).state.keys() == whole.trained(1).state.keys()


def test_any_program_that_reads_safetensors_reads_a_checkpoint(stacks: list[Stack], tmp_path: Path) -> None:
    members = [stacks[0].trained(0), stacks[1].trained(0)]
    save_members(tmp_path / "members", members, {})
    expected = {f"{i}.{name}": held for i, member in enumerate(members) for name, held in member.state.items()}
    found = safetensors.torch.load((tmp_path / "members").read_bytes())
    assert found.keys() == expected.keys()
    assert all(found[name].equal(held) and found[name].dtype == held.dtype for name, held in expected.items())


def test_a_changed_type_of_numbers_is_found(stacks: list[Stack], tmp_path: Path) -> None:
    path = tmp_path / "members"
    save_members(path, [stacks[0].trained(0)], {})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(RunError, match="its checksum differs"):
        load_members(path)


def test_trained_members_are_read_as_they_were_written(stacks: list[Stack], tmp_path: Path) -> None:
    members = [stacks[0].trained(0), stacks[0].trained(1), stacks[1].trained(0)]
    save_members(tmp_path / "members", members, {"losses": [0.5, 0.25]})
    found, info = load_members(tmp_path / "members")
    assert info == {"losses": [0.5, 0.25]}
    for a, b in zip(found, members, strict=True):
        assert isinstance(a, Trained)
        assert a.spec == b.spec
        assert a.state.keys() == b.state.keys()
        assert all(a.state[name].equal(b.state[name]) for name in b.state)


def test_a_flipped_byte_anywhere_in_a_round_is_found(stacks: list[Stack], tmp_path: Path) -> None:
    path = tmp_path / "round.safetensors"
    save_round(path, [([0], stacks[1])], {"numbers": {"0": 11}})
    whole = path.read_bytes()
    end = int.from_bytes(whole[:8], "little") + 8
    for place in (*range(0, end, 29), end, (end + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(RunError, match=r"round\.safetensors is missing or damaged \("):
            load_round(path)
    path.write_bytes(whole)
    assert load_round(path)[1] == {"numbers": {"0": 11}}
