"""Requests into cells and tables, tables into requests, and what counts as the same answer."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_bento import wire
from mtl_bento.columns.categorical import CategoricalColumn
from mtl_bento.columns.datetime import DatetimeColumn
from mtl_bento.columns.numeric import NumericColumn
from mtl_bento.columns.vector import VectorColumn
from mtl_bento.errors import RequestError, SchemaError
from mtl_bento.schema import Schema

SCHEMA = Schema(
    columns=(
        NumericColumn(name="age"),
        NumericColumn(name="вес, кг"),
        CategoricalColumn(name="state", levels=("CA", 3, True)),
        DatetimeColumn(name="when"),
        VectorColumn(name="embedding", size=2),
    ),
    targets=("分类",),
    ignored=("id",),
)
READER = wire.Reader(SCHEMA)


def body(*rows: Any, **more: Any) -> bytes:
    return json.dumps({"rows": list(rows), **more}).encode()


def refusal(raw: bytes | str) -> str:
    with pytest.raises((SchemaError, RequestError)) as caught:
        READER.read(raw.encode() if isinstance(raw, str) else raw)
    return str(caught.value)


def test_a_row_becomes_cells_in_the_order_of_the_columns() -> None:
    row = {"embedding": [1, 2.5], "state": "CA", "age": 39, "when": "2024-05-02"}
    assert READER.read(body(row)) == [(39.0, None, "CA", "2024-05-02", [1.0, 2.5])]


def test_a_missing_field_null_and_an_empty_row_are_missing_values() -> None:
    assert READER.read(body({}, {"age": None})) == [(None,) * 5, (None,) * 5]


def test_targets_and_ignored_columns_are_accepted_and_dropped() -> None:
    assert READER.read(body({"分类": {"any": "thing"}, "id": 7, "age": 1})) == [(1.0, None, None, None, None)]


@pytest.mark.parametrize("value", [3, 3.0, "3", "3.0"])
def test_three_is_one_level_however_it_is_written(value: object) -> None:
    assert READER.read(body({"state": value}))[0][2] == "3"


def test_what_pandas_writes_as_json_is_read() -> None:
    frame = pd.DataFrame({"age": [39, None], "state": [3.0, None], "when": pd.to_datetime(["2024-05-02 07:15", None])})
    rows = json.loads(frame.to_json(orient="records", date_format="iso"))
    assert READER.read(body(*rows)) == [(39.0, None, "3", "2024-05-02T07:15:00.000", None), (None,) * 5]
    # Its older form of dates: 2024-05-02T07:15Z is 1714634100 seconds after 1970 (date -u -d ... +%s).
    assert READER.read(body({"when": 1714634100000}))[0][3] == "1714634100000"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"age": "old"}, "rows[1].age: 'old' is not a number; send a number or null"),
        ({"age": "1"}, "rows[1].age: '1' is not a number; send a number or null"),
        ({"age": True}, "rows[1].age: true is not a number; send a number or null"),
        ({"вес, кг": []}, "rows[1]['вес, кг']: [] is not a number; send a number or null"),
        ({"age": 1e39}, "rows[1].age: 1e+39 is too large for a 32-bit number"),
        (
            {"state": [1]},
            "rows[1].state: [1] is not a text, a number, true or false; send a text, a number, true, false or null",
        ),
        ({"when": "soon"}, "rows[1].when: 'soon' is not a date; send ISO text or milliseconds since 1970"),
        ({"embedding": [1]}, "rows[1].embedding: has length 1; send 2 numbers or null"),
        ({"embedding": [1, "x"]}, "rows[1].embedding[1]: 'x' is not a number; send a number or null"),
        ({"embedding": 5}, "rows[1].embedding: 5 is not a list of numbers; send a list of numbers or null"),
        ({"agee": 1}, "rows[1].agee: there is no such name; did you mean 'age'?"),
        (7, 'rows[1]: 7 is not an object; send {"column": value, ...}'),
    ],
)
def test_a_bad_row_is_named_with_what_would_be_right(row: object, sentence: str) -> None:
    assert refusal(body({"age": 1}, row)) == sentence


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (b'{"rows": []}', "rows: there is no row; send"),
        (b"{}", "rows: is missing; send"),
        (b'{"rows": {}}', "rows: {} is not a list of objects; send"),
        (b"[]", "[] is not an object; send"),
        (b"", "The body is not JSON (Expecting value, character 0)"),
        (b'{"rows": [{"age": NaN}]}', "The body holds NaN, which is not JSON"),
        (b'{"rows": [{"id": -Infinity}]}', "The body holds -Infinity, which is not JSON"),
        (b'{"rows": [{"age": 1e999}]}', "rows[0].age: Infinity is not a number"),
        (b'{"rows": [{"age": 1, "age": 2}]}', "The body gives the key 'age' twice"),
        (b'{"rows": [{}], "rows": [{}]}', "The body gives the key 'rows' twice"),
        (b'{"rows": [{"state": "\\ud800"}]}', "The body is not UTF-8 text"),
        (b"\xff\xfe", "The body is not UTF-8 text"),
        (b"[" * 100_000, "The body is nested too deeply"),
        (b'{"rows": [{"age": ' + b"9" * 5000 + b"}]}", "The body is not JSON that can be read"),
        (b'{"rows": [{}], "options": 1}', "options: there is no such name; send 'rows'"),
        (b'{"rows": [{}], "rowz": 1}', "rowz: there is no such name; did you mean 'rows'?"),
    ],
)
def test_a_bad_body_is_refused_in_one_line(raw: bytes, part: str) -> None:
    sentence = refusal(raw)
    assert sentence.startswith(part)
    assert "\n" not in sentence


def test_a_thousand_rows_pass_and_one_more_does_not() -> None:
    assert len(READER.read(body(*[{}] * 1000))) == 1000
    assert refusal(body(*[{}] * 1001)) == "rows: there are 1001 rows; send at most 1000 in one request"


def test_every_bad_place_is_listed_up_to_a_hundred() -> None:
    with pytest.raises(SchemaError) as caught:
        READER.read(body(*[{"age": "a", "state": {}}] * 60))
    assert len(caught.value.detail) == 100
    assert caught.value.detail[1] == {
        "loc": ["rows", 0, "state"],
        "msg": "{} is not a text, a number, true or false; send a text, a number, true, false or null",
        "type": "bool_type",
    }


def test_a_long_value_is_cut_in_the_sentence() -> None:
    assert len(refusal(body({"age": "x" * 10_000}))) < 150


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_and_nothing_else(raw: bytes) -> None:
    try:
        READER.read(raw)
    except (RequestError, SchemaError) as error:
        assert "\n" not in str(error)  # noqa: PT017 - most bytes are refused, some are not


def test_cells_become_a_table_in_the_types_that_the_columns_ask_for() -> None:
    table = wire.cells_to_table(READER.read(body({"age": 39, "embedding": [1, None]}, {})), SCHEMA)
    assert table.to_pylist() == [
        {"age": 39.0, "вес, кг": None, "state": None, "when": None, "embedding": [1.0, None]},
        dict.fromkeys(SCHEMA.names),
    ]
    assert table.schema.types == [column.arrow_type() for column in SCHEMA.columns]


def test_no_rows_become_an_empty_table() -> None:
    assert wire.cells_to_table([], SCHEMA).num_rows == 0


def test_rows_of_any_number_become_a_table_and_errors_keep_their_row() -> None:
    assert wire.rows_to_table([{"age": i} for i in range(2500)], SCHEMA)["age"].to_pylist() == list(range(2500))
    with pytest.raises(SchemaError, match=r"^rows\[2100\]\.age: 'x' is not a number") as caught:
        wire.rows_to_table([{"age": "x" if i == 2100 else i} for i in range(2500)], SCHEMA)
    assert caught.value.detail[0]["loc"] == ["rows", 2100, "age"]


def test_a_table_becomes_rows_that_json_holds() -> None:
    table = pa.table(
        {
            "age": pa.array([39.0, np.nan, 2.5]),
            "вес, кг": pa.array([0.1, None, 3.0], pa.float32()),
            "state": pa.array(["CA", None, "TX"]).dictionary_encode(),
            "when": pa.array([dt.datetime(2024, 5, 2, 7, 15), None, None], pa.timestamp("us")),
            "embedding": pa.array([[1.0, np.nan], None, [2, 3]], pa.list_(pa.float32())),
            "分类": pa.array(["a", "b", "c"]),
            "unknown": pa.array([1, 2, 3]),
        }
    )
    assert wire.table_to_rows(table, SCHEMA) == [
        # 0.1 of 32 bits is sent as 0.1, whole numbers as whole ones, targets and unknown columns not at all.
        {"age": 39, "вес, кг": 0.1, "state": "CA", "when": "2024-05-02 07:15:00.000000", "embedding": [1.0, None]},
        {},
        {"age": 2.5, "вес, кг": 3, "state": "TX", "embedding": [2.0, 3.0]},
    ]


def test_text_is_sent_as_what_it_spells_where_the_column_is_no_text() -> None:
    # As numbers in a column with "n/k" and lists stand in CSV.
    table = pa.table({"age": ["39", " ", "old"], "state": ["3", "CA", ""], "embedding": ["[0.5, 1]", None, None]})
    assert wire.table_to_rows(table, SCHEMA) == [
        {"age": 39, "state": "3", "embedding": [0.5, 1]},
        {"state": "CA"},
        {"age": "old", "state": ""},
    ]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"age": [1.0, float("inf")]}, "Column 'age', row 1: inf is infinite"),
        ({"embedding": [[1.0, float("-inf")]]}, "Column 'embedding', row 0: -inf is infinite"),
        ({"state": [b"CA"]}, "Column 'state' holds cells of type large_binary"),
        ({"other": [1]}, "The table has none of the model's inputs"),
    ],
)
def test_what_a_request_cannot_hold_is_refused_before_it_is_sent(column: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        wire.table_to_rows(pa.table(column), SCHEMA)


def test_a_table_sent_as_rows_is_encoded_as_the_table_itself(table: pa.Table, model: Any) -> None:
    sent = json.loads(json.dumps(wire.table_to_rows(table, model.schema), allow_nan=False))
    there = model.schema.encode(wire.rows_to_table(sent, model.schema))
    for block, here in model.schema.encode(table).items():
        np.testing.assert_array_equal(there[block], here)


ANSWER = {
    "kind": {"value": "a", "probability": 0.6, "probabilities": {"a": 0.6, "b": 0.4}},
    "hours": {"value": 100.0, "lower": 90.0, "upper": 110.0},
}


def changed(target: str, **values: object) -> dict[str, Any]:
    return {**ANSWER, target: {**ANSWER[target], **values}}


@pytest.mark.parametrize(
    ("answer", "where"),
    [
        (ANSWER, None),
        (changed("kind", probability=0.600009), None),
        (changed("kind", probability=0.60002), "row 0, target 'kind': probability is 0.60002 instead of 0.6"),
        (changed("kind", probabilities={"a": 0.6, "b": 0.41}), "probabilities.b is 0.41 instead of 0.4"),
        (changed("kind", value="b"), "value is 'b' instead of 'a'"),
        # 1e-5 x (|100| + a spread of 20) is 0.0012.
        (changed("hours", value=100.0011), None),
        (changed("hours", value=100.0013), "value is 100.0013 instead of 100.0"),
        (changed("hours", lower=None), "lower is None instead of 90.0"),
        ({"kind": ANSWER["kind"]}, "row 0: targets kind instead of kind, hours"),
    ],
)
def test_answers_agree_within_the_promised_tolerance(answer: dict[str, Any], where: str | None) -> None:
    found = wire.disagreement([answer], [ANSWER], {"hours": 20.0})
    assert found is None if where is None else where in str(found)


def test_labels_may_differ_at_a_tie() -> None:
    tied = {"kind": {"value": "a", "probability": 0.5, "probabilities": {"a": 0.500004, "b": 0.499996}}}
    other = {"kind": {"value": "b", "probability": 0.5, "probabilities": {"a": 0.499999, "b": 0.500001}}}
    assert wire.disagreement([other], [tied], {}) is None


def test_whether_there_is_a_box_may_differ_at_a_tie() -> None:
    box, none = {"value": {"x": 0.5}, "probability": 0.500004}, {"value": None, "probability": 0.499996}
    assert wire.disagreement([{"car": none}], [{"car": box}], {}) is None
    assert wire.disagreement([{"car": none | {"box": {"x": 0.5}}}], [{"car": box}], {}) is None
    sure = {"value": {"x": 0.5}, "probability": 0.6}
    found = wire.disagreement([{"car": none}], [{"car": sure}], {})
    assert found == "row 0, target 'car': value is None instead of {'x': 0.5}"


def test_cells_of_a_grid_may_differ_at_a_tie_of_theirs() -> None:
    grid = {"value": [[0, 1]], "probabilities": {"0": [[0.500004, 0.2]], "1": [[0.499996, 0.8]]}}
    assert wire.disagreement([{"road": grid | {"value": [[1, 1]]}}], [{"road": grid}], {}) is None
    found = wire.disagreement([{"road": grid | {"value": [[0, 0]]}}], [{"road": grid}], {})
    assert found == "row 0, target 'road': value[0][1] is 0 instead of 1"


def test_spans_are_the_same_or_not() -> None:
    span = {"label": "city", "start": 3, "end": 8, "text": "Paris", "probability": 0.7}
    names = {"value": [span]}
    assert wire.disagreement([{"names": {"value": [span | {"probability": 0.700005}]}}], [{"names": names}], {}) is None
    found = wire.disagreement([{"names": {"value": [span | {"end": 9}]}}], [{"names": names}], {})
    assert found == "row 0, target 'names': value[0].end is 9 instead of 8"
    found = wire.disagreement([{"names": {"value": []}}], [{"names": names}], {})
    assert found is not None
    assert "value is [] instead of" in found


def test_a_different_number_of_answers_is_a_disagreement() -> None:
    assert wire.disagreement([ANSWER], [ANSWER, ANSWER], {}) == "1 answers for 2 rows"


def test_the_documented_request_has_a_field_for_each_input_under_its_own_name() -> None:
    row = wire.request_model(SCHEMA).model_json_schema()["$defs"]["Row"]
    assert list(row["properties"]) == ["age", "вес, кг", "state", "when", "embedding"]
    assert row["additionalProperties"] is False


LIKELY = {"value": "yes", "probability": 0.300004, "probabilities": {"no": 0.699996, "yes": 0.300004}, "set": ["yes"]}
UNLIKELY = {"value": "no", "probability": 0.700001, "probabilities": {"no": 0.700001, "yes": 0.299999}, "set": ["no"]}


def test_a_value_may_differ_at_its_threshold_and_its_probability_with_it() -> None:
    edges = {"rare": {"value": 0.3, "set": 0.9}}
    assert wire.disagreement([{"rare": UNLIKELY}], [{"rare": LIKELY}], {}, edges) is None
    found = wire.disagreement([{"rare": UNLIKELY}], [{"rare": LIKELY}], {}, {"rare": {"value": 0.31}})
    assert found == "row 0, target 'rare': value is 'no' instead of 'yes'"
    # With a threshold one half is no tie.
    even = {"value": "yes", "probability": 0.5, "probabilities": {"no": 0.5, "yes": 0.5}}
    found = wire.disagreement([{"rare": even | {"value": "no"}}], [{"rare": even}], {}, edges)
    assert found == "row 0, target 'rare': value is 'no' instead of 'yes'"


@pytest.mark.parametrize("got", [["a"], ["a", "c"], ["a", "b", "c"]])
def test_a_label_at_the_edge_of_a_set_may_be_in_it_or_not(got: list[str]) -> None:
    shares = {"a": 0.6, "b": 0.200004, "c": 0.199996}
    answer = {"value": "a", "probability": 0.6, "probabilities": shares, "set": ["a", "b"]}
    others = answer | {"set": got}
    assert wire.disagreement([{"kind": others}], [{"kind": answer}], {}, {"kind": {"set": 0.2}}) is None
    found = wire.disagreement([{"kind": others}], [{"kind": answer}], {}, {"kind": {"set": 0.25}})
    assert found is not None
    assert found.startswith("row 0, target 'kind': set")


def test_the_fields_of_an_answer_are_said_in_words() -> None:
    properties = wire.answer_model(ANSWER).model_json_schema()["properties"]
    assert properties["hours"]["description"] == (
        "`value`: the answer; `lower`: the end below of an interval that holds the truth as often as GET /model says; "
        "`upper`: the end above"
    )
    assert "set" not in properties["kind"]["description"]
