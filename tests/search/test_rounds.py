"""Rounds: stacks of like members, rungs, restacking; what is trained does not depend on who trained it."""

from __future__ import annotations

import itertools
import json
import math
import os
import textwrap
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_bento.dataset import Dataset
from mtl_bento.errors import RunError
from mtl_bento.network import NetworkSpec
from mtl_bento.samples import SampleTrunkSpec
from mtl_bento.training import Member, MemberSpec, Stack, TrainingSpec, never
from mtl_bento.trunks._base import TrunkSpec
from mtl_bento.trunks.mlp import MLPSpec
from mtl_bento.trunks.mmoe import MMoESpec
from mtl_bento.trunks.tabm import TabMSpec
from mtl_bento_search.executors import local
from mtl_bento_search.executors.local import InProcess, Processes, advance_if_it_fits, cost
from mtl_bento_search.rounds import Packing, Round, pack, rungs

ON_CPU = Packing(room=2**18, weights=2**20, least=2, most=64, n_features=10, n_workers=1)


def for_workers(n: int) -> Packing:
    return ON_CPU.model_copy(update={"n_workers": n})


def member(network: NetworkSpec, trunk: object, seed: int = 0, *, batch: int = 64, steps: int = 16) -> Member:
    held = network.model_copy(update={"trunk": trunk})
    return Member(MemberSpec(network=held, training=TrainingSpec(batch_size=batch, steps=steps, lr=5e-3)), seed=seed)


def test_rungs_lie_at_a_quarter_a_half_and_the_whole() -> None:
    assert rungs(1024) == [256, 512, 1024]
    assert rungs(1) == [1]
    assert rungs(3) == [1, 3]


def test_stacks_are_smaller_where_members_are_larger(small_network: NetworkSpec) -> None:
    assert ON_CPU.stack_size([member(small_network, MLPSpec(width=16), batch=32)]) == 64
    assert ON_CPU.stack_size([member(small_network, MLPSpec(width=128), batch=256)]) == 8  # 2^18 / (256 * 128)
    assert ON_CPU.stack_size([member(small_network, TabMSpec(width=256, inner=8), batch=256)]) == 2
    # Experts are computed for every row, as TabM's inner networks are: 2^18 / (4 * 128 * 64).
    assert ON_CPU.stack_size([member(small_network, MMoESpec(width=64, n_experts=4), batch=128)]) == 8
    assert ON_CPU.stack_size([member(small_network, TabMSpec(width=64, inner=4), batch=128)]) == 8


def test_stacks_are_smaller_where_members_have_more_weights(small_network: NetworkSpec) -> None:
    # 128 * (10 + 2 * 128) weights each: 30 of them are fewer than 2^20.
    assert ON_CPU.stack_size([member(small_network, MLPSpec(width=128, shared_depth=3), batch=32)]) == 30


@pytest.mark.parametrize("trunk", [TabMSpec(width=16, inner=3), MMoESpec(width=16, n_experts=3)])
def test_a_trunk_that_computes_a_layer_three_times_costs_three_times_a_plain_one(
    trunk: TrunkSpec, small_network: NetworkSpec
) -> None:
    stacks = [Stack((member(small_network, held),), seed=0) for held in (trunk, MLPSpec(width=16))]
    assert cost(stacks[0]) == 3 * cost(stacks[1])


def test_a_packing_is_a_function_of_the_kind_of_device_and_the_workers() -> None:
    assert Packing.suited(torch.device("cpu"), n_features=10, n_workers=2) == for_workers(2)
    # No GPU is asked anything: these numbers are the same on a machine without one.
    on_gpu = Packing(room=2**24, weights=2**27, least=4, most=256, n_features=10, n_workers=1)
    assert Packing.suited(torch.device("cuda"), n_features=10, n_workers=1) == on_gpu
    assert Packing.suited(torch.device("cuda:1"), n_features=10, n_workers=1) == on_gpu


def test_a_trunk_that_reads_positions_has_a_layer_of_each_in_a_stacks_room(small_network: NetworkSpec) -> None:
    packing = ON_CPU.model_copy(update={"length": 16})
    trunks = (SampleTrunkSpec(width=16, shared_depth=1), MLPSpec(width=16, shared_depth=1))
    held, plain = (member(small_network, trunk, batch=256) for trunk in trunks)
    assert [packing.activations(m) for m in (held, plain)] == [16 * 256 * 16, 256 * 16]
    assert [packing.stack_size([m]) for m in (held, plain)] == [4, 64]


