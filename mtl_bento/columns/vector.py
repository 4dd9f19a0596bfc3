"""Vectors: lists of numbers of one length, such as features from another model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mtl_bento.columns._base import COLUMNS, Column
from mtl_bento.columns.numeric import FiniteFloat32, blurred, drawn, narrowed
from mtl_bento.errors import SchemaError
from mtl_bento.spec import Finite
from mtl_bento.table import cell_error, first_failure, plain, type_error


class VectorColumn(Column):
    """Lists of numbers of one length; text such as "[0.5, 1]", as lists stand in CSV, is read too."""

    kind: Literal["vector"] = "vector"
    block: ClassVar[str] = "vector"

    size: Annotated[int, Field(ge=1)]
    """The length of every list."""
    quantiles: tuple[Finite, ...] = ()
    """The 5 % to 95 % quantiles of all numbers of all training lists at nine levels, to three digits."""

    @property
    def n_features(self) -> int:
        """The length of every list."""
        return self.size

    @classmethod
    def fit(cls, name: str, values: pa.ChunkedArray) -> Self:
        """Return the column with the length of the training lists.

        Raises SchemaError where the cells are no lists of numbers, all are missing, or lengths differ.
        """
        lists = _lists(plain(values), name)
        sizes = pc.list_value_length(lists).drop_null()
        if not len(sizes):
            raise SchemaError(f"Column {name!r} holds no list of numbers; leave it out with `ignore:` in mtl.yaml.")
        size = sizes[0].as_py()
        if size == 0:
            raise SchemaError(f"Column {name!r} holds empty lists; leave it out with `ignore:` in mtl.yaml.")
        numbers = _stacked(lists, size, name)
        return cls(name=name, size=size, quantiles=blurred(numbers[~np.isnan(numbers)]))

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return float32 [B, size], NaN where a number or the whole list is missing.

        Raises SchemaError naming the first list of another length, or with an infinity.
        """
        cells = plain(values)
        if pa.types.is_null(cells.type):
            return np.full((len(cells), self.size), np.nan, dtype=np.float32)
        return _stacked(_lists(cells, self.name), self.size, self.name)

    def wire_type(self) -> Any:
        """Return a list of exactly `size` finite numbers or nulls."""
        return Annotated[list[FiniteFloat32 | None], Field(min_length=self.size, max_length=self.size)]

    def arrow_type(self) -> pa.DataType:
        """Return a list of doubles."""
        return pa.list_(pa.float64())

    def draw(self, rng: np.random.Generator) -> list[float] | None:
        """Return a list of numbers between the learned quantiles."""
        return [drawn(self.quantiles, rng) for _ in range(self.size)] if self.quantiles else None

    def describe(self) -> str:
        """Return "vector of 16 numbers"."""
        return f"vector of {self.size} number{'s' * (self.size != 1)}"


def _lists(cells: pa.Array, name: str) -> pa.Array:
    kind = cells.type
    wanted = "give lists of numbers of one length"
    if pa.types.is_null(kind):
        return cells.cast(pa.list_(pa.float64()))
    if pa.types.is_large_string(kind):
        return _parsed(cells, name)
    if not is_list(kind):
        raise type_error(name, kind, wanted=wanted)
    inner = kind.value_type
    if not (pa.types.is_null(inner) or pa.types.is_floating(inner) or pa.types.is_integer(inner)):
        raise type_error(name, kind, wanted=wanted)
    if isinstance(cells, pa.ListArray) and (pa.types.is_float64(inner) or pa.types.is_float32(inner)):
        return cells  # what a request's cells are
    # Not by a cast: that of a list view with missing cells makes an invalid array.
    return _rebuilt(cells, pc.list_flatten(cells).cast(pa.float64(), safe=False))


def is_list(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is a list of any of Arrow's layouts."""
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _parsed(texts: pa.Array, name: str) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(texts)
    trimmed = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, trimmed.type), trimmed)
    try:
        return _split(trimmed)
    except pa.ArrowInvalid:
        row = first_failure(trimmed, _split)
        wanted = "give a list of numbers such as [0.5, 1]"
        raise cell_error(name, row, texts[row].as_py(), wrong="is not a list of numbers", wanted=wanted) from None


def _split(texts: pa.Array) -> pa.Array:
    """Return texts such as "[0.5, 1]" as lists of doubles; raises ArrowInvalid where one is no such text."""
    if pc.all(pc.match_substring_regex(texts, r"^\[.*\]$")).as_py() is False:
        raise pa.ArrowInvalid("no brackets")
    parts = pc.split_pattern(pc.utf8_slice_codeunits(texts, 1, -1), ",")
    words = pc.utf8_trim_whitespace(pc.list_flatten(parts))
    numbers = pc.if_else(pc.equal(words, "null"), pa.scalar(None, words.type), words).cast(pa.float64())
    return _rebuilt(parts, numbers)


def _rebuilt(lists: pa.Array, values: pa.Array) -> pa.Array:
    """Return lists of the same lengths with other values, those of missing lists not among them."""
    sizes = pc.if_else(lists.is_null(), 0, pc.list_value_length(lists)).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.cumsum([0, *sizes]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, values, mask=lists.is_null())


def _stacked(lists: pa.Array, size: int, name: str) -> np.ndarray:
    """Return float32 [B, size] with NaN where missing; raises SchemaError for a list of another length."""
    missing = lists.is_null().to_numpy(zero_copy_only=False)
    sizes = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    sizes = np.where(missing, size, sizes).astype(np.int64)
    if (sizes != size).any():
        row = int((sizes != size).argmax())
        wanted = f"give {size} numbers or leave the cell empty"
        raise cell_error(name, row, lists[row].as_py(), wrong=f"has length {sizes[row]}, not {size}", wanted=wanted)
    stacked = np.full((len(lists), size), np.nan, dtype=np.float32)
    flat = pc.list_flatten(lists).to_numpy(zero_copy_only=False)  # nulls become NaN
    numbers, bad = narrowed(flat)
    if bad is not None:
        row = int(np.flatnonzero(~missing)[bad // size])
        wrong = "holds a number that is infinite or too large for 32 bits"
        raise cell_error(name, row, lists[row].as_py(), wrong=wrong, wanted="give finite numbers")
    stacked[~missing] = numbers.reshape(-1, size)
    return stacked


COLUMNS.register(VectorColumn)(VectorColumn)
