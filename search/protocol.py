"""Splits: which rows train, which validate or in which fold, and which are locked away until the test.

Letters: N rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtl_bento.errors import SchemaError, SpecError, listing, nearest
from mtl_bento_search.config import SplitSpec

FOLDS_BELOW = 5_000
"""With fewer rows to develop on, a holdout chooses badly: five folds instead."""
HOLDOUT_ROWS = 1_000
"""A holdout has at least so many rows, or a third of few."""
Split = tuple[np.ndarray, np.ndarray]
"""Rows that train, rows that validate."""
ROLES = {"train": "train", "training": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}


@dataclass(frozen=True)
class Protocol:
    """Row indices of a run: pairs (train, valid), one or several folds, and the locked test rows."""

    splits: tuple[Split, ...]
    test: np.ndarray
    notes: tuple[str, ...] = ()
    kind: str = field(default="random")
    dealt: bool = False
    """Whether the rows that are not test were dealt at random."""

    def __post_init__(self) -> None:
        # Arrow's sort gives unsigned places, which torch does not index by.
        places = tuple((train.astype(np.int64), valid.astype(np.int64)) for train, valid in self.splits)
        object.__setattr__(self, "splits", places)
        object.__setattr__(self, "test", self.test.astype(np.int64))

    @property
    def learned(self) -> np.ndarray:
        """Rows that some member trains on, ascending."""
        return np.unique(np.concatenate([train for train, _ in self.splits]))

    def digest(self) -> str:
        """Return a hash of every row's place: 64 hexadecimal digits."""
        sha = hashlib.sha256()
        for rows in [*(part for pair in self.splits for part in pair), self.test]:
            sha.update(np.ascontiguousarray(rows, dtype=np.int64).tobytes() + b"|")
        return sha.hexdigest()


def make_protocol(
    spec: SplitSpec, table: pa.Table, labels: Sequence[np.ndarray], *, seed: int, roles: np.ndarray | None = None
) -> Protocol:
    """Return the split of a table.

    Args:
        spec: what the user asked for.
        table: all rows.
        labels: for each task, a coarse class of each row [N] (-1 where missing), to stratify by.
        seed: of every draw.
        roles: "train", "valid" or "test" of each row where separate tables or a split column say so.

    Raises SpecError or SchemaError where the column is missing or leaves a part empty.
    """
    notes: list[str] = []
    if roles is not None:
        return _given(spec, table, roles, labels, seed, notes, joins=False)
    if spec.kind == "column":
        return _given(spec, table, _roles(table, _column(spec, table)), labels, seed, notes, joins=True)
    split: Protocol = _SPLITTERS[spec.kind](spec, table, labels, seed, notes)
    return split


def _given(
    spec: SplitSpec,
    table: pa.Table,
    roles: np.ndarray,
    labels: Sequence[np.ndarray],
    seed: int,
    notes: list[str],
    *,
    joins: bool,
) -> Protocol:
    """Keep the parts that the user gave, and carve out those that are missing.

    Few validation rows choose badly: where a column marks under 1,000 of them and all rows to develop on are under
    5,000, they join the folds, and a note says so (`joins`). A validation table of its own is always kept apart.
    """
    train, valid, test = (np.flatnonzero(roles == role) for role in ("train", "valid", "test"))
    if not len(train):
        raise SchemaError("The split leaves no training rows; mark some rows 'train'.")
    holdout = len(valid) > 0 and not (joins and _folds(spec, len(train) + len(valid), len(valid)))
    develop = train if holdout else np.sort(np.concatenate([train, valid]))
    if not len(test):
        test, develop = _carve_test(spec, develop, labels, seed)
    if holdout:
        notes.append(
            f"as given: {len(develop):,} rows train, {len(valid):,} validate, {len(test):,} locked for the test"
        )
        return Protocol(((develop, valid),), test, tuple(notes), "column")
    if len(valid):
        notes.append(
            f"the {len(valid):,} validation rows are too few to choose by, so they join the folds "
            "(`split: {folds: 0}` keeps them apart)"
        )
    return _develop(spec, table, develop, test, labels, seed, notes, kind="column")


