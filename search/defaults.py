"""What the number of rows asks for, and of positions: batch size, steps and the default trunk."""

from __future__ import annotations

import math

MANY_ROWS = 20_000
"""Training rows from which a plain MLP is the default trunk (measured, LOG.md)."""


AT_ONCE = 2_048
"""Positions that a step reads, about: more of them cost as many times as much and teach less than more steps do."""
FEWEST = 8
"""Rows of a batch at least."""


def budget(n_rows: int, *, length: int = 1) -> tuple[int, int]:
    """Return (batch size, steps) for a number of training rows: about 100 batches an epoch, at most 512 rows each.

    Where trunks read `length` positions of a row, as few rows as have 2,048 of them, at least 8.
    """
    batch = int(2 ** round(math.log2(min(512, max(32, n_rows / 100)))))
    batch = min(batch, max(FEWEST, int(2 ** round(math.log2(AT_ONCE / length)))))
    steps = 1024 if n_rows < 3_000 else 1536 if n_rows < 30_000 else 2560
    return min(batch, n_rows), steps


POSITIONAL = ("conv", "attention")
"""Trunks that read positions."""


def default_trunks(n_rows: int, *, positions: bool = False, answered: bool = False) -> tuple[str, ...]:
    """Return the trunks to search, the default first: TabM, or on many rows, where it costs too much, the MLP.

    Where inputs have positions, trunks that read them are tried too; where a task answers by them, no other can.
    """
    if answered:
        return POSITIONAL
    plain = ("mlp", "tabm") if n_rows >= MANY_ROWS else ("tabm", "mlp")
    return plain + POSITIONAL if positions else plain
