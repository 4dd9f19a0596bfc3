"""The convolutional trunk."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from mtl_bento.layers import Dropout
from mtl_bento.trunks._base import TrunkSizes
from mtl_bento.trunks.conv import Conv, ConvSpec


def generators(n: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in range(n)]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(7))


def test_a_member_equals_the_torch_network_of_its_weights() -> None:
    specs = [ConvSpec(width=6, shared_depth=3, dropout=0), ConvSpec(width=4, shared_depth=1, dropout=0)]
    trunk = Conv(specs, TrunkSizes(5, 2, 6, (2, 3)), generators(2))
    features, mask = random(1, 7, 6, 5), torch.ones(1, 7, 6, dtype=torch.bool)
    states = trunk(features, mask)
    assert states[0] is states[1]
    x = torch.relu(features[0] @ trunk.first.weight[1, 0, :, :4] + trunk.first.bias[1, 0, :4])
    layer = trunk.convolutions[0]
    kernel = layer.weight[1, :, :4, :4].permute(2, 1, 0).unflatten(2, (3, 3))
    images = x.transpose(1, 2).unflatten(2, (2, 3))
    images = images + torch.relu(nn.functional.conv2d(images, kernel, layer.bias[1, 0, :4], padding=1))
    torch.testing.assert_close(states[0][1, 0, ..., :4], images.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("length", "grid"), [(8, None), (8, (2, 4))])
def test_positions_that_are_not_real_count_as_outside(length: int, grid: tuple[int, int] | None) -> None:
    trunk = Conv([ConvSpec(width=6, shared_depth=3, dropout=0)], TrunkSizes(5, 1, length, grid), generators(1))
    features, mask = random(1, 1, length, 5), torch.ones(1, 1, length, dtype=torch.bool)
    if grid is None:
        small, real = TrunkSizes(5, 1, 6), slice(0, 6)
    else:
        small, real = TrunkSizes(5, 1, 4, (1, 4)), slice(0, 4)
    mask[..., real.stop :] = False
    (state,) = trunk(features, mask)
    assert not state[..., real.stop :, :].any()
    shorter = Conv([ConvSpec(width=6, shared_depth=3, dropout=0)], small, generators(1))
    shorter.load_state_dict(trunk.state_dict())
    (own,) = shorter(features[:, :, real], mask[:, :, real])
    torch.testing.assert_close(state[..., real, :], own)


def test_a_single_position_is_read_by_the_middle_of_the_kernel() -> None:
    trunk = Conv([ConvSpec(width=6, shared_depth=1, dropout=0)], TrunkSizes(5, 1, 1, (1, 1)), generators(1))
    features = random(1, 3, 1, 5)
    (state,) = trunk(features, torch.ones(1, 3, 1, dtype=torch.bool))
    x = torch.relu(features[0] @ trunk.first.weight[0, 0] + trunk.first.bias[0])
    layer = trunk.convolutions[0]
    torch.testing.assert_close(state[0, 0], x + torch.relu(x @ layer.weight[0, 4] + layer.bias[0]))


def test_a_position_sees_as_far_as_the_trunk_is_deep() -> None:
    trunk = Conv([ConvSpec(width=16, shared_depth=2, dropout=0)], TrunkSizes(5, 1, 9), generators(1))
    features, mask = random(1, 1, 9, 5), torch.ones(1, 1, 9, dtype=torch.bool)
    changed = features.clone()
    changed[0, 0, 4] += 1
    moved = (trunk(changed, mask)[0] - trunk(features, mask)[0]).abs().sum(-1)[0, 0, 0] > 0
    assert moved.tolist() == [False, False, True, True, True, True, True, False, False]


def test_dropout_drops_a_unit_at_all_positions_of_a_row_or_at_none() -> None:
    dropout = Dropout([0.5, 0.0])
    dropout.generator = Generator().manual_seed(0)
    out = dropout.by_row(torch.ones(2, 30, 4, 8))
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    assert set(out[0].flatten().tolist()) == {0, 2}
    assert set(out[1].flatten().tolist()) == {1}
    assert not torch.equal(out[0, 0], out[0, 1])
