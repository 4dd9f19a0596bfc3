"""What the number of rows asks for, and of positions: batch size, steps and the default trunk."""

from __future__ import annotations

import math

MANY_ROWS = 20_000
"""Training rows from which a plain MLP is the default trunk (measured, LOG.md)."""


AT_ONCE = 1_024
"""Positions that a step reads, about: more of them cost as many times as much and teach less than more steps do."""
FEWEST = 8
"""Rows of a batch at least."""


def budget(n_rows: int, *, length: int = 1) -> tuple[int, int]:
    """Return (batch size, steps) for a number of training rows: about 100 batches an epoch, at most 512 rows each.

    Where trunks read `length` positions of a row, as few rows as have 1,024 of them, at least 8.
    """
    batch = int(2 ** round(math.log2(min(512, max(32, n_rows / 100)))))
    batch = min(batch, max(FEWEST, int(2 ** round(math.log2(AT_ONCE / length)))))
    steps = 1024 if n_rows < 3_000 else 1536 if n_rows < 30_000 else 2560
    return min(batch, n_rows), steps


def default_trunks(
    n_rows: int, *, positions: bool = False, line: bool = False, located: bool = False, answered: bool = False
) -> tuple[str, ...]:
    """Return the trunks to search, the default first: TabM, or on many rows, where it costs too much, the MLP.

    Args:
        n_rows: training rows.
        positions: whether an input has positions: trunks that read them are tried too.
        line: whether these are tokens; attention is then the first of those trunks, else the convolution (LOG.md).
        located: whether a task asks where something lies, which a mean over positions does not say: they come first.
        answered: whether a task answers by position: no other trunk can.
    """
    plain = ("mlp", "tabm") if n_rows >= MANY_ROWS else ("tabm", "mlp")
    if not positions:
        return plain
    readers = ("attention", "conv") if line else ("conv", "attention")
    if answered:
        return readers
    return readers + plain if located else plain + readers
