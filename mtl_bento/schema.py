"""The schema: which columns a model reads, what each was taken for, and a table as arrays for the encoders.

Letters: B rows, F features of a column.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
from pydantic import BeforeValidator, SerializeAsAny, model_validator

from mtl_bento.columns._base import COLUMNS, Column
from mtl_bento.errors import SchemaError, SpecError, listing
from mtl_bento.spec import Spec

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

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the input columns."""
        return tuple(column.name for column in self.columns)

    @property
    def blocks(self) -> dict[str, tuple[Column, ...]]:
        """The columns by the block that they are encoded into, in order."""
        blocks: dict[str, tuple[Column, ...]] = {}
        for column in self.columns:
            blocks[column.block] = (*blocks.get(column.block, ()), column)
        return blocks

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


def _side_by_side(columns: tuple[Column, ...], table: pa.Table, present: set[str]) -> np.ndarray:
    starts = np.cumsum([0, *(column.n_features for column in columns)])
    # Filled column by column: concatenating 1,000 of them would hold the block twice.
    block = np.empty((table.num_rows, starts[-1]), dtype=columns[0].dtype)
    for column, start in zip(columns, starts, strict=False):
        block[:, start : start + column.n_features] = column.encode(_cells(column, table, present))
    return block


def _cells(column: Column, table: pa.Table, present: set[str]) -> Any:
    if column.name in present:
        return table.column(column.name)
    return pa.chunked_array([pa.nulls(table.num_rows)])
