"""Faster products only where they agree. No GPU computes here: its rounding is put into torch.bmm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_bento_search.tuning import CPU, training_losses, use_fast_matmul

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    """Put the process's precision of products back."""
    held = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(held)


def rounded(x: Tensor, bits: int) -> Tensor:
    """Return float32 numbers rounded to so many bits of mantissa, of 23."""
    dropped = 23 - bits
    held = x.contiguous().view(torch.int32)
    return ((held + (1 << (dropped - 1))) & -(1 << dropped)).view(torch.float32)


def put_into_bmm(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """Let torch.bmm round its factors, forward and backward, unless the precision is the highest."""
    whole = torch.bmm

    def product(a: Tensor, b: Tensor) -> Tensor:
        precision = torch.get_float32_matmul_precision()
        if precision == "highest":
            return whole(a, b)
        torch.set_float32_matmul_precision("highest")  # this machine's own rounding stays out of it
        result = whole(rounded(a, bits), rounded(b, bits))
        torch.set_float32_matmul_precision(precision)
        return result

    class Rounding(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, a: Tensor, b: Tensor) -> Tensor:
            context.save_for_backward(a, b)
            return product(a, b)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Any:
            a, b = context.saved_tensors
            return product(gradient, b.mT), product(a.mT, gradient)

    monkeypatch.setattr(torch, "bmm", Rounding.apply)


@pytest.mark.parametrize(
    ("device", "bits", "fast", "precision_after"),
    [
        (CUDA, 10, True, "high"),  # TF32
        (CUDA, 7, False, "highest"),  # bfloat16
        (CPU, 20, True, "medium"),  # as good as exact
        (CPU, 10, False, "highest"),
        (CPU, 7, False, "highest"),
    ],
)
def test_products_that_round_more_than_losses_or_exactness_bear_are_not_taken(
    device: torch.device, bits: int, fast: bool, precision_after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_bmm(monkeypatch, bits)
    probe = None if device == CPU else lambda: training_losses(CPU)
    assert use_fast_matmul(device, probe=probe) is fast
    assert torch.get_float32_matmul_precision() == precision_after


@pytest.mark.parametrize(("off", "fast"), [(0.0009, True), (0.0011, False), (float("nan"), False)])
def test_tf32_is_taken_where_losses_differ_by_at_most_a_thousandth(off: float, fast: bool) -> None:
    def losses() -> Tensor:
        lower = torch.get_float32_matmul_precision() != "highest"
        return torch.tensor([[0.5, 2.0], [0.25, 1.0]]) * torch.tensor([1.0, 1 + off if lower else 1.0])

    torch.set_float32_matmul_precision("medium")  # what an earlier search on the CPU left
    assert use_fast_matmul(CUDA, probe=losses) is fast
    assert torch.get_float32_matmul_precision() == ("high" if fast else "highest")


def test_the_probe_trains() -> None:
    losses = training_losses(CPU)
    assert losses.shape == (16, 16)
    assert (losses[-1] < 0.7 * losses[0]).all()
    assert torch.equal(losses, training_losses(CPU))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_on_a_gpu_the_probe_decides_and_losses_agree() -> None:
    torch.set_float32_matmul_precision("highest")
    expected = training_losses(CUDA)
    fast = use_fast_matmul(CUDA)
    assert torch.get_float32_matmul_precision() == ("high" if fast else "highest")
    torch.testing.assert_close(training_losses(CUDA), expected, rtol=1e-3, atol=0)
