"""What makes the same program faster here: faster float32 products where they agree, and memory that is kept.

A process calls `tune_process` once, before it trains. Faster products are probed on the device that trains, and undone
where they show: on a CPU oneDNN's must be exact, on a GPU TF32's must leave the losses of a small training as they are.

Letters: S steps, K members, B rows, F inputs, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtl_bento.memory import keep_memory

EXACT = 1e-5
"""Largest relative error that float32 products of this size may show."""
CLOSE = 1e-3
"""Largest relative difference that TF32, with its 10 bits of mantissa, may make to a loss."""

CPU = torch.device("cpu")
Probe = Callable[[], Tensor]
"""Computes the numbers by which a precision is judged, none of them 0."""


def tune_process(device: torch.device = CPU) -> None:
    """Switch on what is faster on the device that trains."""
    keep_memory()
    use_fast_matmul(device)


def use_fast_matmul(device: torch.device, *, probe: Probe | None = None) -> bool:
    """Take faster float32 products where the probe's numbers agree, and return whether they do.

    On a CPU "medium" sends stacked products through oneDNN, 1.1 to 1.9 times faster. With bfloat16 units it may really
    compute in bfloat16: hence the probe. Elsewhere "high" is TF32.
    """
    if device.type == "cpu":
        return _agrees("medium", probe or products, tolerance=EXACT)
    return _agrees("high", probe or (lambda: training_losses(device)), tolerance=CLOSE)


def _agrees(precision: str, probe: Probe, *, tolerance: float) -> bool:
    """Set the precision of float32 products, the highest where the probe shows it, and return whether it is lower."""
    torch.set_float32_matmul_precision("highest")
    expected = probe()
    torch.set_float32_matmul_precision(precision)
    error = float(((probe() - expected) / expected).abs().max())
    if error <= tolerance:  # not so where it is NaN
        return True
    torch.set_float32_matmul_precision("highest")
    return False


def products() -> Tensor:
    """Return stacked products of positive numbers [K, D, D]."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(4, 192, 192, generator=generator) for _ in range(2))
    return torch.bmm(a, b)


def training_losses(device: torch.device) -> Tensor:
    """Return the losses [S, K] of a short training of small stacked networks, too gentle to blow rounding up."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 256, 64, generator=generator).to(device)  # [K, B, F]
    y = x[..., :1].tanh()
    sizes = ((64, 64), (64, 64), (64, 1))
    weights = [(torch.randn(16, n, m, generator=generator) / n**0.5).to(device).requires_grad_() for n, m in sizes]
    losses = []
    for _ in range(16):
        hidden = torch.bmm(torch.bmm(x, weights[0]).relu(), weights[1]).relu()  # [K, B, D]
        losses.append((torch.bmm(hidden, weights[2]) - y).square().mean((1, 2)))
        for weight, gradient in zip(weights, torch.autograd.grad(losses[-1].sum(), weights), strict=True):
            weight.data.sub_(gradient, alpha=0.03)
    return torch.stack(losses).detach()