def test_members_are_packed_by_kind_and_size_deepest_first(small_network: NetworkSpec) -> None:
    trunks = [
        MLPSpec(width=64),
        TabMSpec(width=16),
        MLPSpec(width=16, shared_depth=1),
        MLPSpec(width=16, shared_depth=3),
    ]
    members = [member(small_network, trunk, seed=i) for i, trunk in enumerate(trunks)]
    packed = pack(members, ON_CPU, seed=0)
    assert sorted(place for places, _ in packed for place in places) == [0, 1, 2, 3]
    for places, stack in packed:
        assert [members[p] for p in places] == list(stack.members)
        depths = [m.spec.network.trunk.shared_depth for m in stack.members]
        assert depths == sorted(depths, reverse=True)
        assert len({m.spec.network.trunk.kind for m in stack.members}) == 1


WIDTHS, DEPTHS = st.integers(1, 512), st.integers(1, 5)
TRUNKS = st.one_of(
    st.builds(MLPSpec, width=WIDTHS, shared_depth=DEPTHS, activation=st.sampled_from(["relu", "silu"])),
    st.builds(TabMSpec, width=WIDTHS, shared_depth=DEPTHS, inner=st.sampled_from([2, 8])),
    st.builds(MMoESpec, width=WIDTHS, shared_depth=DEPTHS, n_experts=st.sampled_from([2, 3])),
)
PACKINGS = st.builds(
    Packing,
    room=st.integers(1, 2**20),
    least=st.integers(1, 8),
    most=st.integers(8, 64),
    n_workers=st.integers(1, 5),
)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.tuples(TRUNKS, st.sampled_from([32, 256])), max_size=40), packing=PACKINGS)
def test_members_of_any_sizes_are_packed_once_each_with_their_like_deepest_first(
    sizes: list[tuple[TrunkSpec, int]], packing: Packing, small_network: NetworkSpec
) -> None:
    members = [member(small_network, trunk, seed=i, batch=batch) for i, (trunk, batch) in enumerate(sizes)]
    packed = pack(members, packing, seed=3)
    assert sorted(place for places, _ in packed for place in places) == list(range(len(members)))
    for places, stack in packed:
        assert stack.members == tuple(members[p] for p in places)
        assert len({m.spec.stack_key() for m in stack.members}) == 1
        assert len(places) <= packing.stack_size(stack.members) or len(places) == 1
        depths = [m.spec.network.trunk.shared_depth for m in stack.members]
        assert depths == sorted(depths, reverse=True)
    assert len({stack.seed for _, stack in packed}) == len(packed)
    assert pack(members, packing, seed=3) == packed  # the same again
    for key in {m.spec.stack_key() for m in members}:
        # Of like members, stacks hold no more than an even share of the workers, and no two of them overlap in width.
        own = [stack for _, stack in packed if stack.members[0].spec.stack_key() == key]
        n = sum(len(stack.members) for stack in own)
        assert all(len(stack.members) <= math.ceil(n / packing.n_workers) for stack in own)
        ranges = sorted((min(widths), max(widths)) for stack in own if (widths := widths_of(stack)))
        assert all(below[1] <= above[0] for below, above in itertools.pairwise(ranges))


def widths_of(stack: Stack) -> list[int]:
    return [m.spec.network.trunk.width for m in stack.members]


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(WIDTHS, min_size=2, max_size=20), packing=PACKINGS)
def test_a_stack_that_ran_out_of_memory_is_packed_smaller_and_no_other_larger(
    sizes: list[int], packing: Packing, small_network: NetworkSpec
) -> None:
    members = [member(small_network, MLPSpec(width=width), seed=i) for i, width in enumerate(sizes)]
    halved = packing.halved(Stack(tuple(members), seed=0))
    widest = max(members, key=lambda m: m.spec.network.trunk.width)
    assert halved.stack_size([widest]) <= len(members) // 2
    assert all(1 <= halved.stack_size([m]) <= packing.stack_size([m]) for m in members)
    assert all(len(places) < len(members) for places, _ in pack(members, halved, seed=0))
    assert Packing.model_validate(json.loads(json.dumps(halved.model_dump(mode="json")))) == halved  # as it is recorded


def test_every_worker_gets_a_stack(small_network: NetworkSpec) -> None:
    members = [member(small_network, MLPSpec(width=16), seed=i) for i in range(6)]
    assert [len(places) for places, _ in pack(members, for_workers(3), seed=0)] == [2, 2, 2]


