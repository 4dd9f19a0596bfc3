"""Inputs that give a target away: a column that is known only once the target is makes a search look perfect.

A suspicion, said in one line, never acted on: some inputs rightly tell a target. Each input is tried by itself on a
sample of training rows: on half of them it is learned what its value says of the target, on the other half how often
that is right. Texts are read word by word where the target has a label for each word.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from mtl_bento.table import plain

SAMPLE = 4_000
"""Training rows that are looked at."""
FEWEST = 50
"""Rows with both cells, below which nothing is said."""
TOLD = 0.99
"""Share of rows in which an input must tell the target ..."""
FAR = 0.1
"""... and the most errors, as a share of those of the target's likeliest value."""
NEAR = 0.01
"""Standard deviations that a number told from another may be off."""

Pairs = list[tuple[Hashable, Hashable]]


def suspicions(table: pa.Table, inputs: Sequence[str], targets: Sequence[str], rows: np.ndarray) -> list[str]:
    """Return a line for each input that tells a target in 99 % of rows or more; `rows` are the training rows.

    Cells of pictures and lists of numbers are not looked at.
    """
    some = pa.array(rows[:: -(-len(rows) // SAMPLE) or 1])
    read = [name for name in inputs if not _is_bytes(table.schema.field(name).type)]
    cells = {name: plain(table[name].take(some)) for name in dict.fromkeys([*read, *targets])}
    lines = []
    for target in targets:
        for name in read:
            share = told(cells[name], cells[target])
            if share >= TOLD:
                lines.append(
                    f"Input {name!r} tells target {target!r} in {_percent(share)} of rows: if it is not known when you "
                    "predict, ignore it"
                )
    return lines


def told(given: pa.Array, target: pa.Array) -> float:
    """Return in which share of rows an input tells the target; 0 where it does so no better than one constant."""
    if _is_number(given) and _is_number(target):
        share = _line(*(cells.cast(pa.float64()).to_numpy(zero_copy_only=False) for cells in (given, target)))
        if share:
            return share
    if _is_simple(given) and _is_simple(target) and (share := _looked_up(_cells(given, target))):
        return share
    return _looked_up(_words(given, target)) if _is_text(given) else 0.0


def _line(given: np.ndarray, target: np.ndarray) -> float:
    """Return the share of rows whose number lies on the straight line through the others, within a hundredth."""
    known = np.isfinite(given) & np.isfinite(target)
    x, y = given[known], target[known]
    if len(x) < FEWEST or len(np.unique(y)) <= 2 or not x.std() or not y.std():
        return 0.0
    learned, asked = slice(0, None, 2), slice(1, None, 2)
    if not x[learned].std():
        return 0.0
    slope, start = np.polyfit(x[learned], y[learned], 1)
    return float((np.abs(start + slope * x[asked] - y[asked]) <= NEAR * y.std()).mean())


def _looked_up(rows: list[Pairs]) -> float:
    """Return the share of the second half's labels that the first half's likeliest for their value is; 0 for nothing.

    A value that the first half did not have tells nothing: so an identifier gives no target away.
    """
    learned = [pair for pairs in rows[::2] for pair in pairs]
    asked = [pair for pairs in rows[1::2] for pair in pairs]
    if len(rows) < FEWEST or not learned or not asked:
        return 0.0
    counts: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for value, label in learned:
        counts[value][label] += 1
    likeliest = {value: found.most_common(1)[0][0] for value, found in counts.items()}
    wrong = sum(likeliest.get(value) != label for value, label in asked) / len(asked)
    constant = Counter(label for _, label in learned).most_common(1)[0][0]
    chance = sum(label != constant for _, label in asked) / len(asked)
    return 1 - wrong if wrong <= FAR * chance and chance > 0 else 0.0


def _cells(given: pa.Array, target: pa.Array) -> list[Pairs]:
    pairs = zip(given.to_pylist(), target.to_pylist(), strict=True)
    return [[pair] for pair in pairs if pair[0] is not None and pair[1] is not None]


def _words(given: pa.Array, target: pa.Array) -> list[Pairs]:
    """Return the words of each text beside as many labels; rows of one word, or another number of labels, are out."""
    rows: list[Pairs] = []
    for text, labels in zip(given.to_pylist(), _labels(target), strict=True):
        words = (text or "").split()
        if len(words) == len(labels) > 1:
            rows.append(list(zip(words, labels, strict=True)))
    return rows


def _labels(target: pa.Array) -> Iterator[list[str]]:
    for cell in target.to_pylist():
        whole = cell.split() if isinstance(cell, str) else cell
        yield whole if isinstance(whole, list) and all(isinstance(label, str) for label in whole) else []


def _is_number(cells: pa.Array) -> bool:
    return bool(pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type))


def _is_text(cells: pa.Array) -> bool:
    return bool(pa.types.is_large_string(cells.type))


def _is_simple(cells: pa.Array) -> bool:
    return _is_number(cells) or _is_text(cells) or bool(pa.types.is_boolean(cells.type))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _percent(share: float) -> str:
    """Return "100 %", or "99.4 %": never 100 where it is not."""
    return "100 %" if share == 1 else f"{np.floor(share * 1000) / 10:.1f} %"
