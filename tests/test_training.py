"""Cohorts: training as one tensor program."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_bento import training
from mtl_bento.dataset import Dataset, Split
from mtl_bento.encoders.categorical import CategoricalEncoderSpec
from mtl_bento.heads.dense import DenseHeadSpec
from mtl_bento.network import NetworkSpec
from mtl_bento.tasks.multiclass import Multiclass
from mtl_bento.tasks.regression import Regression
from mtl_bento.testing import check_stack, sample_dataset, sample_members
from mtl_bento.training import (
    Cohort,
    Epochs,
    Member,
    MemberSpec,
    MemberState,
    Stack,
    TrainingSpec,
    advance,
    label_share,
    lined_up,
    restack,
    schedule,
    stable_seed,
)
from mtl_bento.trunks.mlp import MLPSpec
from mtl_bento.trunks.tabm import TabMSpec


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return sample_dataset()


def member(dataset: Dataset, *, seed: int = 0, split: int = 0, **fields: Any) -> Member:
    """Return a member with a head of four units a task; `fields` are those of its trunk or its training."""
    trunk = {name: value for name, value in fields.items() if name in MLPSpec.model_fields}
    network = NetworkSpec.model_validate(
        {
            "encoders": {block: {"kind": block} for block in dataset.inputs.columns},
            "trunk": {"kind": "mlp", "width": 6, "shared_depth": 2, "dropout": 0, **trunk},
            "heads": {task.name: {"kind": "dense", "width": 4} for task in dataset.tasks},
        }
    )
    rest = {"batch_size": 16, "steps": 32, **{n: v for n, v in fields.items() if n in TrainingSpec.model_fields}}
    return Member(MemberSpec(network=network, training=TrainingSpec.model_validate(rest)), seed=seed, split=split)


def only(*names: str) -> dict[str, Any]:
    """Return the weighting of a member that learns those of the tasks."""
    weights = {name: float(name in names) for name in ("yes", "kind", "amount")}
    return {"kind": "static", "loss_weight": weights}


def same(one: MemberState, other: MemberState, *matrices: str) -> bool:
    """Return whether two states agree to the last bit."""
    return all(
        torch.equal(value, other.tensors[matrix][name])
        for matrix in matrices or one.tensors
        for name, value in one.tensors[matrix].items()
    )


def close(one: MemberState, other: MemberState) -> None:
    for matrix, tensors in one.tensors.items():
        for name, value in tensors.items():
            torch.testing.assert_close(value, other.tensors[matrix][name], atol=1e-12, rtol=0)


# Against torch


class Reference(nn.Module):
    """The network of `test_training_equals_torchs_adamw`, as anybody would write it."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            linear(state, "trunk.layers.linears.0"), nn.ReLU(), linear(state, "trunk.layers.linears.1"), nn.ReLU()
        )
        self.skips = nn.ModuleList(linear(state, f"heads.{t}.linear") for t in range(3))
        self.hidden = nn.ModuleList(linear(state, f"heads.{t}.first") for t in range(3))
        self.outs = nn.ModuleList(linear(state, f"heads.{t}.second") for t in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.trunk(x)
        parts = zip(self.skips, self.hidden, self.outs, strict=True)
        return [skip(x) + out(functional.relu(hidden(x))) for skip, hidden, out in parts]


def linear(state: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = state[f"{name}.weight"][0], state.get(f"{name}.bias")
    layer = nn.Linear(*weight.shape, bias=bias is not None, dtype=torch.float64)
    layer.weight.data = weight.T.clone()
    if bias is not None:
        layer.bias.data = bias.flatten().clone()
    return layer


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    return (losses * weights).sum() / weights.sum()


@pytest.mark.parametrize("alone", [True, False])
def test_training_equals_torchs_adamw_with_clipping_and_a_schedule(dataset: Dataset, alone: bool) -> None:
    wanted = member(dataset, seed=3, split=1, lr=0.02, weight_decay=0.5)
    one_hot = {**wanted.spec.network.encoders, "categorical": CategoricalEncoderSpec(one_hot_levels=256)}
    network = wanted.spec.network.model_copy(update={"encoders": one_hot})
    wanted = dataclasses.replace(wanted, spec=wanted.spec.model_copy(update={"network": network}))
    wider = dataclasses.replace(wanted, spec=MemberSpec(
        network=network.model_copy(update={"trunk": MLPSpec(width=11, shared_depth=3, dropout=0)}),
        training=wanted.spec.training.model_copy(update={"lr": 1e-3}),
    ))  # fmt: skip
    members, place = ((wanted,), 0) if alone else ((wider, wanted), 1)
    cohort = Cohort(Stack(members, seed=0), dataset)
    model = Reference(cohort.network.member_state(place))
    # Nothing in these encoders is learned: their features are constants.
    encoders = zip(cohort.network.encoders, dataset.blocks, strict=True)
    features = torch.cat([encoder.features(block[None])[0] for encoder, block in encoders], -1)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.5},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step, 32))
    rows = dataset.splits[1].train[torch.from_numpy(Epochs(90, 3).rows(16, 0, 32))]
    assert dataset.weights is not None
    for index in rows:
        yes, kind, amount = model(features[index])
        weights = dataset.weights[index]
        targets = [target[index] for target in dataset.targets]
        known = targets[1] >= 0, ~targets[2].isnan()
        losses = [
            weighted_mean(
                functional.binary_cross_entropy_with_logits(yes[:, 0], targets[0].double(), reduction="none"), weights
            ),
            weighted_mean(
                functional.cross_entropy(kind[known[0]], targets[1][known[0]], reduction="none"), weights[known[0]]
            ),
            weighted_mean((amount[known[1], 0] - targets[2][known[1]].double()) ** 2, weights[known[1]]),
        ]
        optimiser.zero_grad()
        sum(loss / unit for loss, unit in zip(losses, dataset.trivial, strict=True)).backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
    cohort.advance(dataset, 32)
    ours = Reference(cohort.network.member_state(place))
    for one, other in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


