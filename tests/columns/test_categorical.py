"""Categories."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mtl_bento import table as tables
from mtl_bento.columns import categorical
from mtl_bento.columns.categorical import CategoricalColumn, text_of
from mtl_bento.errors import SchemaError


def fit(cells: Any, kind: pa.DataType | None = None) -> CategoricalColumn:
    return CategoricalColumn.fit("c", pa.chunked_array([pa.array(cells, kind)]))


def codes(column: CategoricalColumn, cells: Any, kind: pa.DataType | None = None) -> list[int]:
    return [int(code) for code in column.encode(pa.chunked_array([pa.array(cells, kind)]))[:, 0]]


def test_levels_are_ordered_by_frequency_then_by_first_cell() -> None:
    column = fit(["b"] * 5 + ["a"] * 5 + ["c"] * 6)
    assert column.levels == ("c", "b", "a")
    assert codes(column, ["a", "b", "c", "new", None, ""]) == [2, 1, 0, 3, -1, -1]
    assert (column.has_missing, column.has_other) == (False, False)


def test_levels_of_fewer_than_five_rows_are_other() -> None:
    column = fit(["common"] * 5 + ["rare"] * 4 + [None])
    assert column.levels == ("common",)
    assert (column.has_missing, column.has_other) == (True, True)
    assert codes(column, ["rare"]) == [1]
    assert "rare" not in column.model_dump_json()


def test_at_most_a_thousand_levels_are_kept() -> None:
    column = fit([f"v{number}" for number in range(1001)] * 5 + ["v1000"])
    assert len(column.levels) == 1000
    assert column.levels[0] == "v1000"
    assert column.has_other


@pytest.mark.parametrize(
    ("cells", "kind", "levels"),
    [
        ([True] * 6 + [False] * 5 + [None], None, (True, False)),
        ([3] * 6 + [-1] * 5, pa.int8(), (3, -1)),
        ([2**63 + 1] * 5, pa.uint64(), (2**63 + 1,)),
        ([3.0] * 6 + [1.0] * 5 + [float("nan")], pa.float64(), (3, 1)),
        ([0.1] * 6 + [2.0] * 5, pa.float32(), (0.1, 2.0)),
        (["3.0"] * 5, None, ("3.0",)),
        ([dt.date(2013, 1, 2)] * 5, None, ("2013-01-02",)),
        ([None, None], pa.null(), ()),
    ],
)
def test_levels_keep_their_own_type_and_whole_floats_are_whole(cells: Any, kind: Any, levels: tuple[Any, ...]) -> None:
    column = fit(cells, kind)
    assert column.levels == levels
    assert [type(level) for level in column.levels] == [type(level) for level in levels]
    back = CategoricalColumn.model_validate_json(column.model_dump_json())
    assert [type(level) for level in back.levels] == [type(level) for level in levels]


def test_one_level_in_any_of_its_types_is_one_code() -> None:
    numbers = fit([3] * 6 + [10] * 5)
    for cells, kind in [([3, 10], None), ([3.0, 10.0], None), (["3", "10"], None), (["3.0", "10.00"], None)]:
        assert codes(numbers, cells, kind) == [0, 1]
    flags = fit([True] * 6 + [False] * 5)
    for cells in ([True, False], ["True", "False"], ["true", "FALSE"], [1, 0], [1.0, 0.0], ["1", "0"]):
        assert codes(flags, cells) == [0, 1]
    assert codes(fit([1] * 6 + [0] * 5), [True, False]) == [0, 1]


def test_zero_padded_and_mixed_texts_stay_apart() -> None:
    column = fit(["02139"] * 6 + ["2139"] * 5)
    assert codes(column, ["02139", "2139", "2139.0"]) == [0, 1, 1]
    assert codes(fit(["yes"] * 5 + ["1"] * 6), [True]) == [2]  # 1 is true only where all levels are 0 or 1


def test_dictionaries_views_and_frames_are_read() -> None:
    column = fit(["x"] * 6 + ["y"] * 5)
    for values in (
        pa.array(["x", None, "y"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array(["x", None, "y"])),
        pa.array(["x", "", "y"], pa.string_view()),
        tables.read(pd.DataFrame({"c": pd.Categorical(["x", None, "y"])}))["c"],
        tables.read(pl.DataFrame({"c": pl.Series(["x", None, "y"], dtype=pl.Enum(["y", "x"]))}))["c"],
    ):
        chunked = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
        assert column.encode(chunked)[:, 0].tolist() == [0, -1, 1]


def test_an_infinity_is_named_with_its_row() -> None:
    with pytest.raises(SchemaError, match="Column 'c', row 1: inf is infinite; give a finite value"):
        fit([0.5, float("inf")])


@given(st.one_of(st.booleans(), st.integers(), st.floats(-1e15, 1e15), st.text()))
def test_canonical_text_is_stable_and_survives_json(value: Any) -> None:
    text = text_of(value)
    assert text_of(text) == text
    assert text_of(json.loads(json.dumps(value))) == text
    assert text_of(str(value)) == text


@given(st.integers(-(2**53), 2**53))
def test_canonical_text_of_a_whole_number_is_that_of_its_float(value: int) -> None:
    assert text_of(value) == text_of(float(value)) == str(value)


def test_minus_zero_is_zero() -> None:
    assert {text_of(value) for value in (0, 0.0, -0.0, "0", "-0", "0.0", "-0.0")} == {"0"}


def test_shortest_digits_of_32_bits_equal_those_of_a_request() -> None:
    column = fit([0.1] * 5 + [0.7] * 6, pa.float32())
    assert codes(column, [0.1, 0.7], pa.float64()) == [1, 0]
    assert codes(column, ["0.1"]) == [1]


def test_the_wire_takes_plain_values_as_their_canonical_text() -> None:
    wire: TypeAdapter[Any] = TypeAdapter(CategoricalColumn(name="c").wire_type())
    assert [wire.validate_json(text) for text in ('"a"', "3", "3.0", "true", '"True"', "0.5")] == [
        "a",
        "3",
        "3",
        "true",
        "true",
        "0.5",
    ]
    with pytest.raises(ValidationError, match="is not valid Unicode text"):
        wire.validate_python("\ud800")


def test_a_column_without_common_levels_still_encodes_and_draws_nothing() -> None:
    column = fit(["a", "b"])
    assert column.levels == ()
    assert codes(column, ["a", None]) == [0, -1]
    assert column.draw(np.random.default_rng(0)) is None
    assert column.describe() == "category of 0 levels and others"


TEXTS = st.one_of(
    st.none(),
    st.text(max_size=6),
    st.sampled_from(["", "a", "A", "True", "tRuE", "false", "FALSE ", "0", "-0", "-0.0", "3", "3.0", "3.00", "03.0"]),
    st.from_regex(r"-?[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True),
)
LEVELS = st.sampled_from(["a", "A", 3, 0, True, False, 2.5, "03.0"])
calm = settings(deadline=None, derandomize=True)
"""The same examples on every machine, however busy."""


@calm
@given(
    st.lists(TEXTS, max_size=20), st.lists(st.sampled_from(["a", "A", 3, 0, True, False, 2.5, "03.0"]), unique_by=str)
)
def test_texts_looked_up_one_by_one_have_the_codes_of_arrows_dictionaries(cells: Any, levels: Any) -> None:
    column = CategoricalColumn(name="c", levels=tuple(levels))
    few = codes(column, cells, pa.string())
    with mock.patch.object(categorical, "FEW", -1):
        assert codes(column, cells, pa.large_string()) == few


@calm
@given(st.one_of(TEXTS.filter(lambda text: text is not None), st.from_regex(r"[Tt][Rr][Uu][Ee]", fullmatch=True)))
def test_canonical_text_is_told_by_the_last_letter(text: Any) -> None:
    if text.lower() in ("true", "false"):
        wanted = text.lower()
    else:
        whole = re.fullmatch(r"(-?(?:0|[1-9][0-9]*))\.0+", text)
        wanted = str(int(whole[1])) if whole else "0" if text == "-0" else text
    assert text_of(text) == wanted


def test_a_copy_with_other_levels_has_their_codes() -> None:
    column = CategoricalColumn(name="c", levels=("a", "b"))
    assert codes(column, ["a", "b"]) == [0, 1]
    changed = column.model_copy(update={"levels": ("b", "a")})
    assert codes(changed, ["a", "b"]) == [1, 0]
    assert codes(column, ["a", "b"]) == [0, 1]
    assert changed != column == CategoricalColumn(name="c", levels=("a", "b"))
