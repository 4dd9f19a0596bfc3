"""What every input column promises: numbers out of cells, and the field of a request.

A column is learned once (`fit`), kept as frozen data in the model's schema, and used alike in training, in batch
prediction and in serving. Columns of one `block` are encoded side by side into one array that one encoder reads.
This folder imports no torch: the service's parent process and the client read schemas too.

Letters: B rows, F features of the column.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from mtl_bento.errors import SpecError, listing, nearest
from mtl_bento.registry import Registry, one_line
from mtl_bento.spec import Spec


class Column(Spec):
    """One input column of a schema."""

    kind: str
    name: str

    dtype: ClassVar[Any] = np.float32
    """What `encode` returns: float32 with NaN for missing, int64 codes with -1, or uint8 pixels with 0 (`blank`)."""

    max_rows: ClassVar[int] = 1000
    """Rows that one request may hold: the answer stays quick, and no caller keeps the others waiting."""

    @property
    @abstractmethod
    def block(self) -> str:
        """The block it is encoded into: the kind of the encoder that reads it, and for a block of its own ":name".

        Columns that share one name it as a class variable.
        """

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

    @property
    def requires(self) -> tuple[str, ...]:
        """The distributions that encoding needs besides the project's own; the image of a service installs them."""
        return ()

    @classmethod
    @abstractmethod
    def fit(cls, name: str, values: pa.ChunkedArray) -> Self:
        """Return the column learned from training cells; raises SchemaError where the cells are not of this kind."""

    @classmethod
    def chosen(cls, name: str, values: pa.ChunkedArray, options: Mapping[str, Any]) -> Self:
        """Return the column learned from training cells, with the fields in `options` as the user chose them.

        Raises SchemaError as `fit` does, and SpecError for an option that there is not, or of a wrong value.
        """
        return cls.with_options(cls.fit(name, values).model_dump(), options)

    @classmethod
    def with_options(cls, fields: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        """Return the column of learned `fields` and the user's options; raises SpecError naming a wrong option."""
        where, allowed = (
            f"Input {fields['name']!r}",
            [name for name in cls.model_fields if name not in ("kind", "name")],
        )
        if unknown := next((name for name in options if name not in allowed), None):
            hint = nearest(unknown, allowed) or "."
            raise SpecError(f"{where}: {cls.model_fields['kind'].default} has no option {unknown!r}{hint} "
                            f"Allowed: {listing(allowed) or 'none'}.")  # fmt: skip
        try:
            return cls.model_validate({**fields, **options})
        except ValidationError as error:
            raise SpecError(one_line(error, where=where)) from None

    @classmethod
    def located(cls, values: pa.ChunkedArray, folder: Path) -> pa.ChunkedArray:
        """Return the cells, those that are paths relative to the table as paths from its `folder`."""
        del folder
        return values

    @abstractmethod
    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return the cells as an array [B, F]; raises SchemaError naming row and value of the first bad cell."""

    @abstractmethod
    def wire_type(self) -> Any:
        """Return the type annotation of this column's field in a request (None is allowed beside it by the caller)."""

    @abstractmethod
    def arrow_type(self) -> pa.DataType:
        """Return the Arrow type that cells of a request are read into."""

    def sent(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the cells as a client sends them: files are read; JSON will hold bytes in base64."""
        return values

    def files(self) -> dict[str, bytes]:
        """Return the files that encoding needs, by name: they travel in the model folder, beside the schema."""
        return {}

    def find_files(self, folder: Path) -> None:
        """Note that the files of `files` lie in a model folder, for this process."""
        del folder

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Any:
        """Return a made-up cell, as JSON holds it, drawn from what the column learned; never a real one."""

    @abstractmethod
    def describe(self) -> str:
        """Return what the column is taken for, in a few words for `mtl-bento inspect`."""


def blank(dtype: Any) -> float:
    """Return what the numbers of a missing cell are in an encoded array of that type: NaN, -1, or 0 without a sign."""
    return {"f": np.nan, "i": -1, "u": 0}[np.dtype(dtype).kind]


COLUMNS: Registry[Column] = Registry("input kind", package="mtl_bento.columns", group="mtl_bento.columns")
