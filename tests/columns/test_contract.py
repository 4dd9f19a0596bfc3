"""What every kind of input column promises, also kinds written tomorrow."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pictures import noise
from pydantic import TypeAdapter, ValidationError

from mtl_bento.columns._base import COLUMNS, Column, blank
from mtl_bento.errors import SchemaError
from mtl_bento.schema import Schema
from mtl_bento.wire import table_to_rows

CELLS: list[Any] = [
    pa.array([1.5, -2.0, None, 3.25, 1e6] * 5),
    pa.array([1, 2, 3, None, 4] * 5),
    pa.array(["a", "b", None, "c", "a"] * 6),
    pa.array([True, False, None] * 8),
    pa.array(["2013-01-02", "2014-05-06T07:08:09", None] * 7),
    pa.array([[1.0, 2.0], None, [3.0, None]] * 5),
    pa.array([noise(0), None, noise(1, kind="JPEG"), noise(2, 70, 33, "WEBP")] * 2),
    pa.array(["Take me to Boston, please!", None, "", "去波士顿 😀", "Ça va? Нет."] * 5),
]
"""Columns of several kinds; each kind of input takes at least one of them."""
OPTIONS = {"text": {"backbone": "tokens"}}
"""What a kind is asked for where its default needs a package that may not be installed."""


def fitted(kind: str) -> list[tuple[Column, Any]]:
    """Return the columns that the kind learns from the cells that it takes, with those cells."""
    found = []
    for cells in CELLS:
        values = pa.chunked_array([cells])
        try:
            column = COLUMNS.class_of(COLUMNS.spec_class(kind))
            found.append((column.chosen("列 'x'", values, OPTIONS.get(kind, {})), values))
        except SchemaError:
            continue
    assert found, f"add cells for {kind!r} to CELLS"
    return found


every_kind = pytest.mark.parametrize("kind", sorted(COLUMNS.kinds()))


@every_kind
def test_encodes_into_its_own_dtype_with_as_many_features_as_it_says(kind: str) -> None:
    for column, values in fitted(kind):
        encoded = column.encode(values)
        assert encoded.shape == (len(values), column.n_features)
        assert encoded.dtype == column.dtype
        assert isinstance(column.block, str)
        assert column.max_rows >= 1


@every_kind
def test_no_rows_and_one_row_and_all_missing_are_ordinary(kind: str) -> None:
    for column, values in fitted(kind):
        assert column.encode(values.slice(0, 0)).shape == (0, column.n_features)
        np.testing.assert_array_equal(column.encode(values.slice(1, 1)), column.encode(values)[1:2])
        for missing in (pa.nulls(3), pa.nulls(3, values.type)):
            encoded = column.encode(pa.chunked_array([missing]))
            expected = np.full((3, column.n_features), blank(column.dtype), column.dtype)
            np.testing.assert_array_equal(encoded, expected)


@every_kind
def test_rows_are_independent_of_each_other_and_of_the_chunks(kind: str) -> None:
    for column, values in fitted(kind):
        whole = column.encode(values)
        single = np.concatenate([column.encode(values.slice(row, 1)) for row in range(len(values))])
        np.testing.assert_array_equal(whole, single)
        chunks = pa.chunked_array([values.slice(0, 2).combine_chunks(), values.slice(2).combine_chunks()])
        np.testing.assert_array_equal(whole, column.encode(chunks))


@every_kind
def test_json_round_trip_keeps_the_column_and_its_types(kind: str) -> None:
    for column, values in fitted(kind):
        back = COLUMNS.parse(json.loads(column.model_dump_json()))
        assert back == column
        assert repr(back) == repr(column)  # 1, 1.0 and True are equal, yet not the same level
        np.testing.assert_array_equal(back.encode(values), column.encode(values))


@every_kind
def test_drawn_cells_pass_the_wire_and_are_encoded(kind: str) -> None:
    rng = np.random.default_rng(0)
    for column, _ in fitted(kind):
        drawn = [column.draw(rng) for _ in range(40)]
        assert json.loads(json.dumps(drawn, allow_nan=False)) == drawn
        wire: TypeAdapter[Any] = TypeAdapter(column.wire_type() | None)
        sent = [wire.validate_json(json.dumps(cell)) for cell in drawn]
        encoded = column.encode(pa.chunked_array([pa.array(sent, column.arrow_type())]))
        known = np.array([cell is not None for cell in drawn])
        assert known.any()
        missing = np.isnan(encoded) if column.dtype == np.float32 else encoded == blank(column.dtype)
        np.testing.assert_array_equal(missing.all(axis=1), ~known)


@every_kind
def test_draws_repeat_with_the_seed(kind: str) -> None:
    for column, _ in fitted(kind):
        first, second = ([column.draw(rng) for _ in range(9)] for rng in (np.random.default_rng(s) for s in (7, 7)))
        assert first == second


@every_kind
def test_what_comes_over_the_wire_is_encoded_like_the_table(kind: str) -> None:
    for column, values in fitted(kind):
        wire: TypeAdapter[Any] = TypeAdapter(column.wire_type() | None)
        rows = table_to_rows(pa.table({column.name: values}), Schema(columns=(column,)))
        sent = [wire.validate_json(json.dumps(row.get(column.name))) for row in rows]
        encoded = column.encode(pa.chunked_array([pa.array(sent, column.arrow_type())]))
        np.testing.assert_array_equal(encoded, column.encode(values))


@every_kind
def test_the_wire_refuses_what_is_of_no_kind(kind: str) -> None:
    for column, _ in fitted(kind):
        wire: TypeAdapter[Any] = TypeAdapter(column.wire_type())
        for bad in ({"a": 1}, [[1.0]], math.nan, math.inf, -math.inf, None, "\ud800"):
            with pytest.raises(ValidationError):
                wire.validate_python(bad)


@every_kind
def test_cells_of_another_kind_are_one_line_naming_the_column(kind: str) -> None:
    column, _ = fitted(kind)[0]
    for cells in (pa.array([{"a": 1}]), pa.array([b"\xff"])):
        with pytest.raises(SchemaError, match="Column \"列 'x'\"") as caught:
            column.encode(pa.chunked_array([cells]))
        assert "\n" not in str(caught.value)


@every_kind
def test_describes_itself_in_a_few_words(kind: str) -> None:
    for column, _ in fitted(kind):
        assert 0 < len(column.describe()) < 60
        assert "\n" not in column.describe()


def test_columns_schema_and_table_import_neither_torch_nor_pandas_nor_polars() -> None:
    code = (
        "import sys, mtl_bento.schema; from mtl_bento.columns._base import COLUMNS; COLUMNS.kinds();"
        "print([name for name in ('torch', 'pandas', 'polars', 'optuna', 'PIL', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
