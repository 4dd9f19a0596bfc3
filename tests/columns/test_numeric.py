"""Numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mtl_bento.columns.numeric import NumericColumn
from mtl_bento.errors import SchemaError


def fit(cells: Any, kind: pa.DataType | None = None) -> NumericColumn:
    return NumericColumn.fit("n", pa.chunked_array([pa.array(cells, kind)]))


def encode(cells: Any, kind: pa.DataType | None = None) -> list[float]:
    encoded = NumericColumn(name="n").encode(pa.chunked_array([pa.array(cells, kind)]))
    return [float(value) for value in encoded[:, 0]]


def test_numbers_of_every_type_are_read() -> None:
    for kind in (pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.decimal128(38, 2), pa.string()):
        cells = pa.array([1, 2, None]).cast(kind)
        np.testing.assert_array_equal(encode(cells), [1, 2, np.nan])
    np.testing.assert_array_equal(encode([True, False, None]), [1, 0, np.nan])


def test_nan_null_and_empty_text_are_missing() -> None:
    np.testing.assert_array_equal(encode([float("nan"), None, 1.0]), [np.nan, np.nan, 1])
    np.testing.assert_array_equal(encode([" 1.5 ", "", "  ", None, "-2e3"]), [1.5, np.nan, np.nan, np.nan, -2000])


def test_whole_numbers_beyond_53_bits_are_rounded_not_refused() -> None:
    assert encode([2**60 + 1], pa.int64()) == [2.0**60]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["1", "2", "old"], "Column 'n', row 2: 'old' is not a number; give a finite number or leave the cell empty."),
        ([1.0, float("inf")], "Column 'n', row 1: inf is infinite or too large for 32 bits"),
        ([1.0, 2.0, -1e39], "Column 'n', row 2: -1e+39 is infinite or too large for 32 bits"),
        ([None, "inf"], "Column 'n', row 1: 'inf' is infinite or too large for 32 bits"),
        ([[1.0]], "Column 'n' holds cells of type list<item: double>"),
    ],
)
def test_the_first_bad_cell_is_named(cells: Any, words: str) -> None:
    for act in (fit, encode):
        with pytest.raises(SchemaError) as caught:
            act(cells)
        assert str(caught.value).startswith(words)


def test_quantiles_are_the_middle_nine_tenths_to_three_digits() -> None:
    # Of 0 .. 80,080 the 5 % quantile is 4,004 and the levels lie 11.25 % or 9,009 apart: 13,013, 22,022, ...
    column = fit(np.arange(80_081))
    assert column.quantiles == (4000, 13000, 22000, 31000, 40000, 49000, 58100, 67100, 76100)
    assert column.integer
    assert not column.has_missing


def test_under_five_known_cells_leave_no_trace() -> None:
    column = fit([1.25, None, 3.5, 4.5])
    assert column.quantiles == ()
    assert column.draw(np.random.default_rng(0)) is None


def test_draws_lie_between_the_quantiles_and_are_whole_where_training_was() -> None:
    rng = np.random.default_rng(0)
    column = fit([*range(0, 1000), None])
    drawn = [column.draw(rng) for _ in range(500)]
    known = [value for value in drawn if value is not None]
    assert 0 < len(known) < 500  # a tenth is missing, as training had missing cells
    assert all(isinstance(value, int) and 49 <= value <= 951 for value in known)
    assert isinstance(fit([0.5, 1.5, 2.5, 3.5, 9.0]).draw(rng), float)


def test_the_largest_floats_survive_rounding_to_three_digits() -> None:
    largest = float(np.finfo(np.float32).max)
    column = fit([largest] * 5)
    assert encode([column.draw(np.random.default_rng(0))]) == [pytest.approx(largest, rel=0.005)]


def test_the_wire_takes_numbers_only() -> None:
    wire: TypeAdapter[Any] = TypeAdapter(NumericColumn(name="n").wire_type())
    assert wire.validate_python(3) == 3.0
    assert wire.validate_json("-2.5") == -2.5
    for bad in (True, "3", 1e39, 10**400, float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            wire.validate_python(bad)
    with pytest.raises(ValidationError):
        wire.validate_json("NaN")


@settings(deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=8))
def test_whole_numbers_of_64_bits_are_rounded_as_python_does(cells: list[int | None]) -> None:
    wanted = [np.float32("nan") if cell is None else np.float32(float(cell)) for cell in cells]
    np.testing.assert_array_equal(encode(cells, pa.int64()), np.array(wanted, np.float32))
