"""What the benchmarks stand on: loops that compute what our stacks compute, replayed rungs, timers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from benchmarks import timers
from benchmarks.loops import BATCHES, Loop, Plain, Rows
from benchmarks.pruning import Curves, rank_correlations, replayed
from small import network_spec

from mtl_bento.dataset import Dataset
from mtl_bento.network import Network
from mtl_bento.training import Cohort, Epochs, Member, MemberSpec, Stack, TrainingSpec
from mtl_bento.trunks._base import TrunkSpec
from mtl_bento.trunks.mlp import MLPSpec
from mtl_bento.trunks.tabm import TabMSpec
from mtl_bento.weighting.static import StaticWeightingSpec
from mtl_bento_search.config import parse_config
from mtl_bento_search.problem import make_problem

TRUNKS = [MLPSpec(width=24, shared_depth=2, dropout=0.0), TabMSpec(width=16, shared_depth=1, inner=3, dropout=0.0)]
each_trunk = pytest.mark.parametrize("trunk", TRUNKS, ids=["mlp", "tabm"])


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Numbers with gaps, a column of few and one of many categories, a target of each kind."""
    rng = np.random.default_rng(0)
    n = 400
    x, many = rng.normal(size=(n, 3)), rng.integers(0, 30, n)
    drive = x[:, 0] + (many % 3) - 1 + rng.normal(0, 0.3, n)
    table = pa.table(
        {
            "a": pa.array(x[:, 0], mask=rng.random(n) < 0.1),
            "b": x[:, 1],
            "few": np.array(["u", "v", "w"])[rng.integers(0, 3, n)],
            "many": pa.array([f"level {code}" for code in many], mask=rng.random(n) < 0.1),
            "yes": drive > 0,
            "kind": np.array(["low", "mid", "high"])[np.digitize(drive, [-0.5, 0.5])],
            "much": drive,
        }
    )
    config = parse_config({"targets": ["yes", "kind", "much"], "split": {"folds": 0}}, where="test")
    return make_problem(config, data=table).dataset


def spec_of(dataset: Dataset, trunk: TrunkSpec) -> MemberSpec:
    network = network_spec(dataset, trunk, head0=8, head2=4)
    weights = StaticWeightingSpec(loss_weight={"yes": 0.5, "kind": 1.5, "much": 1.0})
    training = TrainingSpec(lr=0.01, weight_decay=0.3, batch_size=64, steps=32, weighting=weights)
    return MemberSpec(network=network, training=training)


@each_trunk
def test_the_plain_network_answers_what_a_member_of_a_stack_answers(dataset: Dataset, trunk: TrunkSpec) -> None:
    spec = spec_of(dataset, trunk).network
    rows = Rows.of(dataset, spec)
    assert rows.codes.shape == (400, 1)  # of "many"
    network = Network([spec, spec], dataset.inputs, dataset.tasks, [1, 2]).eval()
    plain = Plain(spec, rows).eval()
    plain.load(network.member_state(1))
    blocks = dataset.inputs_of(torch.arange(400).view(1, -1))
    for ours, theirs in zip(network(blocks), plain(rows.numbers, rows.codes), strict=True):
        torch.testing.assert_close(theirs, ours[1] if plain.inner else ours[1, 0], rtol=1e-5, atol=1e-5)


@each_trunk
def test_a_loop_on_the_same_batches_takes_the_steps_of_a_stack(dataset: Dataset, trunk: TrunkSpec) -> None:
    spec = spec_of(dataset, trunk)
    rows = Rows.of(dataset, spec.network)
    cohort = Cohort(Stack((Member(spec, seed=3),), 0), dataset)
    loop = Loop(spec, rows, seed=0, split=0)
    loop.model.load(cohort.network.member_state(0))
    places = torch.from_numpy(Epochs(len(dataset.splits[0].train), 3).rows(64, 0, 32))
    cohort.advance(dataset, 32)
    loop.train(([tensor[batch] for tensor in rows.training(0)] for batch in places), 32)
    loop.look(rows)
    step, losses = cohort.stack().curve[-1]
    assert step == 32
    assert loop.best_losses == pytest.approx(losses[0], rel=1e-3)
    assert max(loop.best_losses) < 0.9  # something was learned


@pytest.mark.parametrize("kind", BATCHES)
def test_an_epoch_of_batches_gives_each_row_once_at_most(kind: str) -> None:
    source = BATCHES[kind]([torch.arange(10), torch.arange(10) * 2], 3)
    epoch = [next(source) for _ in range(3)]
    assert len(torch.cat([first for first, _ in epoch]).unique()) == 9
    assert all(second.equal(first * 2) for first, second in epoch)


def test_a_loop_keeps_the_weights_of_its_best_look(dataset: Dataset) -> None:
    spec = spec_of(dataset, TRUNKS[0])
    rows = Rows.of(dataset, spec.network)
    loop = Loop(spec, rows, seed=0, split=0)
    loop.advance(rows, 8, batches="index")
    loop.best_score, kept = -1.0, loop.best  # no later look is better
    loop.advance(rows, 32, batches="index")
    assert loop.best is kept
    assert loop.step == 32


def curves(first_rung: np.ndarray, end: np.ndarray) -> Curves:
    """Curves over the rungs 8, 16 and 32 whose order changes once, after the first."""
    return Curves([8, 16, 32], np.stack([first_rung, end, end], 1))


def test_thinning_by_half_twice_saves_half_the_steps_and_loses_nothing_where_ranks_stay() -> None:
    losses = np.linspace(0.5, 0.8, 16)
    found = replayed(curves(losses, losses), range(16))
    # 16 x 8 + 8 x 8 + 4 x 16 steps of 16 x 32.
    assert found.saved == 2.0
    assert found.regret == 0.0
    assert rank_correlations(curves(losses, losses)) == pytest.approx([1.0, 1.0, 1.0])


def test_regret_is_what_a_rung_throws_away_that_would_have_been_best() -> None:
    end = np.linspace(0.5, 0.8, 16)
    found = replayed(curves(end[::-1], end), range(16))  # the first rung keeps the worse half
    assert found.regret == pytest.approx((end[8] / end[0] - 1) * 100)
    assert found.regret_of_fewer == 0.0  # the first eight hold the best


def test_time_in_an_inner_part_counts_for_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(timers.time, "perf_counter", lambda: next(now))
    held = timers.Timers()
    with held.during("outer"), held.during("inner"):
        pass
    assert held.seconds == {"outer": 1.0 + 4.0, "inner": 2.0}


def test_timed_functions_are_put_back() -> None:
    before = Curves.to_the_end
    with timers.Timers().wrapping([(Curves, "to_the_end", "part")]):
        assert Curves.to_the_end is not before
    assert Curves.to_the_end is before
