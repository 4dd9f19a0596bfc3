"""Dates and times."""

from __future__ import annotations

import datetime as dt
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mtl_bento.columns import datetime as datetimes
from mtl_bento.columns.datetime import ISO, MILLISECONDS, DatetimeColumn, _checked, _moments, _strict, quickly
from mtl_bento.errors import SchemaError

calm = settings(deadline=None, derandomize=True)
"""The same examples on every machine, however busy."""


def fit(cells: Any, kind: pa.DataType | None = None) -> DatetimeColumn:
    return DatetimeColumn.fit("d", pa.chunked_array([pa.array(cells, kind)]))


def days(column: DatetimeColumn, cells: Any, kind: pa.DataType | None = None) -> list[float]:
    return [float(value) for value in column.encode(pa.chunked_array([pa.array(cells, kind)]))[:, 0]]


def test_features_match_hand_computed_values() -> None:
    column = fit([dt.datetime(2013, 1, 15), dt.datetime(2013, 7, 1, 6)])
    assert (column.origin, column.has_times, column.n_features) == (dt.date(2013, 1, 1), True, 7)
    # 1 July 2013 06:00 is 181.25 days after 1 January, half a year's turn, a Monday, a quarter of a day's turn.
    encoded = column.encode(pa.chunked_array([pa.array([dt.datetime(2013, 7, 1, 6)])]))
    np.testing.assert_allclose(encoded, [[181.25, 0, -1, 0, 1, 1, 0]], atol=1e-6)


def test_dates_have_no_hour_of_the_day() -> None:
    column = fit([dt.date(2013, 1, 7), dt.date(2013, 4, 4)])
    assert (column.has_times, column.n_features, column.describe()) == (False, 5, "date")
    # 7 January is a Monday, six days of 31 into the year's first month.
    encoded = column.encode(pa.chunked_array([pa.array([dt.date(2013, 1, 7)])]))
    turn = 2 * np.pi * 6 / 31 / 12
    np.testing.assert_allclose(encoded, [[6, np.sin(turn), np.cos(turn), 0, 1]], atol=1e-6)


def test_the_first_day_of_the_earliest_month_is_day_zero_before_1970_too() -> None:
    column = fit([dt.date(1912, 4, 15), dt.date(1970, 1, 2)])
    assert column.origin == dt.date(1912, 4, 1)
    assert days(column, [dt.date(1912, 4, 15), dt.date(1912, 3, 31)]) == [14, -1]


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([dt.datetime(2013, 5, 2, 6)], pa.timestamp("s")),
        ([dt.datetime(2013, 5, 2, 6)], pa.timestamp("ns")),
        ([dt.datetime(2013, 5, 2, 8, tzinfo=dt.timezone(dt.timedelta(hours=2)))], pa.timestamp("us", "Europe/Berlin")),
        (["2013-05-02T06:00:00"], None),
        (["2013-05-02 06:00"], None),
        ([" 2013-05-02T06 "], None),
        (["2013-05-02T06:00:00.000000000"], None),
        (["2013-05-02T06:00:00Z"], None),
        (["2013-05-02T08:00:00.000+02:00"], None),
        ([1367474400000], None),
        ([1367474400000.0], None),
        (["1367474400000"], None),
    ],
)
def test_one_moment_in_every_form_is_the_same_day(cells: Any, kind: Any) -> None:
    column = DatetimeColumn(name="d", origin=dt.date(2013, 5, 1), has_times=True)
    assert days(column, cells, kind) == [1.25]


def test_compact_dates_are_dates_as_numbers_and_as_text() -> None:
    column = DatetimeColumn(name="d", origin=dt.date(2013, 5, 1))
    assert days(column, [20130502]) == days(column, ["20130502"]) == [1]


def test_milliseconds_may_be_few_and_before_1970() -> None:
    column = DatetimeColumn(name="d", has_times=True)
    assert days(column, [0, -86_400_000, 864]) == [0, -1, pytest.approx(1e-5)]


def test_zones_may_be_mixed_with_times_without_one() -> None:
    column = DatetimeColumn(name="d", has_times=True)
    assert days(column, ["1970-01-02", "1970-01-02T06:00:00Z", "1970-01-02T01:00:00+0100"]) == [1, 1.25, 1]


def test_missing_cells_are_missing_in_every_feature() -> None:
    column = fit([dt.datetime(2013, 1, 1, 5), None])
    assert column.has_missing
    encoded = column.encode(pa.chunked_array([pa.array([None, "", "2013-01-01"])]))
    assert np.isnan(encoded).all(axis=1).tolist() == [True, True, False]
    assert np.isnan(days(column, [float("nan")])).all()


@pytest.mark.parametrize(
    ("cells", "kind", "words"),
    [
        (["2013-01-01", "soon"], None, "Column 'd', row 1: 'soon' is not a date or time; give an ISO date such as"),
        (["2013-13-01"], None, "Column 'd', row 0: '2013-13-01' is not a date or time"),
        (["02.05.2013"], None, "Column 'd', row 0: '02.05.2013' is not a date or time"),
        ([None, 2013], None, "Column 'd', row 1: 2013 is not a date or time"),  # a year, not two seconds
        ([0, 10**17], None, "Column 'd', row 1: 100000000000000000 is not a date or time"),
        ([2**63], pa.uint64(), "Column 'd', row 0: 9223372036854775808 is not a date or time"),
        ([0.5], None, "Column 'd', row 0: 0.5 is not a date or time"),
        ([float("inf")], None, "Column 'd', row 0: inf is not a date or time"),
        ([0, 10**15], pa.timestamp("s"), "Column 'd', row 1: "),
        ([True], None, "Column 'd' holds cells of type bool; give an ISO date"),
    ],
)
def test_the_first_bad_cell_is_named(cells: Any, kind: Any, words: str) -> None:
    for act in (fit, lambda *given: DatetimeColumn(name="d").encode(pa.chunked_array([pa.array(*given)]))):
        with pytest.raises(SchemaError) as caught:
            act(cells, kind)
        assert str(caught.value).startswith(words)
        assert "\n" not in str(caught.value)


