"""Stacked convolutions against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from mtl_bento.convolution import Lattice, StackedConvolution
from mtl_bento.layers import ACTIVATIONS, identity


def generators(n: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in range(n)]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(7))


def test_a_place_of_a_line_has_two_neighbours_and_one_of_a_grid_eight() -> None:
    assert Lattice(5).offsets == [-1, 0, 1]
    # A line of places is one longer than the two columns.
    assert Lattice(6, (3, 2)).offsets == [-4, -3, -2, -1, 0, 1, 2, 3, 4]


def test_positions_are_spread_with_a_blank_behind_each_line_and_gathered_again() -> None:
    x = torch.arange(1.0, 9).view(1, 2, 4, 1)  # two rows of four positions
    line, grid = Lattice(4), Lattice(4, (2, 2))
    assert line.spread(x).flatten().tolist() == [1, 2, 3, 4, 0, 5, 6, 7, 8, 0]
    assert grid.spread(x).flatten().tolist() == [1, 2, 0, 3, 4, 0, 0, 0, 0, 5, 6, 0, 7, 8, 0, 0, 0, 0]
    for lattice in (line, grid):
        assert torch.equal(lattice.gathered(lattice.spread(x)), x)


def test_a_grid_of_another_size_than_the_positions_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="a grid of 2 x 3 has not 5 positions"):
        Lattice(5, (2, 3))


def test_a_hand_computed_line() -> None:
    lattice = Lattice(3)
    convolution = StackedConvolution([1], [1], offsets=lattice.offsets, generators=generators(1))
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([100.0, 10.0, 1.0]).view(1, 3, 1, 1))
        convolution.bias.fill_(0.5)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).view(1, 2, 3, 1)
    out = lattice.gathered(convolution(lattice.spread(x), identity))
    # The first of a row has nothing before it, the last nothing behind it, whatever lies in the next row.
    assert out.flatten().tolist() == [12.5, 123.5, 230.5, 45.5, 456.5, 560.5]


@pytest.mark.parametrize(
    ("length", "grid"), [(7, None), (1, None), (12, (3, 4)), (6, (6, 1)), (6, (1, 6)), (1, (1, 1))]
)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_member_equals_torchs_convolution_of_its_weights_and_so_do_its_gradients(
    length: int, grid: tuple[int, int] | None, name: str
) -> None:
    lattice, rows, activation = Lattice(length, grid), 4, ACTIVATIONS[name]
    stacked = StackedConvolution([3, 2], [5, 4], offsets=lattice.offsets, generators=generators(2)).double()
    x = random(2, rows, length, 3)
    x[1, ..., 2:] = 0
    x.requires_grad_()
    out = lattice.gathered(stacked(lattice.spread(x), activation))
    factors = random(*out.shape)
    loss = (out * factors).sum()
    gradients = torch.autograd.grad(loss, [x, stacked.weight, stacked.bias])
    for k, (fan_in, fan_out) in enumerate(((3, 5), (2, 4))):
        kernel = stacked.weight[k, :, :fan_in, :fan_out].detach().permute(2, 1, 0)  # [out, in, taps]
        kernel = (kernel if grid is None else kernel.unflatten(2, (3, 3))).contiguous().requires_grad_()
        bias = stacked.bias[k, 0, :fan_out].detach().clone().requires_grad_()
        values = x[k, ..., :fan_in].detach().clone().requires_grad_()
        images = values.transpose(1, 2)
        if grid is None:
            own = nn.functional.conv1d(images, kernel, bias, padding=1)
        else:
            own = nn.functional.conv2d(images.unflatten(2, grid), kernel, bias, padding=1).flatten(2)
        own = activation(own)
        torch.testing.assert_close(out[k, ..., :fan_out], own.transpose(1, 2))
        assert not out[k, ..., fan_out:].any()
        own_loss = (own.transpose(1, 2) * factors[k, ..., :fan_out]).sum()
        in_values, in_kernel, in_bias = torch.autograd.grad(own_loss, [values, kernel, bias])
        torch.testing.assert_close(gradients[0][k, ..., :fan_in], in_values)
        torch.testing.assert_close(
            gradients[1][k, :, :fan_in, :fan_out], in_kernel.reshape(fan_out, fan_in, -1).permute(2, 1, 0)
        )
        torch.testing.assert_close(gradients[2][k, 0, :fan_out], in_bias)


def test_a_single_place_leaves_the_bias_as_it_is() -> None:
    # The bias laid out for one place is the bias itself, to which products were added in place.
    convolution = StackedConvolution([3], [5], offsets=[0], generators=generators(1))
    before = convolution.bias.detach().clone()
    convolution(torch.ones(1, 1, 3), identity)
    assert torch.equal(convolution.bias, before)


def test_a_convolution_of_no_rows_is_empty() -> None:
    lattice = Lattice(6, (2, 3))
    convolution = StackedConvolution([3], [5], offsets=lattice.offsets, generators=generators(1))
    out = lattice.gathered(convolution(lattice.spread(torch.zeros(1, 0, 6, 3)), identity))
    assert out.shape == (1, 0, 6, 5)
    gradients = torch.autograd.grad(out.sum(), list(convolution.parameters()))
    assert not any(gradient.any() for gradient in gradients)


def test_initial_weights_are_within_the_bound_of_torchs_convolution_and_the_same_in_any_stack() -> None:
    lattice = Lattice(4, (2, 2))
    stacked = StackedConvolution([30, 4], [30, 5], offsets=lattice.offsets, generators=generators(2))
    alone = StackedConvolution([4], [5], offsets=lattice.offsets, generators=generators(2)[1:])
    assert torch.equal(stacked.weight[1, :, :4, :5], alone.weight[0])
    assert alone.weight.abs().max() <= 1 / 6  # 1 / sqrt(9 * 4)
    assert alone.weight.abs().max() > 0.9 / 6
