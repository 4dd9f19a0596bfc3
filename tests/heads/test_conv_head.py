"""The convolutional head."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from mtl_bento.heads.conv import ConvHead, ConvHeadSpec
from mtl_bento.heads.dense import DenseHead, DenseHeadSpec


def generators(n: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in range(n)]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(7))


def test_outputs_are_a_linear_map_and_a_hidden_convolution_of_torch() -> None:
    specs = [ConvHeadSpec(width=6), ConvHeadSpec(width=3)]
    head = ConvHead(specs, [5, 4], 2, 1, generators(2), length=6, grid=(2, 3)).double()
    state = random(2, 1, 4, 6, 5)
    state[1, ..., 4:] = 0
    outputs = head(state).flatten(2, 3)
    images = state[1, 0, ..., :4].unflatten(1, (2, 3)).permute(0, 3, 1, 2)
    kernel = head.first.weight[1, :, :4, :3].permute(2, 1, 0).unflatten(2, (3, 3))
    hidden = torch.relu(nn.functional.conv2d(images, kernel, head.first.bias[1, 0, :3], padding=1))
    hidden = hidden.permute(0, 2, 3, 1).flatten(0, 2)
    linear = state[1, 0].flatten(0, 1) @ head.linear.weight[1, 0] + head.linear.bias[1, 0]
    torch.testing.assert_close(outputs[1, 0], linear + hidden @ head.second.weight[1, 0, :3])


def test_each_inner_member_reads_its_own_state_by_one_convolution() -> None:
    head = ConvHead([ConvHeadSpec(width=6)], [5], 2, 3, generators(1), length=4).double()
    state = random(1, 3, 2, 4, 5)
    outputs = head(state)
    for m in range(3):
        alone = head(state[:, m : m + 1].expand(-1, 3, -1, -1, -1))
        torch.testing.assert_close(outputs[:, m], alone[:, m])


def test_rows_do_not_see_each_others_positions() -> None:
    head = ConvHead([ConvHeadSpec(width=6)], [5], 2, 1, generators(1), length=4).double()
    state = random(1, 1, 3, 4, 5)
    torch.testing.assert_close(head(state[:, :, 1:2]), head(state)[:, :, 1:2])


def test_lines_cut_to_their_positions_answer_as_whole_ones_whose_rest_is_zero() -> None:
    head = ConvHead([ConvHeadSpec(width=6)], [5], 2, 1, generators(1), length=4).double()
    state = random(1, 1, 3, 4, 5)
    state[..., 3:, :] = 0
    torch.testing.assert_close(head(state[..., :3, :]), head(state)[..., :3, :])


def test_without_positions_it_is_a_dense_head_of_the_middle_of_its_kernel() -> None:
    head = ConvHead([ConvHeadSpec(width=6)], [5], 2, 1, generators(1)).double()
    dense = DenseHead([DenseHeadSpec(width=6)], [5], 2, 1, generators(1)).double()
    dense.linear.load_state_dict(head.linear.state_dict())
    dense.second.load_state_dict(head.second.state_dict())
    with torch.no_grad():
        dense.first.weight.copy_(head.first.weight[:, 1:2])
        dense.first.bias.copy_(head.first.bias.unsqueeze(1))
    state = random(1, 1, 7, 5)
    torch.testing.assert_close(head(state), dense(state))


def test_a_head_of_no_rows_answers_nothing() -> None:
    head = ConvHead([ConvHeadSpec()], [5], 2, 1, generators(1), length=6, grid=(2, 3))
    assert head(torch.zeros(1, 1, 0, 6, 5)).shape == (1, 1, 0, 6, 2)