def test_draws_are_iso_texts_between_the_quantiles() -> None:
    rng = np.random.default_rng(0)
    column = fit([dt.date(2013, 1, 1) + dt.timedelta(days=n) for n in range(100)])
    drawn = [column.draw(rng) for _ in range(100)]
    assert all("2013-01-05" <= day <= "2013-04-06" for day in drawn if day)  # days 4.95 and 94.05 to three digits
    timed = fit([dt.datetime(2013, 1, 1, 5)] * 5).draw(rng)
    assert timed is not None
    assert dt.datetime.fromisoformat(timed)


def test_all_missing_learns_nothing_and_draws_nothing() -> None:
    column = fit([None, None], pa.timestamp("us"))
    assert column.draw(np.random.default_rng(0)) is None
    assert days(column, ["1970-01-03"]) == [2]


def test_the_wire_refuses_bad_dates_row_by_row() -> None:
    wire: TypeAdapter[Any] = TypeAdapter(DatetimeColumn(name="d").wire_type())
    assert wire.validate_python("2013-05-02") == "2013-05-02"
    assert wire.validate_python(1367474400000) == "1367474400000"
    for bad in ("soon", "2013", 2013, True, 1.5, 10**30, "2013-02-30"):
        with pytest.raises(ValidationError):
            wire.validate_python(bad)
    with pytest.raises(ValidationError, match="'soon' is not a date; send ISO text or milliseconds since 1970"):
        wire.validate_python("soon")


def by_arrow(text: str) -> int | None:
    """Return the microseconds that Arrow reads, None where it refuses the text."""
    try:
        moments, missing = _moments(pa.array([text], pa.large_string()), "d")
    except (SchemaError, UnicodeEncodeError):
        return None
    return None if missing[0] else int(moments.astype(np.int64)[0])


def near(*parts: str) -> st.SearchStrategy[str]:
    return st.sampled_from(parts)


DATES = st.builds("{}-{}-{}".format, near("0001", "1000", "2024", "9999", "99"), near("01", "2", "02", "12", "13"),
                  near("01", "28", "29", "30", "31", "0", "32"))  # fmt: skip
TIMES = st.builds("{}{}{}".format, near("T", " ", "t", ""), near("00:00", "23:59", "24:00", "6:00", "12", "12:60"),
                  near("", ":00", ":59", ":60", ":00.", ":00.1", ":00.123456", ":00.1234567"))  # fmt: skip
ZONES = near("", "Z", "z", "+00:00", "-13:59", "+14:00", "+24:00", "+0130", "-01", "+01:60", " +01:00")
TEXTS = st.one_of(
    st.from_regex(ISO, fullmatch=True),
    st.from_regex(MILLISECONDS, fullmatch=True),
    st.integers(-(10**18), 10**18).map(str),
    st.integers(10**7, 10**8).map(str),
    st.builds("{}{}{}{}".format, DATES, st.one_of(st.just(""), TIMES), ZONES, near("", " ", "x", "\n")),
    st.text(max_size=12),
)


@calm
@given(TEXTS)
def test_what_is_read_quickly_is_what_arrow_reads(text: str) -> None:
    if (moment := quickly(text)) is not None:
        assert moment == by_arrow(text)


@calm
@given(TEXTS)
def test_a_request_takes_exactly_the_texts_that_arrow_reads(text: str) -> None:
    try:
        _strict(pa.array([text], pa.large_string()), "d")
    except (pa.ArrowInvalid, UnicodeEncodeError):
        with pytest.raises(ValueError, match="is not a date; send ISO text or milliseconds since 1970"):
            _checked(text)
    else:
        assert _checked(text) == text


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1970-01-02", 86_400_000_000),
        ("1970-01-01T00:00:01", 1_000_000),
        ("1970-01-01 00:01", 60_000_000),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("1970-01-01T02:00:00+02:00", 0),
        ("1367474400000", 1_367_474_400_000_000),
        ("20130502", None),
        ("2013-02-30", None),
    ],
)
def test_the_usual_forms_are_read_quickly(text: str, moment: int | None) -> None:
    assert quickly(text) == moment


@calm
@given(st.lists(st.one_of(st.none(), st.just(""), st.from_regex(ISO, fullmatch=True), TEXTS), max_size=5))
def test_a_few_texts_are_encoded_as_many_are(cells: list[str | None]) -> None:
    column = DatetimeColumn(name="d", has_times=True)

    def encoded() -> list[list[float]] | str:
        try:
            return np.nan_to_num(column.encode(pa.chunked_array([pa.array(cells, pa.string())])), nan=-99).tolist()
        except SchemaError as error:
            return str(error)

    few = encoded()
    with mock.patch.object(datetimes, "FEW", -1):
        assert encoded() == few
