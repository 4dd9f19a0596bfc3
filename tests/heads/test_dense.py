"""The dense head."""

from __future__ import annotations

import torch
from torch import Generator

from mtl_bento.heads.dense import DenseHead, DenseHeadSpec
from mtl_bento.testing import sample_dataset, sample_members
from mtl_bento.training import Stack, advance, restack


def generators(n: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in range(n)]


def test_a_head_of_width_0_is_a_linear_map() -> None:
    head = DenseHead([DenseHeadSpec(width=0)], [2], 2, 1, generators(1))
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        head.linear.bias.copy_(torch.tensor([[[[0.5, -0.5]]]]))
    # [1, 1] -> [1 + 3 + 0.5, 2 + 4 - 0.5]
    assert head(torch.ones(1, 1, 1, 2)).flatten().tolist() == [4.5, 5.5]
    assert len(list(head.parameters())) == 2


def test_a_hidden_layer_is_added_to_the_linear_map() -> None:
    head = DenseHead([DenseHeadSpec(width=2)], [1], 1, 1, generators(1))
    with torch.no_grad():
        head.linear.weight.fill_(1)
        head.linear.bias.fill_(0.25)
        head.first.weight.copy_(torch.tensor([2.0, -2.0]).view(1, 1, 1, 2))
        head.first.bias.copy_(torch.tensor([-1.0, 0.0]).view(1, 1, 1, 2))
        head.second.weight.copy_(torch.tensor([10.0, 100.0]).view(1, 1, 2, 1))
    # x = 1: 1 + 0.25 + 10 relu(2 - 1) + 100 relu(-2); x = -1: -1 + 0.25 + 10 relu(-3) + 100 relu(2)
    assert head(torch.tensor([1.0, -1.0]).view(1, 1, 2, 1)).flatten().tolist() == [11.25, 199.25]


def test_a_member_without_a_hidden_layer_answers_the_same_among_members_with_one() -> None:
    specs = [DenseHeadSpec(width=4), DenseHeadSpec(width=0), DenseHeadSpec(width=2)]
    mixed = DenseHead(specs, [3, 3, 3], 2, 1, generators(3))
    alone = DenseHead(specs[1:2], [3], 2, 1, generators(3)[1:2])
    state = torch.randn(3, 1, 5, 3, generator=Generator().manual_seed(3))
    torch.testing.assert_close(mixed(state)[1:2], alone(state[1:2]))


def test_inner_members_have_output_layers_of_their_own_and_share_the_hidden_one() -> None:
    head = DenseHead([DenseHeadSpec(width=4)], [3], 2, 5, generators(1))
    shapes = {name: tuple(parameter.shape) for name, parameter in head.named_parameters()}
    assert shapes == {
        "linear.weight": (1, 5, 3, 2),
        "linear.bias": (1, 5, 1, 2),
        "first.weight": (1, 1, 3, 4),
        "first.bias": (1, 1, 1, 4),
        "second.weight": (1, 5, 4, 2),
    }


def test_a_member_without_a_hidden_layer_restacks_with_members_that_have_one() -> None:
    # It raised KeyError: in a mixed stack its state also named hidden layers, of width 0.
    dataset = sample_dataset()
    linear, hidden = (
        sample_members(dataset, heads=[DenseHeadSpec(width=0)] * 2, steps=4),
        sample_members(dataset, steps=4),
    )
    stacks = [advance(Stack(tuple(members), seed=0), dataset, 2) for members in (linear[:1], hidden[:1])]
    merged = advance(restack(stacks, [[0], [0]], seed=0), dataset, 4)
    alone = advance(Stack(tuple(linear[:1]), seed=0), dataset, 4)
    assert merged.members[0] is linear[0]
    assert merged.states[0].tensors["data"].keys() == alone.states[0].tensors["data"].keys()


def test_heads_joined_once_answer_as_they_do_apart() -> None:
    heads = [DenseHead([DenseHeadSpec(width=w)] * 2, [3, 3], o, 4, generators(2)) for w, o in ((4, 2), (0, 1), (2, 3))]
    state = torch.randn(2, 4, 5, 3, generator=Generator().manual_seed(3))
    for answer, head in zip(DenseHead.joined(heads)(state), heads, strict=True):
        torch.testing.assert_close(answer, head(state))
