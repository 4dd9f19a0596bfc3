"""Inputs that give a target away: a column that is known only once the target is makes a search look perfect.

A suspicion, said in one line, never acted on: some inputs rightly tell a target. Each input is tried by itself on a
sample of training rows: on half of them it is learned what its value says of the target, on the other half how often
that is right. Texts are read word by word where the target has a label for each word.

Letters: B rows of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtl_bento.table import plain

SAMPLE = 4_000
"""Training rows that are looked at."""
FEWEST = 50
"""Rows with both cells, below which nothing is said."""
MOST_LABELS = 256
"""Labels of a target beyond which it is not looked up: it is a number, then, or an identifier."""
TOLD = 0.99
"""Share of rows in which an input must tell the target ..."""
FAR = 0.1
"""... and the most errors, as a share of those of the target's likeliest label."""
NEAR = 0.01
"""Standard deviations that a number told from another may be off."""


def suspicions(table: pa.Table, inputs: Sequence[str], targets: Sequence[str], rows: np.ndarray) -> list[str]:
    """Return a line for each input that tells a target in 99 % of rows or more; `rows` are the training rows.

    Cells of pictures and lists of numbers are not looked at.
    """
    some = pa.array(rows[:: -(-len(rows) // SAMPLE) or 1])
    read = [name for name in inputs if not _is_bytes(table.schema.field(name).type)]
    cells = {name: Cells(plain(table[name].take(some))) for name in dict.fromkeys([*read, *targets])}
    shares = ((name, target, told(cells[name], cells[target])) for target in targets for name in read)
    return [
        f"Input {name!r} tells target {target!r} in {_percent(share)} of rows: if it is not known when you predict, "
        "ignore it"
        for name, target, share in shares
        if share >= TOLD
    ]


class Cells:
    """The sampled cells of one column, as the ways of telling read them; each is None where it cannot."""

    def __init__(self, cells: pa.Array) -> None:
        self.cells = cells

    @cached_property
    def numbers(self) -> np.ndarray | None:
        """Numbers [B], NaN where missing."""
        if not (pa.types.is_integer(self.cells.type) or pa.types.is_floating(self.cells.type)):
            return None
        return np.asarray(self.cells.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))

    @cached_property
    def codes(self) -> np.ndarray | None:
        """The place of each cell among the distinct ones [B], -1 where missing."""
        if pa.types.is_nested(self.cells.type):
            return None
        return _codes(self.cells)

    @cached_property
    def words(self) -> list[list[str]] | None:
        """The words of each cell, or the texts that it lists; None where no cell has several."""
        kind = self.cells.type
        if pa.types.is_large_string(kind):
            words = [(cell or "").split() for cell in self.cells.to_pylist()]
        elif pa.types.is_nested(kind) and str(getattr(kind, "value_type", "")) in ("string", "large_string"):
            words = [[str(label) for label in cell or ()] for cell in self.cells.to_pylist()]
        else:
            return None
        return words if any(len(held) > 1 for held in words) else None


def told(given: Cells, target: Cells) -> float:
    """Return in which share of rows an input tells the target; 0 where it does so hardly better than a constant."""
    ways = []
    if given.numbers is not None and target.numbers is not None:
        ways.append(_on_a_line(given.numbers, target.numbers))
    if given.codes is not None and target.codes is not None and target.codes.max(initial=-1) < MOST_LABELS:
        known = (given.codes >= 0) & (target.codes >= 0)
        ways.append(_looked_up(given.codes[known], target.codes[known], n_rows=int(known.sum())))
    if given.words is not None and target.words is not None:
        pairs = zip(given.words, target.words, strict=True)
        both = [(words, labels) for words, labels in pairs if len(words) == len(labels) > 1]
        values, labels = (_codes(pa.array([w for side in both for w in side[i]], pa.string())) for i in (0, 1))
        if labels.max(initial=-1) < MOST_LABELS:
            ways.append(_looked_up(values, labels, n_rows=len(both)))
    return max(ways, default=0.0)


def _on_a_line(given: np.ndarray, target: np.ndarray) -> float:
    """Return the share of rows whose number lies on the straight line through the others, within a hundredth."""
    known = np.isfinite(given) & np.isfinite(target)
    x, y = given[known], target[known]
    if len(x) < FEWEST or not y.std() or not (spread := x[::2].var()):
        return 0.0
    slope = ((x[::2] - x[::2].mean()) * (y[::2] - y[::2].mean())).mean() / spread
    found = y[::2].mean() + slope * (x[1::2] - x[::2].mean())
    return float((np.abs(found - y[1::2]) <= NEAR * y.std()).mean())


def _looked_up(given: np.ndarray, target: np.ndarray, *, n_rows: int) -> float:
    """Return the share of the second half's labels that the first half's likeliest for their value is; 0 for nothing.

    A value that the first half did not have tells nothing: so an identifier gives no target away.
    """
    if n_rows < FEWEST:
        return 0.0
    counts = np.zeros((int(given.max()) + 1, int(target.max()) + 1), dtype=np.int32)
    np.add.at(counts, (given[::2], target[::2]), 1)
    likeliest = np.where(counts.any(1), counts.argmax(1), -1)
    asked = target[1::2]
    wrong = float((likeliest[given[1::2]] != asked).mean())
    chance = float((counts.sum(0).argmax() != asked).mean())
    return 1 - wrong if wrong <= FAR * chance and chance > 0 else 0.0


def _codes(cells: pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(cells.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False), np.int64)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _percent(share: float) -> str:
    """Return "100 %", or "99.4 %": never 100 where it is not."""
    return "100 %" if share == 1 else f"{np.floor(share * 1000) / 10:.1f} %"
