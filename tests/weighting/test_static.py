"""Fixed weights."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from mtl_bento.testing import check_weighting, sample_dataset, sample_members
from mtl_bento.training import Stack, advance
from mtl_bento.weighting.static import StaticWeighting, StaticWeightingSpec


def test_each_member_descends_the_weighted_sum_of_its_losses() -> None:
    specs = [StaticWeightingSpec(loss_weight={"a": 2.0, "c": 0.0}), StaticWeightingSpec()]
    weighting = StaticWeighting(specs, ["a", "b", "c"])
    losses = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert weighting(losses).tolist() == [2 * 1 + 1 * 2 + 0 * 3, 1 + 2 + 3]


def test_a_task_is_weighed_1_where_nothing_is_said_of_it() -> None:
    assert StaticWeightingSpec(loss_weight={"a": 0.0}).weight("b") == 1
    assert StaticWeightingSpec(loss_weight={"a": 0.0}).weight("a") == 0


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_finite_number_from_0(weight: float) -> None:
    with pytest.raises(ValidationError):
        StaticWeightingSpec(loss_weight={"a": weight})


def test_a_member_that_learns_one_task_shares_a_stack_with_members_that_learn_all() -> None:
    only = StaticWeightingSpec(loss_weight={"kind": 0, "amount": 0})
    check_weighting(only, StaticWeightingSpec(), StaticWeightingSpec(loss_weight={"yes": 0.1}))


def test_the_head_of_a_task_that_a_member_does_not_learn_is_only_decayed() -> None:
    dataset = sample_dataset()
    only = StaticWeightingSpec(loss_weight={"yes": 0.0, "amount": 0.0})
    (member,) = sample_members(dataset, weightings=[only], steps=4)
    state = advance(Stack((member,), seed=0), dataset, 4).states[0]
    assert not state.tensors["first"]["heads.0.linear.weight"].any()
    assert not state.tensors["second"]["heads.2.linear.bias"].any()
    assert state.tensors["first"]["heads.1.linear.weight"].any()
