"""The schema: columns into blocks."""

from __future__ import annotations

import datetime as dt
import json

import numpy as np
import pyarrow as pa
import pytest

from mtl_bento import schema as schemas
from mtl_bento.columns.categorical import CategoricalColumn
from mtl_bento.columns.datetime import DatetimeColumn
from mtl_bento.columns.numeric import NumericColumn
from mtl_bento.columns.vector import VectorColumn
from mtl_bento.errors import SchemaError, SpecError, UnknownKindError
from mtl_bento.schema import Schema

SCHEMA = Schema(
    columns=(
        NumericColumn(name="age", quantiles=(1.0, 2.5)),
        CategoricalColumn(name="州", levels=("CA", 3, True)),
        DatetimeColumn(name="when"),
        VectorColumn(name="v", size=2),
        CategoricalColumn(name="c 'x'.y", levels=("a",)),
    ),
    targets=("y",),
    ignored=("id",),
)


def test_blocks_keep_the_order_of_the_columns() -> None:
    names = {block: [column.name for column in columns] for block, columns in SCHEMA.blocks.items()}
    assert names == {"numeric": ["age", "when"], "categorical": ["州", "c 'x'.y"], "vector": ["v"]}


def test_encode_puts_columns_of_a_block_side_by_side() -> None:
    table = pa.table(
        {"c 'x'.y": ["a", "b"], "州": ["3", None], "age": [30, None], "v": [[1, 2], None], "when": ["1970-01-02", None]}
    )
    blocks = SCHEMA.encode(table)
    assert {block: (array.shape, array.dtype) for block, array in blocks.items()} == {
        "numeric": ((2, 1 + 5), np.float32),
        "categorical": ((2, 2), np.int64),
        "vector": ((2, 2), np.float32),
    }
    assert all(array.flags["C_CONTIGUOUS"] for array in blocks.values())
    assert blocks["categorical"].tolist() == [[1, 0], [-1, 1]]
    assert blocks["vector"][0].tolist() == [1, 2]
    assert blocks["numeric"][0, :2].tolist() == [30, 1]
    assert np.isnan(blocks["numeric"][1]).all()


def test_missing_columns_are_missing_cells_and_unknown_ones_are_passed_over() -> None:
    some = pa.table({"age": [1.0], "unknown": ["?"], "y": [1]})
    full = pa.table({"age": [1.0], "州": [None], "when": [None], "v": pa.array([None], pa.list_(pa.float32()))})
    for block, array in SCHEMA.encode(some).items():
        np.testing.assert_array_equal(array, SCHEMA.encode(full)[block])


def test_no_rows_encode_to_no_rows() -> None:
    assert {
        block: array.shape[0] for block, array in SCHEMA.encode(pa.table({"age": pa.array([], pa.int64())})).items()
    }
    assert SCHEMA.encode(pa.table({"age": pa.array([], pa.int64())}))["numeric"].shape == (0, 6)


def test_a_table_without_any_input_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"The table has none of the model's inputs \('age', '州', 'when', 'v', "):
        SCHEMA.encode(pa.table({"y": [1]}))


def test_json_round_trip_keeps_kinds_and_types_of_levels() -> None:
    back = Schema.model_validate(json.loads(SCHEMA.model_dump_json()))
    assert back == SCHEMA
    assert [type(column) for column in back.columns] == [type(column) for column in SCHEMA.columns]
    assert [type(level) for level in back.columns[1].levels] == [str, int, bool]  # type: ignore[attr-defined]
    assert Schema.model_validate_json(SCHEMA.model_dump_json()) == SCHEMA


def test_unknown_kinds_and_repeated_names_are_refused() -> None:
    with pytest.raises(UnknownKindError, match="There is no input kind 'numerical'; did you mean 'numeric'"):
        Schema.model_validate({"columns": [{"kind": "numerical", "name": "a"}]})
    with pytest.raises(SpecError, match="names 'a' more than once"):
        Schema(columns=(NumericColumn(name="a"), NumericColumn(name="a")))
    with pytest.raises(SpecError, match="'a' cannot be an input and a target or ignored"):
        Schema(columns=(NumericColumn(name="a"),), targets=("a",))


def test_errors_name_the_row_in_the_table() -> None:
    with pytest.raises(SchemaError, match="Column 'age', row 2: 'old' is not a number"):
        SCHEMA.encode(pa.table({"age": ["1", "2", "old"]}))


def test_blocks_written_in_tiles_equal_their_columns_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "TOGETHER", 2)
    monkeypatch.setattr(schemas, "TILE_BYTES", 24)  # one to three rows
    names = [f"c{i}" for i in range(5)]
    wide = Schema(columns=(*(NumericColumn(name=name) for name in names), DatetimeColumn(name="when")))
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(7, 5)).astype(np.float32)
    days = [dt.date(1970, 1, 1 + i) for i in range(7)]
    table = pa.table({**dict(zip(names, numbers.T, strict=True)), "when": days})
    block = wide.encode(table)["numeric"]
    np.testing.assert_array_equal(block[:, :5], numbers)
    np.testing.assert_array_equal(block[:, 5:], wide.columns[5].encode(table["when"]))