def _develop(
    spec: SplitSpec,
    table: pa.Table,
    develop: np.ndarray,
    test: np.ndarray,
    labels: Sequence[np.ndarray],
    seed: int,
    notes: list[str],
    *,
    kind: str,
) -> Protocol:
    """Split the rows that are not locked into folds or a holdout."""
    n_folds = _folds(spec, len(develop))
    rng = np.random.default_rng([seed, 1])
    if n_folds:
        if len(develop) < n_folds * 2:
            raise SchemaError(
                f"{len(develop)} rows to develop on are too few for {n_folds} folds of two rows at least; "
                "bring more rows, or ask for fewer: `split: {folds: 2}`."
            )
        fold = deal(develop, labels, n_folds, rng)
        notes.append(f"{n_folds} folds over {len(develop):,} rows, {len(test):,} rows locked for the test")
        return Protocol(
            tuple((develop[fold != f], develop[fold == f]) for f in range(n_folds)),
            test,
            tuple(notes),
            kind,
            dealt=True,
        )
    # At least 1,000 rows, but never more than a third where there are few.
    share = max(spec.valid, min(HOLDOUT_ROWS / len(develop), 1 / 3))
    parts = max(2, round(1 / share))
    fold = deal(develop, labels, parts, rng)
    notes.append(f"{(fold != 0).sum():,} rows train, {(fold == 0).sum():,} validate, {len(test):,} locked for the test")
    return Protocol(((develop[fold != 0], develop[fold == 0]),), test, tuple(notes), kind, dealt=True)


def _folds(spec: SplitSpec, n_develop: int, n_valid: int = 0) -> int:
    """Return how many folds: as asked, else five on few rows unless the given validation rows suffice."""
    if spec.folds is not None:
        return spec.folds if spec.folds != 1 else 0
    return 5 if n_develop < FOLDS_BELOW and n_valid < HOLDOUT_ROWS else 0


