"""Categories: one code a cell, for the levels that training saw often enough, for "other" and for "missing".

A level may come back in another type than it left: pandas turns 3 into 3.0 and True into "True". So cells are compared
by one canonical text (`text_of`), while the levels themselves keep the type that they had in training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from mtl_bento.columns._base import COLUMNS, Column
from mtl_bento.table import cell_error, plain, type_error

SEEN = 5
"""Rows that a level must be seen in: a rarer one could name a person."""
MOST = 1000
"""Levels kept at most, the most frequent."""
FEW = 128
"""Texts that are looked up one by one at most: Arrow's dictionaries take as long for one as for a hundred."""

Level = StrictBool | StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)] | StrictStr


class CategoricalColumn(Column):
    """One of a set of levels: text, true and false, or numbers."""

    kind: Literal["categorical"] = "categorical"
    block: ClassVar[str] = "categorical"
    dtype: ClassVar[Any] = np.int64

    levels: tuple[Level, ...] = ()
    """The levels, the most frequent first; their places are their codes. "Other" has the code after the last."""
    has_missing: bool = False
    """Whether a training cell was missing."""
    has_other: bool = False
    """Whether a training cell was of a level too rare to be kept."""

    @classmethod
    def fit(cls, name: str, values: pa.ChunkedArray) -> Self:
        """Return the column with the levels seen in at least 5 training cells, 1,000 at most.

        Raises SchemaError where the cells are bytes, lists or structs, or hold an infinity.
        """
        places, firsts = by_text(values, name)
        counts = np.bincount(places[places >= 0], minlength=len(firsts))
        # Stable: levels seen equally often stay in the order of their first cells, on every machine.
        order = np.argsort(-counts, kind="stable")[:MOST]
        kept = order[counts[order] >= SEEN]
        return cls(
            name=name,
            levels=tuple(firsts[place][1] for place in kept),
            has_missing=bool((places < 0).any()),
            has_other=len(kept) < len(firsts),
        )

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return int64 codes [B, 1]: a level's place, the number of levels for any other value, -1 for missing."""
        if len(values) <= FEW and values.type.id in _TEXTS:
            return np.array(self._looked_up(values.to_pylist()), dtype=np.int64).reshape(-1, 1)
        places, firsts = by_text(values, self.name)
        found = np.array([*self._looked_up([text for text, _ in firsts]), -1], dtype=np.int64)
        return np.asarray(found[places].reshape(-1, 1))  # a missing cell's place is -1: the last

    def wire_type(self) -> Any:
        """Return text, true or false, or a finite number; it is validated into its canonical text."""
        return Annotated[Level, AfterValidator(_sent)]

    def arrow_type(self) -> pa.DataType:
        """Return string: the levels of a batch may come in several types."""
        return pa.string()

    def draw(self, rng: np.random.Generator) -> str | bool | int | float | None:
        """Return one of the levels, now and then a missing cell where training had some."""
        if not self.levels or (self.has_missing and rng.random() < 0.1):
            return None
        return self.levels[int(rng.integers(len(self.levels)))]

    def describe(self) -> str:
        """Return "category of 12 levels", and whether rarer ones count as one more."""
        more = " and others" if self.has_other else ""
        return f"category of {len(self.levels)} level{'s' * (len(self.levels) != 1)}{more}"

    def _looked_up(self, texts: Sequence[str | None]) -> list[int]:
        codes, other = self._codes, len(self.levels)
        # A text that is a key as it stands is canonical.
        return [-1 if not text else codes[text] if text in codes else codes.get(text_of(text), other) for text in texts]

    @cached_property
    def _codes(self) -> dict[str, int]:
        codes = {text_of(level): code for code, level in enumerate(self.levels)}
        # true and false come back as 1 and 0 from formats that have no booleans, and the other way round.
        for same in ({"true": "1", "false": "0"}, {"1": "true", "0": "false"}):
            if codes.keys() <= same.keys():
                return codes | {same[text]: code for text, code in codes.items()}
        return codes


def text_of(value: str | bool | int | float) -> str:
    """Return the canonical text of a level: True, "true" and "True" are one, and so are 3, 3.0, "3" and "3.0".

    Text with an exponent ("1e+16", which Python makes of whole floats from there on) is text.
    """
    if isinstance(value, str):
        # The last letter says of nearly all texts that they are canonical: every cell of a request comes here.
        if value[-1:] in ("e", "E") and value.lower() in ("true", "false"):
            return value.lower()
        if value[-1:] == "0":
            whole = re.fullmatch(r"(-?(?:0|[1-9][0-9]*))\.0+", value)
            digits = whole[1] if whole else value
            return "0" if digits == "-0" else digits
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _sent(value: str | bool | int | float) -> str:
    text = text_of(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair: it would break the whole batch as it becomes an array
            raise ValueError("is not valid Unicode text") from None
    return text


def by_text(values: pa.ChunkedArray, name: str) -> tuple[np.ndarray, list[tuple[str, Any]]]:
    """Return each cell's place [B] among the distinct canonical texts, -1 where missing, and (text, first value) each.

    Python looks at distinct values only, never at rows.
    """
    cells = plain(values)
    if not _is_plain(cells.type):
        raise type_error(name, cells.type, wanted="categories are text, true and false, or numbers")
    encoded = cells.dictionary_encode()
    distinct = _values(encoded.dictionary, cells, name)
    place_of: dict[Hashable, int] = {}
    firsts: list[tuple[str, Any]] = []
    places = np.full(len(distinct) + 1, -1, dtype=np.int64)  # the last is for missing cells
    for position, value in enumerate(distinct):
        if _is_missing(value):
            continue
        text = text_of(value)
        if text not in place_of:
            place_of[text] = len(firsts)
            firsts.append((text, value))
        places[position] = place_of[text]
    indices = encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)
    return places[indices], firsts


_TEXTS = frozenset(kind.id for kind in (pa.string(), pa.large_string()))


def _is_plain(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_null,
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_large_string,
        pa.types.is_temporal,
    )
    return any(test(kind) for test in tests) and not pa.types.is_interval(kind)


def _values(distinct: pa.Array, cells: pa.Array, name: str) -> list[Any]:
    kind = distinct.type
    if pa.types.is_floating(kind):
        return _floats(distinct, cells, name)
    if pa.types.is_temporal(kind):
        return list(distinct.cast(pa.string()).to_pylist())
    return list(distinct.to_pylist())


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _floats(distinct: pa.Array, cells: pa.Array, name: str) -> list[float | int | None]:
    # Through text: the shortest digits of a float32 are those that a request or a CSV holds.
    numbers = [math.nan if text is None else float(text) for text in distinct.cast(pa.string()).to_pylist()]
    if any(math.isinf(number) for number in numbers):
        row = pc.index(pc.is_inf(cells), True).as_py()
        wanted = "give a finite value or leave the cell empty"
        raise cell_error(name, row, cells[row].as_py(), wrong="is infinite", wanted=wanted)
    whole = all(math.isnan(number) or (number.is_integer() and abs(number) < 2**53) for number in numbers)
    # Whole numbers with missing cells reach us as floats from pandas; the level is 3, not 3.0.
    return [int(number) if whole and not math.isnan(number) else number for number in numbers]


COLUMNS.register(CategoricalColumn)(CategoricalColumn)
