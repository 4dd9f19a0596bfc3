"""What makes the same program faster on this machine: oneDNN products where exact, and memory that is kept.

Both change how fast a number is computed, never the number; a process calls `tune_process` once, before it trains.
"""

from __future__ import annotations

import torch

from mtl_bento.memory import keep_memory

EXACT = 1e-5
"""Largest relative error that float32 products of this size may show."""


def tune_process() -> None:
    """Switch on what is faster here."""
    keep_memory()
    use_fast_matmul()


def use_fast_matmul() -> bool:
    """Send stacked products through oneDNN where that is exact, and return whether it is.

    `torch.set_float32_matmul_precision("medium")` does it, 1.1 to 1.9 times faster. On a CPU with bfloat16 units it may
    really compute in bfloat16: so it is probed, and undone where the result is not exact.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(4, 192, 192, generator=generator) for _ in range(2))
    exact = torch.bmm(a.double(), b.double())
    torch.set_float32_matmul_precision("medium")
    error = ((torch.bmm(a, b) - exact).abs() / exact).max()
    if float(error) > EXACT:
        torch.set_float32_matmul_precision("highest")
        return False
    return True
