"""Rounds: stacks of like members, rungs, restacking; what is trained does not depend on who trained it."""

from __future__ import annotations

import math

import torch

from mtl_bento.dataset import Dataset
from mtl_bento.network import NetworkSpec
from mtl_bento.training import Member, MemberSpec, TrainingSpec
from mtl_bento.trunks.mlp import MLPSpec
from mtl_bento.trunks.tabm import TabMSpec
from mtl_bento_search.executors.local import InProcess, Processes
from mtl_bento_search.rounds import Packing, Round, pack, rungs

ON_CPU = Packing(room=2**18, least=4, most=64, n_workers=1)


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
    assert ON_CPU.stack_size(member(small_network, MLPSpec(width=16), batch=32)) == 64
    assert ON_CPU.stack_size(member(small_network, MLPSpec(width=128), batch=256)) == 8  # 2^18 / (256 * 128)
    assert ON_CPU.stack_size(member(small_network, TabMSpec(width=256, inner=8), batch=256)) == 4


def test_a_packing_is_a_function_of_the_kind_of_device_and_the_workers() -> None:
    assert Packing.suited(torch.device("cpu"), n_workers=2) == for_workers(2)
    # No GPU is asked anything: these numbers are the same on a machine without one.
    on_gpu = Packing(room=2**24, least=4, most=256, n_workers=1)
    assert Packing.suited(torch.device("cuda"), n_workers=1) == on_gpu
    assert Packing.suited(torch.device("cuda:1"), n_workers=1) == on_gpu


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
