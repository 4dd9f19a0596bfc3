"""Numbers: one float32 a cell, NaN where missing; scaling is the encoder's work, not the column's."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field

from mtl_bento.columns._base import COLUMNS, Column
from mtl_bento.spec import Finite
from mtl_bento.table import cell_error, first_failure, plain, type_error

FEWEST = 5
"""Known cells that quantiles are learned from, at least."""
LARGEST = float(np.finfo(np.float32).max)
"""The largest number that a cell may hold."""

WANTED = "give a finite number or leave the cell empty"


class NumericColumn(Column):
    """Numbers of any width; text that spells a number is one, and an empty text is missing."""

    kind: Literal["numeric"] = "numeric"
    block: ClassVar[str] = "numeric"

    quantiles: tuple[Finite, ...] = ()
    """The 5 % to 95 % quantiles of the training cells at nine levels, to three digits; empty for under five."""
    integer: bool = False
    """Whether all training cells were whole numbers."""
    has_missing: bool = False
    """Whether a training cell was missing."""

    @classmethod
    def fit(cls, name: str, values: pa.ChunkedArray) -> Self:
        """Return the column learned from training cells; raises SchemaError where one is no finite number."""
        cells = floats(plain(values), name)
        known = cells[~np.isnan(cells)]
        integer = bool(len(known)) and bool(np.all(known == np.rint(known)))
        return cls(name=name, quantiles=blurred(known), integer=integer, has_missing=len(known) < len(cells))

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return float32 [B, 1] with NaN where missing; raises SchemaError naming the first cell that is no number."""
        return floats(plain(values), self.name).reshape(-1, 1)

    def wire_type(self) -> Any:
        """Return a strict finite float: whole numbers pass, true, false, text, NaN and infinities do not."""
        return FiniteFloat32

    def arrow_type(self) -> pa.DataType:
        """Return double."""
        return pa.float64()

    def draw(self, rng: np.random.Generator) -> float | int | None:
        """Return a number between two learned quantiles, now and then a missing cell where training had some."""
        if not self.quantiles or (self.has_missing and rng.random() < 0.1):
            return None
        number = drawn(self.quantiles, rng)
        return round(number) if self.integer and abs(number) < 2**53 else number

    def describe(self) -> str:
        """Return "number" or "whole number"."""
        return "whole number" if self.integer else "number"


def floats(cells: pa.Array, name: str) -> np.ndarray:
    """Return plain cells as float32 [B], NaN where missing.

    Raises SchemaError naming column, row and value of the first cell that is not a number, or too large for 32 bits.
    """
    narrow, bad = narrowed(_doubles(cells, name))
    if bad is not None:
        raise cell_error(name, bad, cells[bad].as_py(), wrong="is infinite or too large for 32 bits", wanted=WANTED)
    return narrow


def narrowed(wide: np.ndarray) -> tuple[np.ndarray, int | None]:
    """Return doubles as float32, and the place of the first that is infinite there, if any."""
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    endless = np.isinf(narrow)
    return narrow, int(endless.argmax()) if endless.any() else None


def blurred(known: np.ndarray) -> tuple[float, ...]:
    """Return nine quantiles (5 % to 95 %) to three digits: enough to draw likely numbers, too coarse to be a real one.

    Fewer than five cells have none, as their quantiles would be those cells. Of many cells an evenly spaced part is
    enough, and sorting all of 1,000 columns is slow.
    """
    if len(known) < FEWEST:
        return ()
    part = known[:: max(1, len(known) // 10_000)].astype(np.float64)
    return tuple(three_digits(value) for value in np.quantile(part, np.linspace(0.05, 0.95, 9)))


def drawn(quantiles: tuple[float, ...], rng: np.random.Generator) -> float:
    """Return a number drawn evenly between the quantiles, to three digits."""
    return three_digits(np.interp(rng.random(), np.linspace(0, 1, len(quantiles)), quantiles))


def three_digits(value: float) -> float:
    """Return the number rounded to three significant digits, and never beyond what 32 bits hold."""
    return float(np.clip(float(f"{value:.3g}"), -LARGEST, LARGEST))


def _doubles(cells: pa.Array, name: str) -> np.ndarray:
    kind = cells.type
    if pa.types.is_null(kind):
        return np.full(len(cells), np.nan)
    if pa.types.is_boolean(kind):
        cells = cells.cast(pa.uint8())
    elif pa.types.is_large_string(kind):
        cells = _parsed(cells, name)
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise type_error(name, kind, wanted="give numbers, or another kind for it (`inputs:` in mtl.yaml)")
    # Nulls become NaN here; whole numbers beyond 2**53 may round.
    return np.asarray(cells.to_numpy(zero_copy_only=False), dtype=np.float64)


def _parsed(texts: pa.Array, name: str) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(texts)
    present = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, trimmed.type), trimmed)

    def convert(part: pa.Array) -> pa.Array:
        return part.cast(pa.float64())

    try:
        return convert(present)
    except pa.ArrowInvalid:
        row = first_failure(present, convert)
        raise cell_error(name, row, texts[row].as_py(), wrong="is not a number", wanted=WANTED) from None


def _fits(value: float) -> float:
    if not abs(value) <= LARGEST:
        raise ValueError("is too large for a 32-bit number")
    return value


FiniteFloat32 = Annotated[float, Field(strict=True, allow_inf_nan=False), AfterValidator(_fits)]
"""A number of a request: no text, no true or false, no NaN, no infinity."""

COLUMNS.register(NumericColumn)(NumericColumn)