def deal(rows: np.ndarray, labels: Sequence[np.ndarray], parts: int, rng: np.random.Generator) -> np.ndarray:
    """Return a part 0..parts-1 for each row, stratified over all tasks at once.

    Rows are sorted by their coarse labels, the tasks with the rarest label first and ties at random, and dealt out like
    cards: each run of `parts` neighbours goes to different parts. The first tasks are stratified exactly, the later
    ones within them.
    """
    keys = sorted((label[rows] for label in labels), key=_rarest)
    order = np.lexsort([rng.random(len(rows)), *reversed(keys)])
    cards = rng.permuted(np.tile(np.arange(parts), (-(-len(rows) // parts), 1)), axis=1).ravel()[: len(rows)]
    dealt = np.empty(len(rows), dtype=np.int64)
    dealt[order] = cards
    return dealt


def _rarest(label: np.ndarray) -> float:
    known = label[label >= 0]
    return float(np.bincount(known).min() if len(known) else len(label))


def _carve_test(
    spec: SplitSpec, rows: np.ndarray, labels: Sequence[np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (test, the other rows)."""
    part = deal(rows, labels, max(2, round(1 / spec.test)), np.random.default_rng([seed, 0]))
    return rows[part == 0], rows[part != 0]


def _random(spec: SplitSpec, table: pa.Table, labels: Sequence[np.ndarray], seed: int, notes: list[str]) -> Protocol:
    test, develop = _carve_test(spec, np.arange(table.num_rows), labels, seed)
    return _develop(spec, table, develop, test, labels, seed, notes, kind="random")


def _time(spec: SplitSpec, table: pa.Table, labels: Sequence[np.ndarray], seed: int, notes: list[str]) -> Protocol:
    """Oldest rows train, the next validate, the newest are the test; no folds, which would look into the future."""
    del labels, seed
    values = table[_column(spec, table)]
    if values.null_count:
        raise SchemaError(
            f"Column {spec.column!r} splits by time but {values.null_count} of its cells are missing; fill them."
        )
    if not (pa.types.is_temporal(values.type) or pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise SchemaError(
            f"Column {spec.column!r} holds {values.type}, which has no order in time; give dates or numbers."
        )
    order = pc.array_sort_indices(values.combine_chunks()).to_numpy()
    n_test = round(spec.test * len(order))
    n_valid = round(spec.valid * (len(order) - n_test))
    train, valid, test = np.split(order, [len(order) - n_test - n_valid, len(order) - n_test])
    notes.append(
        f"by time: {len(train):,} oldest rows train, {len(valid):,} validate, {len(test):,} newest locked for the test"
    )
    return Protocol(((np.sort(train), np.sort(valid)),), np.sort(test), tuple(notes), "time")


def _group(spec: SplitSpec, table: pa.Table, labels: Sequence[np.ndarray], seed: int, notes: list[str]) -> Protocol:
    """Whole groups train, validate or test."""
    del labels
    group = pc.dictionary_encode(
        table[_column(spec, table)].combine_chunks(), null_encoding="encode"
    ).indices.to_numpy()
    n_groups = int(group.max()) + 1
    n_folds = _folds(spec, table.num_rows)
    parts = n_folds or max(2, round(1 / spec.valid))
    if n_groups < parts + 1:
        raise SchemaError(f"Column {spec.column!r} has {n_groups} groups; a split by group needs at least {parts + 1}.")
    rng = np.random.default_rng([seed, 2])
    sizes = np.bincount(group, minlength=n_groups)
    order = rng.permutation(n_groups)
    # The test takes groups until it has its share, the parts share the others, each time the smallest part next.
    n_test = min(int(np.searchsorted(np.cumsum(sizes[order]), spec.test * len(group))) + 1, n_groups - parts)
    part_of, filled = np.full(n_groups, -1), np.zeros(parts)
    for g in order[n_test:]:
        part_of[g] = int(filled.argmin())
        filled[part_of[g]] += sizes[g]
    part = part_of[group]
    test = np.flatnonzero(part == -1)
    pairs = [(np.flatnonzero((part != f) & (part >= 0)), np.flatnonzero(part == f)) for f in range(n_folds or 1)]
    notes.append(f"by group: {n_groups:,} groups, {n_folds or 1} fold(s), {len(test):,} rows locked for the test")
    return Protocol(tuple(pairs), test, tuple(notes), "group")


def _fold(spec: SplitSpec, table: pa.Table, labels: Sequence[np.ndarray], seed: int, notes: list[str]) -> Protocol:
    """The column's values are the folds; the last of them, in their order, is locked for the test."""
    del labels, seed
    values = table[_column(spec, table)]
    names = pc.unique(values).drop_null().sort().to_pylist()
    if len(names) < 3:
        raise SchemaError(
            f"Column {spec.column!r} has {len(names)} folds; it needs at least three, the last is the test."
        )
    held = {
        name: np.flatnonzero(pc.equal(values, name).fill_null(False).to_numpy(zero_copy_only=False)) for name in names
    }
    *folds, last = names
    pairs = [(np.sort(np.concatenate([held[o] for o in folds if o != f])), held[f]) for f in folds]
    notes.append(
        f"{len(folds)} folds of column {spec.column!r}; fold {last!r} ({len(held[last]):,} rows) is locked for the test"
    )
    return Protocol(tuple(pairs), held[last], tuple(notes), "fold")


_SPLITTERS: dict[str, Any] = {"random": _random, "time": _time, "group": _group, "fold": _fold}


def _column(spec: SplitSpec, table: pa.Table) -> str:
    if spec.column is None:
        raise SpecError(f"split: kind {spec.kind} needs `column`, the name of the column that holds it.")
    if spec.column not in table.column_names:
        raise SpecError(
            f"split: there is no column {spec.column!r}{nearest(spec.column, table.column_names) or '.'} "
            f"Columns: {listing(table.column_names)}."
        )
    return spec.column


def _roles(table: pa.Table, column: str) -> np.ndarray:
    """Return "train", "valid" or "test" of each row."""
    values = table[column].cast(pa.string()).to_pylist()
    roles = [ROLES.get(str(value).lower()) for value in values]
    if None in roles:
        row = roles.index(None)
        raise SchemaError(
            f"Column {column!r}, row {row}: {values[row]!r} is not a part of a split; allowed: train, val, test."
        )
    return np.array(roles)


def looks_like_split(table: pa.Table, column: str = "split") -> bool:
    """Return whether a table has a column of that name that holds nothing but train, val(id) and test."""
    if column not in table.column_names:
        return False
    values = table[column]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return False
    return {str(v).lower() for v in pc.unique(values).to_pylist()} <= set(ROLES) and len(pc.unique(values)) > 1
