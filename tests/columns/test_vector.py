"""Vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mtl_bento import table as tables
from mtl_bento.columns.vector import VectorColumn
from mtl_bento.errors import SchemaError

NAN = float("nan")


def fit(cells: Any, kind: pa.DataType | None = None) -> VectorColumn:
    return VectorColumn.fit("v", pa.chunked_array([pa.array(cells, kind)]))


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.list_(pa.int32()),
        pa.large_list(pa.float16()),
        pa.list_(pa.float32(), 2),
        pa.list_view(pa.float32()),
        pa.large_list_view(pa.int64()),
    ],
)
def test_every_kind_of_list_is_read_with_missing_lists_and_numbers(kind: pa.DataType) -> None:
    values = pa.chunked_array([pa.array([[1, 2], None, [3, None]], kind)])
    column = VectorColumn.fit("v", values)
    assert column.size == 2
    np.testing.assert_array_equal(column.encode(values), np.array([[1, 2], [NAN, NAN], [3, NAN]], np.float32))
    np.testing.assert_array_equal(column.encode(values.slice(1, 2)), np.array([[NAN, NAN], [3, NAN]], np.float32))


def test_lists_as_they_stand_in_csv_are_read() -> None:
    texts = ["[1, 2.5]", None, " [ -3e1 , null ]", ""]
    np.testing.assert_array_equal(
        fit(texts).encode(pa.chunked_array([texts])),
        np.array([[1, 2.5], [NAN, NAN], [-30, NAN], [NAN, NAN]], np.float32),
    )


def test_vectors_survive_csv(tmp_path: Any) -> None:
    table = pa.table({"v": [[0.1, 2.0], None, [3.0, -4.5]]})
    tables.write(table, tmp_path / "t.csv")
    column = fit([[0.0, 0.0]])
    np.testing.assert_array_equal(column.encode(tables.read(tmp_path / "t.csv")["v"]), column.encode(table["v"]))


def test_numpy_vectors_of_a_pandas_frame_are_read() -> None:
    frame = pd.DataFrame({"v": [np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32)]})
    assert fit([[0, 0]]).encode(tables.read(frame)["v"]).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([[1.0], [1.0, 2.0]], "Column 'v', row 1: [1.0, 2.0] has length 2, not 1; give 1 numbers"),
        ([[1.0], None, []], "Column 'v', row 2: [] has length 0, not 1"),
        ([None, [np.inf]], "Column 'v', row 1: [inf] holds a number that is infinite or too large for 32 bits; give"),
        ([[1.0], None, [-1e39]], "Column 'v', row 2: [-1e+39] holds a number that is infinite or too large"),
        (["[1]", "[inf]"], "Column 'v', row 1: [inf] holds a number that is infinite"),
        (["[1]", "[x]"], "Column 'v', row 1: '[x]' is not a list of numbers; give a list of numbers such as [0.5, 1]"),
        (["[1]", "[2]", "[1e, 2]"], "Column 'v', row 2: '[1e, 2]' is not a list of numbers"),
        (["[1]", None, "[1,,2]"], "Column 'v', row 2: '[1,,2]' is not a list of numbers"),
        (["[1]", "1, 2"], "Column 'v', row 1: '1, 2' is not a list of numbers"),
        (["[1]", "[[1]]"], "Column 'v', row 1: '[[1]]' is not a list of numbers"),
        (["[1]", "[]"], "Column 'v', row 1: '[]' is not a list of numbers"),
        (["[1]", "["], "Column 'v', row 1: '[' is not a list of numbers"),
        ([["a"]], "Column 'v' holds cells of type list<item: string>; give lists of numbers of one length."),
        ([[[1.0]]], "Column 'v' holds cells of type list<item: list<item: double>>"),
        ([1.0], "Column 'v' holds cells of type double"),
    ],
)
def test_the_first_bad_cell_is_named(cells: Any, words: str) -> None:
    for act in (fit, lambda given: VectorColumn(name="v", size=1).encode(pa.chunked_array([pa.array(given)]))):
        with pytest.raises(SchemaError) as caught:
            act(cells)
        assert str(caught.value).startswith(words)


@pytest.mark.parametrize("cells", [[None, None], [[], []], ["", None]])
def test_nothing_to_learn_from_says_what_to_do(cells: Any) -> None:
    with pytest.raises(SchemaError, match="leave it out with `ignore:`"):
        fit(cells)


def test_the_wire_takes_lists_of_the_right_length_and_nulls_in_them() -> None:
    wire: TypeAdapter[Any] = TypeAdapter(VectorColumn(name="v", size=2).wire_type())
    assert wire.validate_json("[1, null]") == [1.0, None]
    for bad in ("[1]", "[1, 2, 3]", '["1", 2]', "[true, 2]", "[NaN, 1]", "[1e39, 1]", "1"):
        with pytest.raises(ValidationError):
            wire.validate_json(bad)


NUMBERS = st.one_of(st.none(), st.floats(-1e30, 1e30), st.just(NAN))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.none(), st.lists(NUMBERS, min_size=2, max_size=2)), max_size=6), st.integers(0, 2))
def test_plain_lists_are_encoded_as_every_other_kind_of_list(cells: Any, start: int) -> None:
    column = VectorColumn(name="v", size=2)
    expected = column.encode(pa.chunked_array([pa.array(cells, pa.large_list(pa.float64()))]).slice(start))
    for kind in (pa.list_(pa.float64()), pa.list_(pa.float64(), 2)):
        encoded = column.encode(pa.chunked_array([pa.array(cells, kind)]).slice(start))
        np.testing.assert_array_equal(encoded, expected)
