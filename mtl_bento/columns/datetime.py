"""Dates and times, expanded into numbers: how long ago, and where in the year, the week and the day.

Times with a zone are moved to UTC; times without one are taken as UTC, so that one clock is kept throughout.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, StrictInt, StrictStr

from mtl_bento.columns._base import COLUMNS, Column
from mtl_bento.columns.numeric import blurred, drawn
from mtl_bento.spec import Finite
from mtl_bento.table import cell_error, first_failure, plain, type_error

WANTED = "give an ISO date such as 2013-05-02 or 2013-05-02T07:15:00, or milliseconds since 1970"
DAY_US = 86_400_000_000
"""Microseconds in a day."""
FEW = 128
"""Texts that are read one by one at most: Arrow takes as long for one as for some hundred."""
EARLIEST, LATEST = (int(np.datetime64(day, "us").astype(np.int64)) for day in ("0001-01-01", "9999-12-31T23:59:59"))

_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,6})?)?(?:Z|[+-](?:0\d|1[0-3]):[0-5]\d)?"
ISO = re.compile(rf"[1-8]\d{{3}}-\d\d-\d\d(?:[T ]{_TIME})?", re.ASCII)
"""Dates and times as nearly everybody writes them, far from the ends of the calendar."""
MILLISECONDS = re.compile(r"\d{9,14}|-\d{9,13}", re.ASCII)
"""Whole milliseconds that are no date without dashes (20130502), and within the calendar."""
EPOCH = dt.datetime(1970, 1, 1)


class DatetimeColumn(Column):
    """Moments: timestamps, dates, ISO texts, or whole numbers of milliseconds since 1970 (20130502 is a date)."""

    kind: Literal["datetime"] = "datetime"
    block: ClassVar[str] = "numeric"

    origin: dt.date = dt.date(1970, 1, 1)
    """Day 0: the first day of the month of the earliest training cell (of the month, so that it is no real cell)."""
    has_times: bool = False
    """Whether a training cell was anything but midnight; only then is the hour of the day a feature."""
    days: tuple[Finite, ...] = ()
    """Quantiles (5 % to 95 %) of the days since the origin, to three digits; empty for under five."""
    has_missing: bool = False
    """Whether a training cell was missing."""

    @property
    def n_features(self) -> int:
        """Days since the origin, sine and cosine of year and week, and of the day where times occur: 5 or 7."""
        return 7 if self.has_times else 5

    @classmethod
    def fit(cls, name: str, values: pa.ChunkedArray) -> Self:
        """Return the column learned from training cells; raises SchemaError naming the first that is no date."""
        moments, missing = _moments(plain(values), name)
        known = moments[~missing]
        if not len(known):
            return cls(name=name, has_missing=True)
        origin = dt.date.fromisoformat(str(known.min().astype("datetime64[M]")) + "-01")
        microseconds = known.astype(np.int64)
        return cls(
            name=name,
            origin=origin,
            has_times=bool((microseconds % DAY_US != 0).any()),
            days=blurred((microseconds - _microseconds(origin)) / DAY_US),
            has_missing=bool(missing.any()),
        )

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return float32 [B, 5 or 7] with NaN where missing; raises SchemaError naming the first cell that is no date.

        Features: days since the origin; sine and cosine of the place in the year (by month and day), in the week
        (Monday is 0) and, where training had times, in the day.
        """
        moments, missing = _few(values) or _moments(plain(values), self.name)
        microseconds = moments.astype(np.int64)
        turns = [_year_turns(moments), (microseconds // DAY_US + 3) % 7 / 7]  # 1970-01-01 was a Thursday
        if self.has_times:
            turns.append(microseconds % DAY_US / DAY_US)
        angles = 2 * np.pi * np.stack(turns, axis=1)
        encoded = np.empty((len(moments), self.n_features), dtype=np.float32)
        encoded[:, 0] = (microseconds - _microseconds(self.origin)) / DAY_US
        encoded[:, 1::2] = np.sin(angles)
        encoded[:, 2::2] = np.cos(angles)
        encoded[missing] = np.nan
        return encoded

    def wire_type(self) -> Any:
        """Return ISO text or whole milliseconds since 1970; it is validated into text, and bad dates are refused."""
        return Annotated[StrictInt | StrictStr, AfterValidator(_checked)]

    def arrow_type(self) -> pa.DataType:
        """Return string: a batch may hold both forms."""
        return pa.string()

    def draw(self, rng: np.random.Generator) -> str | None:
        """Return an ISO date, with a time where training had times; now and then a missing cell where it had some."""
        if not self.days or (self.has_missing and rng.random() < 0.1):
            return None
        moment = dt.datetime.combine(self.origin, dt.time()) + dt.timedelta(days=round(drawn(self.days, rng)))
        if not self.has_times:
            return moment.date().isoformat()
        return (moment + dt.timedelta(minutes=int(rng.integers(24 * 60)))).isoformat()

    def describe(self) -> str:
        """Return "date" or "date and time"."""
        return "date and time" if self.has_times else "date"


def _microseconds(day: dt.date) -> int:
    return int(np.datetime64(day, "us").astype(np.int64))


def _year_turns(moments: np.ndarray) -> np.ndarray:
    months = moments.astype("datetime64[M]")
    day = (moments.astype("datetime64[D]") - months).astype(np.int64)
    # Not the day of the year: the first of a month is the same place in every year, leap or not.
    return np.asarray((months.astype(np.int64) % 12 + day / 31) / 12)


def _few(values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what `_moments` does for a few texts in the usual forms, None for any other cells."""
    if len(values) > FEW or not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return None
    texts = values.to_pylist()
    read = [quickly(text) if text else 0 for text in texts]
    if None in read:
        return None
    return np.array(read, dtype="datetime64[us]"), np.array([not text for text in texts], dtype=bool)


def _moments(cells: pa.Array, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return datetime64[us] [B], the epoch where missing, and which are missing: bool [B]."""
    try:
        moments = _converted(cells, name)
        if not _within(moments):
            raise pa.ArrowInvalid("out of the calendar")
    except pa.ArrowInvalid:
        row = first_failure(cells, lambda part: _strict(part, name))
        raise cell_error(name, row, _shown(cells, row), wrong="is not a date or time", wanted=WANTED) from None
    missing = moments.is_null().to_numpy(zero_copy_only=False)
    return moments.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).astype("datetime64[us]"), missing


def _strict(cells: pa.Array, name: str) -> None:
    if not _within(_converted(cells, name)):
        raise pa.ArrowInvalid("out of the calendar")


def _within(moments: pa.Array) -> bool:
    bounds = pc.min_max(moments.cast(pa.int64())).as_py()
    return bounds["min"] is None or (bounds["min"] >= EARLIEST and bounds["max"] <= LATEST)


def _shown(cells: pa.Array, row: int) -> Any:
    # A timestamp beyond the calendar has no Python value, only its number.
    return cells[row].value if pa.types.is_temporal(cells.type) else cells[row].as_py()


def _converted(cells: pa.Array, name: str) -> pa.Array:
    """Return the cells as timestamps of microseconds, in UTC without saying so; raises ArrowInvalid for a bad one."""
    kind, moment = cells.type, pa.timestamp("us")
    if pa.types.is_timestamp(kind):
        # From nanoseconds the cut is wanted; from seconds an overflow is an error.
        local = cells.cast(pa.timestamp(kind.unit)) if kind.tz is not None else cells
        return local.cast(moment, safe=kind.unit != "ns")
    if pa.types.is_date(kind) or pa.types.is_null(kind):
        return cells.cast(pa.date32()).cast(moment)
    if pa.types.is_floating(kind):
        cells = pc.if_else(pc.is_nan(cells), pa.scalar(None, kind), cells).cast(pa.int64())
    if pa.types.is_integer(cells.type):
        cells = cells.cast(pa.large_string())  # as in a request, so that both read a number alike
    if pa.types.is_large_string(cells.type):
        return _parsed(cells)
    raise type_error(name, kind, wanted=WANTED)


def _milliseconds(numbers: pa.Array) -> pa.Array:
    return numbers.cast(pa.timestamp("ms")).cast(pa.timestamp("us"))


def _parsed(texts: pa.Array) -> pa.Array:
    """Return ISO texts, with or without a zone, and texts of whole milliseconds as timestamps.

    20130502 is a date, not five hours and a half after the beginning of 1970. Four digits may be a year: refused.
    """
    none = pa.scalar(None, pa.large_string())
    text = pc.utf8_trim_whitespace(texts)
    text = pc.if_else(pc.equal(text, ""), none, text)
    text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")  # nanoseconds: cut
    text = pc.replace_substring_regex(text, r"^((?:19|20|21)\d\d)(0[1-9]|1[0-2])([0-3]\d)$", r"\1-\2-\3")
    number = pc.match_substring_regex(text, r"^-?(\d{1,3}|\d{5,})$")
    zoned = pc.match_substring_regex(text, r":\d\d.*(Z|[+-]\d\d(:?\d\d)?)$")
    local = pc.and_not(pc.invert(zoned), number)
    return pc.coalesce(
        pc.if_else(local, text, none).cast(pa.timestamp("us")),
        pc.if_else(zoned, text, none).cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us")),
        _milliseconds(pc.if_else(number, text, none).cast(pa.int64())),
    )


def quickly(text: str) -> int | None:
    """Return the microseconds since 1970 of a text in one of the usual forms, None for any other: Arrow reads those.

    Arrow takes as long for one text as for a thousand, some hundred times this.
    """
    if MILLISECONDS.fullmatch(text):
        return int(text) * 1000
    if not ISO.fullmatch(text):
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:  # 30 February
        return None
    if moment.tzinfo is not None:
        moment = moment.astimezone(dt.UTC).replace(tzinfo=None)
    return (moment - EPOCH) // dt.timedelta(microseconds=1)


def _checked(value: int | str) -> str:
    text = str(value)
    if quickly(text) is not None:
        return text
    try:
        _strict(pa.array([text], pa.large_string()), "")
    except (pa.ArrowInvalid, UnicodeEncodeError):
        raise ValueError(f"{text[:60]!r} is not a date; send ISO text or milliseconds since 1970") from None
    return text


COLUMNS.register(DatetimeColumn)(DatetimeColumn)
