"""The schema: which columns a model reads, what each was taken for, and a table as arrays for the encoders.

Letters: B rows, F features of a column.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
from pydantic import BeforeValidator, SerializeAsAny, model_validator

from mtl_bento.columns._base import COLUMNS, Column
from mtl_bento.errors import SchemaError, SpecError, listing
from mtl_bento.spec import Spec
from mtl_bento.table import folder_of

TOGETHER = 32
"""Columns that are written into a block together."""
TILE_BYTES = 2**17
"""Bytes of a block that are written before the next: the processor's cache holds them."""

AnyColumn = Annotated[SerializeAsAny[Column], BeforeValidator(COLUMNS.parse)]
"""A column of any registered kind, also after a round trip through JSON."""


class Schema(Spec):
    """The inputs of a model, learned once on training rows; the same in training, batch prediction and serving."""

    columns: tuple[AnyColumn, ...]
    targets: tuple[str, ...] = ()
    """Columns to predict: accepted and dropped where they come along."""
    ignored: tuple[str, ...] = ()
    """Columns of the training table that are no inputs: accepted and dropped where they come along."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        both = [name for name in self.names if name in set(self.targets) | set(self.ignored)]
        if twice:
            raise SpecError(f"The schema names {listing(map(repr, twice))} more than once; name each input once.")
        if both:
            raise SpecError(f"{listing(map(repr, both))} cannot be an input and a target or ignored; choose one.")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the input columns."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def blocks(self) -> dict[str, tuple[Column, ...]]:
        """The columns by the block that they are encoded into, in order."""
        blocks: dict[str, list[Column]] = {}
        for column in self.columns:
            blocks.setdefault(column.block, []).append(column)
        return {block: tuple(columns) for block, columns in blocks.items()}

    @property
    def max_rows(self) -> int:
        """Rows that one request may hold: what the column allows that allows the fewest."""
        return min((column.max_rows for column in self.columns), default=Column.max_rows)

    def encode(self, table: pa.Table) -> dict[str, np.ndarray]:
        """Return each block as an array [B, sum of F] in the block's dtype, C-contiguous.

        A missing column counts as missing cells, as in a request; columns that are no inputs are passed over.

        Raises:
            SchemaError: where the table has no input at all, or a cell is not of its column's kind.
        """
        present = set(table.column_names)
        if not present & set(self.names):
            raise SchemaError(f"The table has none of the model's inputs ({listing(map(repr, self.names))}); add them.")
        return {block: _side_by_side(columns, table, present) for block, columns in self.blocks.items()}

    def own_blocks(self, table: pa.Table) -> pa.Table:
        """Return the columns of a table that are inputs with a block of their own (pictures, texts), as they are."""
        own = {column.name for columns in self.blocks.values() for column in columns if ":" in column.block}
        return table.select([name for name in table.column_names if name in own])


def _side_by_side(columns: tuple[Column, ...], table: pa.Table, present: set[str]) -> np.ndarray:
    if len(columns) == 1:  # pictures above all: not to be held twice
        return np.require(columns[0].encode(_cells(columns[0], table, present)), requirements=["C", "W"])
    ends = np.cumsum([column.n_features for column in columns]).tolist()
    starts = [0, *ends[:-1]]
    block = np.empty((table.num_rows, ends[-1]), dtype=columns[0].dtype)
    # A few columns at a time: all 1,000 of a wide table would be held twice.
    for first in range(0, len(columns), TOGETHER):
        group = slice(first, first + TOGETHER)
        encoded = [column.encode(_cells(column, table, present)) for column in columns[group]]
        _write(block, encoded, starts[group], ends[group])
    return block


def _write(block: np.ndarray, encoded: list[np.ndarray], starts: list[int], ends: list[int]) -> None:
    """Write columns [B, F] to their places, some rows of all of them at a time.

    A whole column at a time, each number is a line of the processor's cache: most of the time of wide tables.
    """
    rows = max(1, TILE_BYTES // (max(1, ends[-1] - starts[0]) * block.itemsize))
    for top in range(0, len(block), rows):
        for part, start, end in zip(encoded, starts, ends, strict=True):
            block[top : top + rows, start:end] = part[top : top + rows]


def _cells(column: Column, table: pa.Table, present: set[str]) -> Any:
    if column.name in present:
        return column.located(table.column(column.name), folder_of(table))
    return pa.chunked_array([pa.nulls(table.num_rows)])