def test_thinning_and_restacking_leaves_the_survivors_as_they_would_have_been(
    dataset: Dataset, small_network: NetworkSpec
) -> None:
    trunks = [MLPSpec(width=w, shared_depth=d, dropout=0.0) for w, d in ((16, 1), (24, 3), (40, 2), (8, 2))]
    members = [member(small_network, trunk, seed=i) for i, trunk in enumerate(trunks)]
    executor = InProcess(dataset)
    whole, thinned = Round(members, executor, ON_CPU, seed=0), Round(members, executor, ON_CPU, seed=0)
    whole.advance(16, reference=None, deadline=math.inf)
    thinned.advance(4, reference=None, deadline=math.inf)
    thinned.keep(lambda place: place in (1, 2), rung=0)
    thinned.advance(16, reference=None, deadline=math.inf)
    expected, found = whole.members(), thinned.members()
    assert set(found) == {1, 2}
    for place in (1, 2):
        a, b = (held[place][0].states[held[place][1]] for held in (expected, found))
        for name in a.tensors["data"]:
            torch.testing.assert_close(a.tensors["data"][name], b.tensors["data"][name], rtol=1e-4, atol=1e-5)


def test_processes_train_what_this_process_trains(dataset: Dataset, small_network: NetworkSpec) -> None:
    members = [member(small_network, MLPSpec(width=16, dropout=0.2), seed=i) for i in range(4)]
    with Processes(dataset, 2) as workers:
        remote = Round(members, workers, for_workers(2), seed=0)
        remote.advance(16, reference=None, deadline=math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        packed = remote.members()
        here = InProcess(dataset)
        stacks = pack(members, for_workers(2), seed=0)
        local = here.advance([stack for _, stack in stacks], 16, reference=None, deadline=math.inf)
    finally:
        torch.set_num_threads(threads)
    for (places, _), done in zip(stacks, local, strict=True):
        for k, place in enumerate(places):
            stack, row = packed[place]
            torch.testing.assert_close(
                torch.tensor(stack.losses[row]), torch.tensor(done.losses[k]), rtol=1e-4, atol=1e-5
            )


def test_a_passed_deadline_stops_training_and_says_so(dataset: Dataset, small_network: NetworkSpec) -> None:
    trip = Round([member(small_network, MLPSpec(width=16))], InProcess(dataset), ON_CPU, seed=0)
    assert not trip.advance(16, reference=None, deadline=-1.0)
    stack, _ = trip.members()[0]
    assert stack.stopped
    assert stack.step == 0


def starve(monkeypatch: pytest.MonkeyPatch, most: int, *, after: int = 0) -> list[int]:
    """Let stacks of more than `most` members run out of memory beyond step `after`; return every K that is tried."""
    whole, tried = local.advance, list[int]()

    def advance(stack: Stack, dataset: Dataset, goal: int, **given: Any) -> Stack:
        tried.append(len(stack.members))
        if len(stack.members) > most and goal > after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB.")
        return whole(stack, dataset, goal, **given)

    monkeypatch.setattr(local, "advance", advance)
    return tried


def mixed(network: NetworkSpec, n: int) -> list[Member]:
    """Members of several widths and depths, without dropout: its bits are drawn by stack."""
    trunks = [MLPSpec(width=(32, 24, 28)[i % 3], shared_depth=1 + i % 2, dropout=0.0) for i in range(n)]
    return [member(network, trunk, seed=i) for i, trunk in enumerate(trunks)]


def test_stacks_that_run_out_of_memory_go_on_as_if_packed_smaller_from_the_start(
    dataset: Dataset, small_network: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = mixed(small_network, 8)
    told: list[Packing] = []
    with monkeypatch.context() as starved:
        tried = starve(starved, 2)
        cut = Round(members, InProcess(dataset), ON_CPU, seed=0, halved=told.append)
        assert cut.advance(8, reference=None, deadline=math.inf)
        assert tried == [8, 4, 4, 2, 2, 2, 2]
        cut.keep(lambda place: place < 6, rung=0)
        cut.advance(16, reference=None, deadline=math.inf)
        assert tried[7:] == [2, 2, 2]  # the smaller packing holds for the rest of the round
    # 8 members ran out: 4 of width 32. Then 4 ran out: 2 of width 32, and 2 of width 28 (batches of 64 rows).
    assert told[-1] == cut.packing == ON_CPU.model_copy(update={"room": 2 * 64 * 28, "ran_out": (8, 4)})
    assert [packing.ran_out for packing in told] == [(8,), (8, 4), (8, 4)]
    small = Round(members, InProcess(dataset), cut.packing, seed=0)
    small.advance(8, reference=None, deadline=math.inf)
    small.keep(lambda place: place < 6, rung=0)
    small.advance(16, reference=None, deadline=math.inf)
    expected, found = small.members(), cut.members()
    assert set(found) == set(range(6))
    assert cut.looks(range(6)) == small.looks(range(6))
    for place in range(6):
        assert found[place][0].members[found[place][1]] == members[place]
        a, b = (held[place][0].states[held[place][1]] for held in (expected, found))
        assert a.losses == b.losses
        for matrix, tensors in a.tensors.items():
            for name, tensor in tensors.items():
                assert torch.equal(tensor, b.tensors[matrix][name]), (place, matrix, name)


def test_a_stack_that_runs_out_of_memory_on_its_way_keeps_states_and_looks(
    dataset: Dataset, small_network: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = mixed(small_network, 4)
    whole = Round(members, InProcess(dataset), ON_CPU, seed=0)
    whole.advance(4, reference=None, deadline=math.inf)
    early = whole.looks(range(4))
    whole.advance(16, reference=None, deadline=math.inf)
    starve(monkeypatch, 2, after=4)
    cut = Round(members, InProcess(dataset), ON_CPU, seed=0)
    cut.advance(4, reference=None, deadline=math.inf)
    cut.advance(16, reference=None, deadline=math.inf)
    assert [len(places) for places, _ in cut.packed] == [2, 2]
    assert {step: cut.looks(range(4))[step] for step in early} == early
    expected, found = whole.looks(range(4)), cut.looks(range(4))
    assert list(found) == list(expected) == list(range(1, 17))
    torch.testing.assert_close(torch.tensor(found[16]), torch.tensor(expected[16]), rtol=1e-4, atol=1e-5)


def test_one_member_that_does_not_fit_is_one_line_that_says_what_to_lower(
    dataset: Dataset, small_network: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    starve(monkeypatch, 0)
    trip = Round([member(small_network, MLPSpec(width=48))], InProcess(dataset), ON_CPU, seed=0)
    with pytest.raises(RunError, match=r"width 48, batch_size 64\) runs out of memory.*lower.*--device cpu") as caught:
        trip.advance(16, reference=None, deadline=math.inf)
    assert "\n" not in str(caught.value)


def test_a_worker_without_memory_gives_the_stack_back(
    dataset: Dataset, small_network: NetworkSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starved = """
    import torch
    from mtl_bento_search.executors import local, worker
    whole = local.advance
    def advance(stack, *given, **named):
        if len(stack.members) > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return whole(stack, *given, **named)
    local.advance = advance
    worker.main()
    """
    (tmp_path / "starved.py").write_text(textwrap.dedent(starved))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(local, "WORKER", "starved")
    with Processes(dataset, 1) as workers:
        trip = Round(mixed(small_network, 4), workers, ON_CPU, seed=0)
        assert trip.advance(16, reference=None, deadline=math.inf)
    assert [len(places) for places, _ in trip.packed] == [2, 2]
    assert {stack.step for _, stack in trip.packed} == {16}


def allocate_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def raise_memory_error() -> None:
    raise MemoryError


def raise_cudas() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("fail", [allocate_too_much, raise_memory_error, raise_cudas])
def test_the_memory_of_a_stack_that_did_not_fit_is_free_before_the_cache_is_emptied(
    fail: Callable[[], None], dataset: Dataset, small_network: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    left: list[torch.Tensor | None] = []

    def advance(*_: Any, **__: Any) -> None:
        weights = torch.zeros(8)
        held.append(weakref.ref(weights))
        fail()

    monkeypatch.setattr(local, "advance", advance)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(held[0]()))
    stack = Stack((member(small_network, MLPSpec(width=8)),), seed=0)
    assert advance_if_it_fits(stack, dataset, 16, reference=None, stop=never) is None
    assert left == [None]


def test_an_error_that_is_not_about_memory_is_raised(
    dataset: Dataset, small_network: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advance(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(local, "advance", advance)
    stack = Stack((member(small_network, MLPSpec(width=8)),), seed=0)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        advance_if_it_fits(stack, dataset, 16, reference=None, stop=never)
