"""What every input column promises: numbers out of cells, and the field of a request.

A column is learned once (`fit`), kept as frozen data in the model's schema, and used alike in training, in batch
prediction and in serving. Columns of one `block` are encoded side by side into one array that one encoder reads.
This folder imports no torch: the service's parent process and the client read schemas too.

Letters: B rows, F features of the column.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from mtl_bento.registry import Registry
from mtl_bento.spec import Spec


class Column(Spec):
    """One input column of a schema."""

    kind: str
    name: str

    dtype: ClassVar[Any] = np.float32
    """What `encode` returns: float32 with NaN for missing, or int64 codes with -1 for missing."""

    @property
    @abstractmethod
    def block(self) -> str:
        """The block it is encoded into: the kind of the encoder that reads it, and for a block of its own ":name".

        Columns that share one name it as a class variable.
        """

    @property
    def n_features(self) -> int:
        """How many numbers a cell becomes."""
        return 1

    @classmethod
    @abstractmethod
    def fit(cls, name: str, values: pa.ChunkedArray) -> Self:
        """Return the column learned from training cells; raises SchemaError where the cells are not of this kind."""

    @abstractmethod
    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return the cells as an array [B, F]; raises SchemaError naming row and value of the first bad cell."""

    @abstractmethod
    def wire_type(self) -> Any:
        """Return the type annotation of this column's field in a request (None is allowed beside it by the caller)."""

    @abstractmethod
    def arrow_type(self) -> pa.DataType:
        """Return the Arrow type that cells of a request are read into."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Any:
        """Return a made-up cell, as JSON holds it, drawn from what the column learned; never a real one."""

    @abstractmethod
    def describe(self) -> str:
        """Return what the column is taken for, in a few words for `mtl-bento inspect`."""


COLUMNS: Registry[Column] = Registry("input kind", package="mtl_bento.columns", group="mtl_bento.columns")