# Plans and schedules


def test_the_learning_rate_rises_over_a_twentieth_of_the_steps_and_falls_along_a_cosine() -> None:
    # 100 steps: 5 up; then half a cosine over 95.
    assert [schedule(step, 100) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert schedule(5, 100) == 1
    assert schedule(5 + 19, 100) == pytest.approx((1 + math.cos(math.pi / 5)) / 2)
    assert schedule(99, 100) == pytest.approx((1 + math.cos(math.pi * 94 / 95)) / 2)
    assert schedule(99, 100) > 0


def test_a_budget_of_few_steps_has_a_learning_rate_too() -> None:
    assert [schedule(step, 1) for step in range(1)] == [1]
    assert [schedule(step, 2) for step in range(2)] == [1, 1]
    assert [schedule(step, 3) for step in range(3)] == pytest.approx([1, 1, 0.5])


def test_every_row_is_seen_once_an_epoch() -> None:
    plan = Epochs(12, 7).rows(4, 0, 9).reshape(3, 12)
    assert [sorted(epoch) for epoch in plan.tolist()] == [list(range(12))] * 3
    assert len({tuple(epoch) for epoch in plan.tolist()}) == 3


def test_epochs_are_laid_end_to_end_where_batches_do_not_divide_them() -> None:
    line = Epochs(10, 7).rows(4, 0, 5).ravel().tolist()
    assert sorted(line[:10]) == sorted(line[10:]) == list(range(10))


def test_a_batch_may_be_larger_than_the_rows() -> None:
    (batch,) = Epochs(3, 0).rows(7, 0, 1)
    assert sorted(batch[:3].tolist()) == sorted(batch[3:6].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_plan_is_the_same_in_one_piece_and_in_two(cut: int) -> None:
    whole = Epochs(10, 7).rows(4, 2, 8)
    parts = [Epochs(10, 7).rows(4, 2, cut), Epochs(10, 7).rows(4, 2 + cut, 8 - cut)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_members_of_different_seeds_see_rows_in_different_order() -> None:
    assert Epochs(50, 1).rows(50, 0, 1).tolist() != Epochs(50, 2).rows(50, 0, 1).tolist()


def test_seeds_depend_on_their_parts_alone() -> None:
    # The first eight bytes of SHA-256("1\x1fdropout") shifted by one bit: in every process, on every machine.
    assert stable_seed(1, "dropout") == 0x76A155F6E5021F5E
    assert stable_seed("ab", "c") != stable_seed("a", "bc")
    assert stable_seed(1, 2) == stable_seed("1", "2")
    assert 0 <= stable_seed("x") < 2**63


# Steps


def test_the_same_stack_twice_gives_the_same_bits_and_leaves_the_global_generator_alone(dataset: Dataset) -> None:
    members = lined_up([member(dataset, seed=s, dropout=0.3, shared_depth=1 + s) for s in range(3)])
    before = torch.random.get_rng_state()
    one, other = (advance(Stack(members, seed=5), dataset, 8) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(same(a, b) for a, b in zip(one.states, other.states, strict=True))
    assert one.curve == other.curve


def test_another_seed_of_the_stack_draws_other_dropout_bits_only(dataset: Dataset) -> None:
    dropping, plain = member(dataset, dropout=0.5), member(dataset, dropout=0)
    ends = [advance(Stack((dropping, plain), seed=seed), dataset, 4) for seed in (0, 1)]
    assert not same(ends[0].states[0], ends[1].states[0], "data")
    assert same(ends[0].states[1], ends[1].states[1])


def test_a_rung_in_between_changes_nothing_of_the_training(dataset: Dataset) -> None:
    stack = Stack((member(dataset),), seed=0)
    once = advance(stack, dataset, 32)
    for rung in (1, 7, 16, 31):
        twice = advance(advance(stack, dataset, rung), dataset, 32)
        assert same(twice.states[0], once.states[0], "data", "first", "second")


def test_a_stack_is_not_changed_by_training_it(dataset: Dataset) -> None:
    halfway = advance(Stack((member(dataset),), seed=0), dataset, 4)
    copy = {name: value.clone() for name, value in halfway.states[0].tensors["data"].items()}
    advance(halfway, dataset, 8)
    assert all(torch.equal(value, copy[name]) for name, value in halfway.states[0].tensors["data"].items())


def test_training_ends_at_the_budget(dataset: Dataset) -> None:
    stack = advance(Stack((member(dataset, steps=5),), seed=0), dataset, 1000)
    assert stack.step == 5
    assert advance(stack, dataset, 1000).states[0].score == stack.states[0].score


def test_a_stop_ends_training_and_changes_nothing_of_what_follows(dataset: Dataset) -> None:
    stack = Stack((member(dataset, steps=160),), seed=0)
    whole = advance(stack, dataset, 160)
    asked = iter([False] * 5 + [True])
    stopped = advance(stack, dataset, 160, stop=lambda: next(asked))
    assert stopped.stopped
    assert 0 < stopped.step < 160
    resumed = advance(stopped, dataset, 160)
    assert not resumed.stopped
    assert resumed.step == 160
    assert same(resumed.states[0], whole.states[0])
    assert resumed.curve == whole.curve


def test_a_stop_before_the_first_step_leaves_the_initial_weights(dataset: Dataset) -> None:
    stopped = advance(Stack((member(dataset),), seed=0), dataset, 8, stop=lambda: True)
    assert (stopped.step, stopped.stopped, stopped.curve) == (0, True, ())
    assert same(
        advance(stopped, dataset, 8).states[0], advance(Stack((member(dataset),), seed=0), dataset, 8).states[0]
    )


def test_members_that_must_match_and_do_not_are_refused(dataset: Dataset) -> None:
    for fields in ({"batch_size": 8}, {"steps": 64}, {"activation": "silu"}):
        pair = (member(dataset), member(dataset, **fields))
        with pytest.raises(ValueError, match="marked to match"):
            Cohort(Stack(pair, seed=0), dataset)


def test_members_differ_in_rates_sizes_splits_and_seeds(dataset: Dataset) -> None:
    members = [
        member(dataset, seed=1, lr=1e-3, width=4, shared_depth=3),
        member(dataset, seed=2, lr=5e-2, weight_decay=1, split=1, width=9),
        member(dataset, seed=3, weight_decay=0, shared_depth=1),
    ]
    check_stack(members, dataset)


def test_equal_members_of_equal_seed_end_alike(dataset: Dataset) -> None:
    stack = advance(Stack((member(dataset),) * 3, seed=0), dataset, 8)
    for state in stack.states[1:]:
        close(state, stack.states[0])


def test_it_learns(dataset: Dataset) -> None:
    stack = Stack((member(dataset, lr=1e-2, steps=96, width=32),), seed=0)
    fitted = dataclasses.replace(dataset, splits=(Split(dataset.splits[0].train, dataset.splits[0].train),))
    first, *_, last = (losses[0] for _, losses in advance(stack, fitted, 96).curve)
    assert all(after < 0.8 * before for before, after in zip(first, last, strict=True))


# Restacking


def test_survivors_of_two_stacks_go_on_as_they_would_have(dataset: Dataset) -> None:
    wide = tuple(member(dataset, seed=s, width=20, shared_depth=3) for s in range(2))
    small = tuple(member(dataset, seed=s, width=3 + s, shared_depth=1) for s in range(2, 5))
    halves = [advance(Stack(members, seed=8), dataset, 16) for members in (small, wide)]
    merged = advance(restack(halves, [[2, 0], [1]], seed=9), dataset, 32)
    assert [m.seed for m in merged.members] == [1, 4, 2]  # the deepest first, otherwise in the order given
    for m, state in zip(merged.members, merged.states, strict=True):
        close(state, advance(Stack((m,), seed=0), dataset, 32).states[0])


def test_survivors_keep_their_best_look(dataset: Dataset) -> None:
    half = advance(Stack((member(dataset), member(dataset, seed=1)), seed=0), dataset, 16)
    kept = restack([half], [[1]], seed=0)
    assert (kept.step, kept.states[0].score, kept.losses[0]) == (16, half.states[1].score, half.losses[1])
    assert Cohort(kept, dataset).stack().states[0].losses == half.losses[1]


def test_stacks_at_different_steps_do_not_restack(dataset: Dataset) -> None:
    # AdamW's bias correction and the rows would be those of the first stack's step.
    stacks = [advance(Stack((member(dataset),), seed=0), dataset, step) for step in (4, 8)]
    with pytest.raises(ValueError, match="step"):
        restack(stacks, [[0], [0]], seed=0)


def test_members_are_lined_up_deepest_first_and_otherwise_as_they_came(dataset: Dataset) -> None:
    members = [member(dataset, seed=s, shared_depth=d) for s, d in enumerate((1, 3, 2, 3, 1))]
    assert [m.seed for m in lined_up(members)] == [1, 3, 2, 0, 4]


# Labels and weights


def without_labels(dataset: Dataset, task: int, rows: Tensor) -> Dataset:
    """Return the dataset with the labels of some rows cleared for one task."""
    targets = list(dataset.targets)
    targets[task] = targets[task].clone()
    targets[task][rows] = math.nan if targets[task].is_floating_point() else -1
    return dataclasses.replace(dataset, targets=tuple(targets))


@pytest.mark.parametrize("task", [0, 1, 2])
def test_a_task_without_a_label_in_any_batch_gives_its_head_no_gradient(dataset: Dataset, task: int) -> None:
    bare = without_labels(dataset, task, dataset.splits[0].train)
    state = advance(Stack((member(dataset),), seed=0), bare, 4).states[0]
    for matrix in ("first", "second"):
        heads = {name: value for name, value in state.tensors[matrix].items() if name.startswith("heads.")}
        assert all(value.any() != name.startswith(f"heads.{task}.") for name, value in heads.items())
    assert all(value.isfinite().all() for tensors in state.tensors.values() for value in tensors.values())
    assert math.isfinite(state.score)


def test_a_row_without_a_label_counts_for_the_other_tasks_only(dataset: Dataset) -> None:
    rows = dataset.splits[0].train[::2]
    bare = without_labels(dataset, 0, rows)
    other = without_labels(dataset, 0, rows)
    other.targets[0][rows] = -1
    # What the cleared labels were makes no difference: neither to the loss nor through the trivial predictor's unit.
    ends = [advance(Stack((member(dataset),), seed=0), held, 4) for held in (bare, other)]
    assert same(ends[0].states[0], ends[1].states[0])
    assert not same(ends[0].states[0], advance(Stack((member(dataset),), seed=0), dataset, 4).states[0], "data")


def full_batch(dataset: Dataset, train: Tensor, valid: Tensor, *, weights: Tensor | None) -> Stack:
    """Return a member trained on all rows at every step."""
    held = dataclasses.replace(dataset, splits=(Split(train, valid),), weights=weights)
    return advance(Stack((member(dataset, batch_size=len(train)),), seed=0), held, 8)


def test_row_weights_have_exactly_the_effect_of_repeated_rows(dataset: Dataset) -> None:
    split = dataset.splits[0]
    weights = (torch.arange(120) % 3).double()

    def repeated(rows: Tensor) -> Tensor:
        return rows.repeat_interleave(weights[rows].long())

    weighed = full_batch(dataset, split.train, split.valid, weights=weights)
    often = full_batch(dataset, repeated(split.train), repeated(split.valid), weights=None)
    close(weighed.states[0], often.states[0])
    assert weighed.losses[0] == pytest.approx(often.losses[0], abs=1e-12)


def test_class_weights_have_exactly_the_effect_of_repeated_rows(dataset: Dataset) -> None:
    place = 1
    task, known = dataset.tasks[place], dataset.targets[place] >= 0
    split = dataclasses.replace(dataset.splits[0], train=dataset.splits[0].train[known[dataset.splits[0].train]])
    only = dataclasses.replace(dataset, tasks=(task,), targets=(dataset.targets[place],), trivial=dataset.trivial[1:2])
    weighed = dataclasses.replace(only, tasks=(Multiclass(task.spec.model_copy(update={"class_weight": {"b": 3.0}})),))
    times = torch.where(only.targets[0] == 1, 3, 1)  # levels are a, b, c
    ends = [
        full_batch(weighed, split.train, split.valid, weights=None),
        full_batch(only, split.train.repeat_interleave(times[split.train]), split.valid, weights=None),
    ]
    close(ends[0].states[0], ends[1].states[0])


def test_a_member_learns_from_the_rows_that_are_labelled_for_one_of_its_tasks(dataset: Dataset) -> None:
    train, names = dataset.splits[0].train, [task.name for task in dataset.tasks]
    known = torch.stack([task.known(held[train]) for task, held in zip(dataset.tasks, dataset.targets, strict=True)])
    groups = [(0,), (1,), (2,), (1, 2), (0, 1, 2)]
    members = tuple(member(dataset, weighting=only(*(names[t] for t in group))) for group in groups)
    cohort = Cohort(Stack(members, seed=0), dataset)
    assert [len(rows) for rows in cohort.learned] == [90, 76, 60, 87, 90]
    for group, rows in zip(groups, cohort.learned, strict=True):
        assert rows.tolist() == train[known[list(group)].any(0)].tolist()


def test_rows_without_a_label_of_its_tasks_are_as_if_they_were_not_there(dataset: Dataset) -> None:
    split = dataset.splits[0]
    labelled = split.train[dataset.tasks[2].known(dataset.targets[2][split.train])]
    other = dataclasses.replace(dataset, splits=(dataclasses.replace(split, train=labelled),))
    stack = Stack((member(dataset, weighting=only("amount")),), seed=0)
    assert same(advance(stack, dataset, 32).states[0], advance(stack, other, 32).states[0])


def test_a_member_whose_tasks_have_no_label_learns_from_all_rows(dataset: Dataset) -> None:
    empty = dataclasses.replace(dataset, targets=(torch.full_like(dataset.targets[0], -1), *dataset.targets[1:]))
    assert empty.learned(0, [True, False, False]).tolist() == dataset.splits[0].train.tolist()


# Looks


def test_looks_are_taken_a_sixteenth_of_the_budget_apart_and_at_every_goal(dataset: Dataset) -> None:
    stack = Stack((member(dataset, steps=32),), seed=0)
    assert [step for step, _ in advance(stack, dataset, 32).curve] == list(range(2, 33, 2))
    assert [step for step, _ in advance(advance(stack, dataset, 5), dataset, 8).curve] == [2, 4, 5, 6, 8]
    assert [step for step, _ in advance(Stack((member(dataset, steps=3),), seed=0), dataset, 3).curve] == [1, 2, 3]


def test_each_member_keeps_the_weights_of_its_best_look(dataset: Dataset) -> None:
    members = tuple(member(dataset, lr=lr, seed=s, shared_depth=1, width=32) for lr, s in ((0.05, 0), (0.2, 3)))
    stack = Stack(members, seed=0)
    whole = advance(stack, dataset, 32)
    for k in range(2):
        scores = [(sum(losses[k]) / 3, step) for step, losses in whole.curve]
        best, step = min(scores)
        assert step < 32  # it overfits by then, or this tests nothing
        assert whole.states[k].score == pytest.approx(best, abs=1e-12)
        then = advance(stack, dataset, step).states[k].tensors["data"]
        kept = whole.trained(k).state
        assert all(torch.equal(kept[name], value) for name, value in then.items())
        assert whole.losses[k] == next(losses[k] for s, losses in whole.curve if s == step)


def by_hand(dataset: Dataset, cohort: Cohort, k: int, rows: Tensor) -> list[float]:
    """Return member k's weighted mean losses on rows, from its answers, in units of the trivial loss."""
    answers = cohort.network.eval().answers([block[rows][None] for block in dataset.blocks])
    means = []
    for task, answer, target, unit in zip(dataset.tasks, answers, dataset.targets, dataset.trivial, strict=True):
        losses = task.answer_losses(answer[k], target[rows])
        weights = torch.ones(120, dtype=torch.float64) if dataset.weights is None else dataset.weights
        known = ~losses.isnan()
        means.append(float((weighted_mean(losses[known], weights[rows][known]) / unit).detach()))
    return means


def test_members_are_judged_on_the_rows_that_their_split_holds_back(dataset: Dataset) -> None:
    cohort = Cohort(Stack((member(dataset, split=1), member(dataset, split=0)), seed=0), dataset)
    cohort.advance(dataset, 2)
    losses = cohort.losses(dataset)
    for k, split in enumerate((1, 0)):
        assert losses[k].tolist() == pytest.approx(by_hand(dataset, cohort, k, dataset.splits[split].valid), abs=1e-12)


def test_members_are_judged_on_as_many_rows_as_their_split_holds_back(dataset: Dataset) -> None:
    splits = tuple(dataclasses.replace(s, valid=s.valid[:n]) for s, n in zip(dataset.splits, (5, 23), strict=False))
    uneven = dataclasses.replace(dataset, splits=splits)
    cohort = Cohort(Stack((member(uneven, split=1), member(uneven, split=0)), seed=0), uneven)
    losses = cohort.losses(uneven)
    for k, split in enumerate((1, 0)):
        assert losses[k].tolist() == pytest.approx(by_hand(uneven, cohort, k, splits[split].valid), abs=1e-12)


def test_tabm_is_judged_by_the_answers_averaged_over_its_inner_networks(dataset: Dataset) -> None:
    (inner,) = sample_members(dataset, trunks=[TabMSpec(width=6, inner=4, dropout=0)], steps=4)
    cohort = Cohort(Stack((inner,), seed=0), dataset)
    assert cohort.losses(dataset)[0].tolist() == pytest.approx(by_hand(dataset, cohort, 0, dataset.splits[0].valid))


def test_losses_do_not_depend_on_how_validation_rows_are_cut(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = Cohort(Stack((member(dataset),), seed=0), dataset)
    whole = cohort.losses(dataset)
    monkeypatch.setattr(training, "VALID_CHUNK", 7)
    torch.testing.assert_close(cohort.losses(dataset), whole, atol=1e-12, rtol=0)


def test_of_many_validation_rows_an_evenly_spaced_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOOKED_AT", 10)
    assert training.looked_at(torch.arange(10)).tolist() == list(range(10))
    assert training.looked_at(torch.arange(11)).tolist() == list(range(0, 11, 2))
    assert training.looked_at(torch.arange(25)).tolist() == list(range(0, 25, 3))


def score(dataset: Dataset, stack: Stack, **given: Any) -> tuple[float, list[float]]:
    """Return score and losses of the one member after one step."""
    state = advance(stack, dataset, 1, **given).states[0]
    return state.score, state.losses


def test_the_score_weighs_tasks_by_how_much_the_user_cares(dataset: Dataset) -> None:
    stack = Stack((member(dataset, steps=1),), seed=0)
    cared = tuple(task.with_spec(weight=w) for task, w in zip(dataset.tasks, (2.0, 1.0, 5.0), strict=True))
    value, losses = score(dataclasses.replace(dataset, tasks=cared), stack)
    assert value == pytest.approx((2 * losses[0] + losses[1] + 5 * losses[2]) / 8, abs=1e-12)


def test_the_score_divides_by_the_reference_losses(dataset: Dataset) -> None:
    value, losses = score(dataset, Stack((member(dataset, steps=1),), seed=0), reference=[0.5, 0.8, 0.1])
    assert value == pytest.approx((losses[0] / 0.5 + losses[1] / 0.8 + losses[2] / 0.1) / 3, abs=1e-12)


def test_a_member_is_judged_on_the_tasks_it_learns_or_those_it_is_told(dataset: Dataset) -> None:
    weighting = {"kind": "static", "loss_weight": {"yes": 0, "amount": 0.5}}
    learning = member(dataset, steps=1, weighting=weighting)
    value, losses = score(dataset, Stack((learning,), seed=0))
    assert value == pytest.approx((losses[1] + losses[2]) / 2, abs=1e-12)
    told = dataclasses.replace(learning, tasks=(True, False, False))
    value, losses = score(dataset, Stack((told,), seed=0))
    assert value == pytest.approx(losses[0], abs=1e-12)


def test_a_task_without_labels_in_the_validation_rows_does_not_count(dataset: Dataset) -> None:
    bare = without_labels(dataset, 1, dataset.splits[0].valid)
    value, losses = score(bare, Stack((member(dataset, steps=1),), seed=0))
    assert math.isnan(losses[1])
    assert value == pytest.approx((losses[0] + losses[2]) / 2, abs=1e-12)


def test_a_member_that_diverged_keeps_its_best_look_and_disturbs_nobody(dataset: Dataset) -> None:
    # Its losses, NaN, passed for "no labels": the diverged weights scored 0, better than any.
    pair = (member(dataset, seed=0), member(dataset, seed=1))
    half = advance(Stack(pair, seed=0), dataset, 8)
    broken = {name: torch.full_like(value, math.nan) for name, value in half.states[0].tensors["data"].items()}
    state = dataclasses.replace(half.states[0], tensors={**half.states[0].tensors, "data": broken})
    after = advance(dataclasses.replace(half, states=(state, half.states[1])), dataset, 16)
    assert after.states[0].score == half.states[0].score
    assert same(after.states[0], half.states[0], "best")
    assert all(loss == math.inf for loss in after.curve[-1][1][0])
    close(after.states[1], advance(Stack(pair[1:], seed=0), dataset, 16).states[0])


def test_a_member_that_diverges_at_once_scores_worst(dataset: Dataset) -> None:
    wild = member(dataset, lr=1, weight_decay=0, shared_depth=16, width=64, activation="identity", steps=8)
    narrow = sample_dataset(dtype=torch.float32)
    stack = advance(Stack((wild,), seed=0), narrow, 8)
    assert not stack.states[0].tensors["data"]["heads.0.linear.weight"].isfinite().all()  # or this tests nothing
    assert stack.curve[-1][1][0] == [math.inf] * 3
    assert stack.states[0].score == pytest.approx(min(sum(losses[0]) / 3 for _, losses in stack.curve))


def test_float32_trains_close_to_float64(dataset: Dataset) -> None:
    narrow = sample_dataset(dtype=torch.float32)
    ends = [advance(Stack((member(dataset),), seed=0), held, 16) for held in (dataset, narrow)]
    assert ends[0].losses[0] == pytest.approx(ends[1].losses[0], abs=1e-4)
    assert ends[1].states[0].tensors["data"]["heads.0.linear.weight"].dtype == torch.float32


def test_heads_of_all_sizes_train_in_one_stack(dataset: Dataset) -> None:
    members = sample_members(dataset, heads=[DenseHeadSpec(width=w) for w in (0, 9, 0, 2)])
    check_stack(members, dataset)


class Halves(Regression):
    """A regression whose loss has two parts, a quarter and three quarters of it."""

    parts = ("less", "more")

    def row_parts(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.row_losses(outputs, targets).unsqueeze(-1) * torch.tensor([0.25, 0.75], dtype=outputs.dtype)


def weighed(one: Member, less: float, more: float) -> Member:
    training = one.spec.training.model_copy(update={"part_weight": {"amount.less": less, "amount.more": more}})
    return dataclasses.replace(one, spec=one.spec.model_copy(update={"training": training}))


def with_parts(dataset: Dataset) -> Dataset:
    tasks = tuple(Halves(t.spec) if t.name == "amount" else t for t in dataset.tasks)
    return dataclasses.replace(dataset, tasks=tasks, _kept={})


def test_members_that_weigh_the_parts_of_a_loss_unlike_share_a_stack(dataset: Dataset) -> None:
    held = with_parts(dataset)
    members = [weighed(member(held, seed=k), less, more) for k, (less, more) in enumerate([(1, 1), (0.2, 5), (3, 0.5)])]
    check_stack(members, held)


def test_the_weight_of_a_part_is_that_of_the_loss_where_all_parts_have_it(dataset: Dataset) -> None:
    held = with_parts(dataset)
    twice = weighed(member(held), 2, 2)
    names = [task.name for task in dataset.tasks]
    weighting = {"kind": "static", "loss_weight": {name: 2.0 if name == "amount" else 1.0 for name in names}}
    whole = member(dataset, weighting=weighting)
    close(*(advance(Stack((one,), seed=0), data, 8).states[0] for one, data in ((twice, held), (whole, dataset))))
    unlike = advance(Stack((weighed(member(held), 5, 0.2),), seed=0), held, 8).states[0]
    assert unlike.losses != pytest.approx(advance(Stack((twice,), seed=0), held, 8).states[0].losses)


def teaching(dataset: Dataset) -> Dataset:
    """A dataset whose teacher is as sure as the labels, and answers 0 where there are none."""
    answers = []
    for task, labels in zip(dataset.tasks, dataset.targets, strict=True):
        said = torch.zeros(len(labels), task.n_outputs)
        known = task.known(labels)
        if isinstance(task, Multiclass):
            said[known] = functional.one_hot(labels[known], task.n_outputs).to(said.dtype)
        else:
            said[known] = labels[known].unsqueeze(-1).to(said.dtype)
        answers.append(said.numpy())
    return dataset.with_teacher(answers)


def test_a_student_whose_labels_keep_all_the_weight_is_trained_as_if_there_were_no_teacher(dataset: Dataset) -> None:
    ends = [advance(Stack((member(dataset),), seed=0), held, 32) for held in (dataset, teaching(dataset))]
    assert same(ends[0].states[0], ends[1].states[0], "data", "best")


def test_a_teacher_as_sure_as_the_labels_teaches_the_labels(dataset: Dataset) -> None:
    known = torch.stack([task.known(y) for task, y in zip(dataset.tasks, dataset.targets, strict=True)]).all(0)
    rows = known.nonzero().squeeze(-1)
    whole = dataclasses.replace(dataset, weights=None, splits=(Split(rows[:-8], rows[-8:]),))
    ends = [
        advance(Stack((member(whole, label_weight=share),), seed=0), teaching(whole), 32) for share in (1.0, 0.5, 0.0)
    ]
    for end in ends[1:]:
        close(end.states[0], ends[0].states[0])


def test_the_labels_share_rises_linearly_to_one() -> None:
    shares = [label_share(step, TrainingSpec(steps=4, label_weight=0.2)) for step in range(5)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_student_without_a_teacher_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="students learn from a teacher's answers; give the dataset some"):
        Cohort(Stack((member(dataset, label_weight=0.0),), seed=0), dataset)


def test_members_train_again_to_their_best_looks_bit_for_bit(dataset: Dataset) -> None:
    members = tuple(member(dataset, seed=k, lr=lr, dropout=0.2) for k, lr in enumerate((2e-3, 0.3, 1e-2)))
    first = advance(Stack(members, seed=0), dataset, 32)
    steps = [first.trained(k).step for k in range(3)]
    assert len(set(steps)) > 1
    # The same rows, nothing held back: nobody could choose by them.
    rows = dataset.splits[0].train
    blind = dataset.with_splits([(rows.numpy(), rows[:0].numpy())])
    until = [dataclasses.replace(m, until=step) for m, step in zip(members, steps, strict=True)]
    again = advance(Stack(tuple(until), seed=0), blind, 32)
    assert again.step == max(steps)
    for k in range(3):
        assert again.trained(k).step == steps[k]
        assert same(again.states[k], first.states[k], "best")


def test_a_step_that_is_no_look_is_kept_too(dataset: Dataset) -> None:
    once = advance(Stack((dataclasses.replace(member(dataset), until=7),), seed=0), dataset, 32)
    ended = advance(Stack((member(dataset, steps=32),), seed=0), dataset, 7)
    assert all(torch.equal(once.trained(0).state[name], held) for name, held in ended.states[0].tensors["data"].items())


def test_members_that_keep_steps_share_no_cohort_with_those_that_keep_looks(dataset: Dataset) -> None:
    members = (member(dataset), dataclasses.replace(member(dataset), until=4))
    with pytest.raises(ValueError, match="members of one cohort keep given steps, or all of them their best looks"):
        Cohort(Stack(members, seed=0), dataset)
