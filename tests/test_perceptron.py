"""The hidden layers of a stack as one function."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from mtl_bento import perceptron as module
from mtl_bento.layers import Dropout, Dropped
from mtl_bento.perceptron import perceptron


def given(counts: tuple[int, ...], rows: int, n_features: int, width: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return x [G, R, F], and weights and biases of layers that hold so many groups, in float64."""
    generator = Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    fan_in = [n_features, *[width] * (len(counts) - 1)]
    weights = [draw(n, size, width) for n, size in zip(counts, fan_in, strict=True)]
    return draw(counts[0], rows, n_features), weights, [draw(n, 1, width) for n in counts]


def one_by_one(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Return what the layers make of x, group by group."""
    out = []
    for group in range(x.shape[0]):
        values = x[group]
        for weight, bias in zip(weights, biases, strict=True):
            if group < len(weight):
                values = (values @ weight[group] + bias[group]).relu()
        out.append(values)
    return torch.stack(out)


@pytest.mark.parametrize("piece", [1, 12, 40, 10**6], ids=lambda piece: f"pieces of {piece}")
@pytest.mark.parametrize("counts", [(3,), (4, 4), (5, 3, 1)])
def test_it_is_linear_maps_and_relu_whatever_the_pieces(
    counts: tuple[int, ...], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    x, weights, biases = given(counts, rows=7, n_features=3, width=4)
    out, expected = perceptron(x, weights, biases, [None] * len(counts)), one_by_one(x, weights, biases)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    outer = torch.randn(out.shape, generator=Generator().manual_seed(1), dtype=torch.float64)
    parameters = [x, *weights, *biases]
    gradients = torch.autograd.grad(out, parameters, outer)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, parameters, outer), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


def test_what_is_dropped_passes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 20)
    x, weights, biases = given((3, 2), rows=5, n_features=3, width=4)

    def with_the_same_bits(*inputs: Tensor) -> Tensor:
        dropped: list[Dropped | None] = []
        for rates in ([0.5, 0.25, 0.0], [0.5, 0.5]):
            dropout = Dropout(rates)
            dropout.generator = Generator().manual_seed(len(rates))
            dropped.append(dropout.at(len(rates), 5, 4, torch.float64))
        return perceptron(inputs[0], inputs[1:3], inputs[3:], dropped)

    out = with_the_same_bits(x, *weights, *biases)
    assert (out[:2] == 0).double().mean() > 0.6  # half by ReLU, half of the others by dropout
    # PyTorch's own numerical gradients.
    assert torch.autograd.gradcheck(with_the_same_bits, (x, *weights, *biases))


def test_no_rows_give_no_rows_and_no_gradient() -> None:
    x, weights, biases = given((2, 2), rows=0, n_features=3, width=4)
    out = perceptron(x, weights, biases, [None, None])
    assert out.shape == (2, 0, 4)
    assert not any(gradient.any() for gradient in torch.autograd.grad(out.sum(), weights))
