"""The shared bottom."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from mtl_bento.heads.dense import DenseHead, DenseHeadSpec
from mtl_bento.tasks.regression import Regression, RegressionSpec
from mtl_bento.trunks._base import TrunkSizes
from mtl_bento.trunks.mlp import MLP, MLPSpec

INPUTS = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
"""The three rows of the hand-computed case, [1, B, F]."""


def generators(n: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in range(n)]


def hand_set(trunk: MLP, head: DenseHead, k: int, *, hidden: bool) -> None:
    """Set member k to trunk [[1, -1], [-1, 1]] and head [1, -1], or without `hidden` to trunk [1, -1] and head 1."""
    with torch.no_grad():
        for parameter in (*trunk.parameters(), *head.parameters()):
            parameter[k] = 0
        weight = trunk.layers.linears[0].weight
        if hidden:
            weight[k, 0, :2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
            # The head's ReLU is its hidden layer: output weight 1, nothing on the linear path.
            head.first.weight[k, 0, :2, 0] = torch.tensor([1.0, -1.0])
            head.second.weight[k, 0, 0, 0] = 1
        else:
            weight[k, 0, :2, 0] = torch.tensor([1.0, -1.0])
            head.linear.weight[k, 0, 0, 0] = 1


def half_squared_error(outputs: Tensor, targets: list[float]) -> float:
    task = Regression(RegressionSpec(name="y"))
    return float(task.row_losses(outputs.detach(), torch.tensor([[targets]])).sum() / 2)


def test_with_relu_the_hand_computed_case_answers_1_0_0() -> None:
    specs = [MLPSpec(width=2, shared_depth=1, dropout=0)]
    trunk = MLP(specs, TrunkSizes(2, 1), generators(1))
    head = DenseHead([DenseHeadSpec(width=1)], trunk.widths, 1, 1, generators(1))
    hand_set(trunk, head, 0, hidden=True)
    # Row [1, 0]: relu([1, -1]) = [1, 0], relu(1 - 0) = 1. Row [0, 1]: [0, 1], relu(-1) = 0. Row [1, 1]: [0, 0], 0.
    outputs = head(trunk(INPUTS)[0])
    assert outputs.flatten().tolist() == [1, 0, 0]
    assert half_squared_error(outputs, [0, 1, 1]) == 1.5


def test_without_activations_the_hand_computed_case_answers_1_minus_1_0() -> None:
    specs = [MLPSpec(width=1, shared_depth=1, dropout=0, activation="identity")]
    trunk = MLP(specs, TrunkSizes(2, 1), generators(1))
    head = DenseHead([DenseHeadSpec(width=0)], trunk.widths, 1, 1, generators(1))
    hand_set(trunk, head, 0, hidden=False)
    outputs = head(trunk(INPUTS)[0])
    assert outputs.flatten().tolist() == [1, -1, 0]
    assert half_squared_error(outputs, [1, 0, 1]) == 1


def test_the_hand_computed_case_is_the_same_among_wider_and_deeper_members() -> None:
    specs = [MLPSpec(width=5, shared_depth=3, dropout=0), MLPSpec(width=2, shared_depth=1, dropout=0)]
    trunk = MLP(specs, TrunkSizes(2, 4), generators(2))
    head = DenseHead([DenseHeadSpec(width=7), DenseHeadSpec(width=1)], trunk.widths, 1, 1, generators(2))
    with torch.no_grad():
        trunk.layers.linears[0].weight[1] = 0
        trunk.layers.linears[0].bias[1] = 0
        for parameter in head.parameters():
            parameter[1] = 0
        trunk.layers.linears[0].weight[1, 0, :2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        head.first.weight[1, 0, :2, 0] = torch.tensor([1.0, -1.0])
        head.second.weight[1, 0, 0, 0] = 1
    assert head(trunk(INPUTS)[3])[1].flatten().tolist() == [1, 0, 0]


def test_a_member_equals_the_torch_network_of_its_weights() -> None:
    specs = [MLPSpec(width=6, shared_depth=2, dropout=0), MLPSpec(width=3, shared_depth=1, dropout=0)]
    trunk = MLP(specs, TrunkSizes(4, 2), generators(2))
    features = torch.randn(2, 5, 4, generator=Generator().manual_seed(3))
    layers: list[nn.Module] = []
    for linear in trunk.layers.linears:
        plain = nn.Linear(linear.weight.shape[2], 6)
        plain.weight.data, plain.bias.data = linear.weight[0, 0].T, linear.bias[0, 0, 0]
        layers += [plain, nn.ReLU()]
    for state in trunk(features):
        torch.testing.assert_close(state[0, 0], nn.Sequential(*layers)(features[0]))


def test_the_stack_narrows_as_depth_grows() -> None:
    depths = [3, 2, 2, 1]
    trunk = MLP([MLPSpec(shared_depth=d, width=4) for d in depths], TrunkSizes(2, 1), generators(4))
    assert [linear.weight.shape[0] for linear in trunk.layers.linears] == [4, 3, 1]


def test_all_tasks_get_the_same_state() -> None:
    trunk = MLP([MLPSpec(width=4, dropout=0)], TrunkSizes(2, 3), generators(1))
    states = trunk(INPUTS)
    assert len(states) == 3
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_members_that_do_not_lie_deepest_first_are_a_mistake_of_the_caller() -> None:
    specs = [MLPSpec(shared_depth=1), MLPSpec(shared_depth=2)]
    with pytest.raises(ValueError, match=r"deepest first, not \[1, 2\]"):
        MLP(specs, TrunkSizes(2, 1), generators(2))


def test_initial_weights_are_within_the_bound_of_torch_linear_and_the_same_in_any_stack() -> None:
    small, large = MLPSpec(width=3, shared_depth=1), MLPSpec(width=30, shared_depth=2)
    stacked = MLP([large, small], TrunkSizes(9, 1), generators(2)).layers.linears[0].weight[1, 0, :9, :3]
    alone = MLP([small], TrunkSizes(9, 1), generators(2)[1:]).layers.linears[0].weight[0, 0]
    assert torch.equal(stacked, alone)
    assert alone.abs().max() <= 1 / 3  # 1 / sqrt(fan in)
