"""What each column is taken for."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import tiny_tokenizer
import yaml
from pictures import noise

from mtl_bento import table as tables
from mtl_bento.columns import text
from mtl_bento.columns.categorical import CategoricalColumn
from mtl_bento.columns.image import ImageColumn
from mtl_bento.columns.text import TextColumn
from mtl_bento.columns.vector import VectorColumn
from mtl_bento.errors import SchemaError, SpecError, UnknownKindError
from mtl_bento_search import inference
from mtl_bento_search.inference import Inference, infer

N = 60
RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=N)


def verdict(cells: Any, *, name: str = "x", kind: pa.DataType | None = None, **options: Any) -> str:
    """Return the kind that a column is taken for, or why it is left out."""
    values = cells if isinstance(cells, pa.Array | pa.ChunkedArray) else pa.array(cells, kind)
    other = pa.array(NUMBERS[np.arange(len(values)) % N])  # so that there is always an input
    found = infer(pa.table({name: values, "other": other}), **options)
    kinds = {column.name: column.kind for column in found.schema.columns}
    return kinds[name] if name in kinds else found.left_out[0].reason


def words(count: int, each: int) -> list[str]:
    return [f"w{number}" for number in range(count)] * each


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([True, False, None] * 20, "categorical"),
        (words(3, 20), "categorical"),
        (words(300, 6), "categorical"),
        ([*words(2, 6), "once"], "categorical"),
        (list(NUMBERS), "numeric"),
        ([*NUMBERS, None, float("nan")], "numeric"),
        ([0, 1] * 30, "categorical"),
        ([0.0, 1.0, None] * 20, "categorical"),  # what pandas makes of whole numbers with missing ones
        (list(range(10)) * 6, "categorical"),
        (list(range(11)) * 6, "numeric"),
        ([1, 2, 3, 4], "numeric"),  # no level is common enough to be kept
        ([0.5, 1.5] * 30, "numeric"),
        (["yes", None] * 30, "categorical"),  # whether it is there may tell something
        ([0.5, None] * 30, "categorical"),
        ([dt.date(2013, 1, 1) + dt.timedelta(days=n) for n in range(N)], "datetime"),
        ([dt.datetime(2013, 1, 1, n % 24) for n in range(N)], "datetime"),
        ([f"2013-01-{1 + n % 28:02d}T0{n % 9}:00:00Z" for n in range(N)] + [None, ""], "datetime"),
        ([[1.0, float(n)] for n in range(N)] + [None], "vector"),
        ([f"[0.5, {n}]" for n in range(N)] + [""], "vector"),
        (pa.array([[n, 1] for n in range(N)], pa.list_(pa.int8(), 2)), "vector"),
        (list(RNG.permutation(1000)), "numeric"),  # all different, yet in no order and not named like an identifier
    ],
)
def test_columns_are_taken_for_what_they_look_like(cells: Any, expected: str) -> None:
    assert verdict(cells) == expected


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([None, None], "all cells are missing"),
        ([float("nan")] * 3, "all cells are missing"),
        (["", None], "all cells are missing"),
        (pa.nulls(3, pa.list_(pa.float64())), "all cells are missing"),
        ([1.5] * 9, "the same value in every row"),
        (["a"] * 9, "the same value in every row"),
        ([dt.date(2013, 1, 1)] * 9, "the same value in every row"),
        (list(range(N)), "a different value in every row"),
        (list(range(N, 0, -1)), "a different value in every row"),
        ([*range(100), 99], "a different value in almost every row"),
        ([float(n) for n in range(N)] + [None], "a different value in every row"),
        ([f"u{n}" for n in range(N)], "a different value in every row"),
        ([f"u{n}" for n in range(N - 1)] + ["u0"], "a different value in almost every row"),
        ([f"u{n}" for n in range(9)], "no value in 5 rows or more"),
        ([[1.0], [1.0, 2.0]], "lists of 1 to 2 numbers"),
        ([["a"], ["b"]], "lists of type string"),
        ([[], []], "all cells are missing"),
        ([{"a": 1}, {"a": 2}], "nested cells (struct<a: int64>)"),
        ([dt.time(1), dt.time(2)], "times without a date"),
        ([dt.timedelta(1), dt.timedelta(2)], "times without a date"),
        ([noise(0), b"\xff"], "bytes that are no pictures"),
        ([b"", None], "all cells are missing"),
        ([f"img/{n}.JPG" for n in range(9)], "paths of pictures that are not there"),
    ],
)
def test_columns_that_cannot_be_inputs_say_why(cells: Any, reason: str) -> None:
    assert verdict(cells) == reason


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if the default backbones were installed."""
    monkeypatch.setattr(inference, "BACKBONE_PACKAGES", {})
    monkeypatch.setattr(text, "_HELD", {})
    monkeypatch.setattr(text, "_packaged", lambda _: tiny_tokenizer.write(tmp_path / "tokenizer.json"))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([noise(n) for n in range(9)] + [None, b""], "image"),
        (pa.array([noise(0, kind="JPEG"), noise(1, kind="WEBP")], pa.binary_view()), "image"),
        ([f"The story number {n} of a long evening" for n in range(N)], "text"),
        ([f"Story {n} ended" for n in range(N)], "text"),
        ([f"这是第{n}个很长的句子没有任何空格" for n in range(N)], "text"),
        ([f"Story {n}" for n in range(N)], "a different value in every row"),
        (["a story that repeats"] * 30 + ["another one of those"] * 30, "categorical"),
    ],
)
def test_pictures_and_texts_are_taken_for_what_they_are(cells: Any, expected: str) -> None:
    assert verdict(cells) == expected


@pytest.mark.usefixtures("installed")
def test_paths_of_files_beside_the_table_are_pictures(tmp_path: Path) -> None:
    for place in range(9):
        (tmp_path / f"{place}.PNG").write_bytes(noise(place, 64, 96))
    table = pa.table({"photo": [*(f"{place}.PNG" for place in range(9)), None], "x": NUMBERS[:10]})
    tables.write(table, tmp_path / "t.csv")
    photo, _ = infer(tables.read(tmp_path / "t.csv")).schema.columns
    assert photo == ImageColumn(name="photo", size=(128, 192), grid=(4, 6))
    (left,) = infer(table).left_out  # a frame's are relative to the current folder
    assert left.reason == "paths of pictures that are not there"
    assert left.remedy == "put '0.PNG' and the others there, or give paths relative to the table"


@pytest.mark.usefixtures("installed")
def test_a_broken_picture_among_the_training_rows_is_named_by_its_row_in_the_table() -> None:
    cells = [noise(n) for n in range(30)]
    cells[20] = cells[20][:9]
    table = pa.table({"photo": cells, "x": NUMBERS[:30]})
    with pytest.raises(SchemaError, match=r"^Column 'photo', row 20: a file of 9 bytes cannot be decoded"):
        infer(table, rows=np.arange(10, 30))
    assert infer(table, rows=np.arange(20)).schema.names == ("photo", "x")


def test_without_the_packages_the_remedy_is_the_pip_line_or_another_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "BACKBONE_PACKAGES", {"efficientnet_lite0": ("no-such-package",)})
    monkeypatch.setattr(text, "PACKAGES", {"wordllama": ("no-such-package", "x.json")})
    monkeypatch.setattr(text, "_packaged", text._packaged.__wrapped__)
    table = pa.table(
        {
            "photo": [noise(n) for n in range(9)],
            "note": [f"A story of number {n}" for n in range(9)],
            "x": NUMBERS[:9],
        }
    )
    found = infer(table)
    assert found.schema.names == ("x",)
    assert [(item.reason, item.remedy) for item in found.left_out] == [
        (
            f"{kind}s, but a package that reads them is not installed",
            f"pip install 'mtl-bento[{extra}]', or write `inputs: {{{name}: {{kind: {kind}, backbone: {backbone}}}}}` "
            "in mtl.yaml to use it without a pretrained network",
        )
        for name, kind, extra, backbone in (
            ("photo", "image", "images", "pixels"),
            ("note", "text", "text", "tokens"),
        )
    ]
    overrides = {
        n: yaml.safe_load(item.remedy.split("`")[1])["inputs"][n]
        for n, item in zip(("photo", "note"), found.left_out, strict=True)
    }
    photo, note, _ = infer(table, overrides=overrides).schema.columns
    assert isinstance(photo, ImageColumn)
    assert isinstance(note, TextColumn)
    assert (photo.backbone, note.backbone, note.vocabulary) == ("pixels", "tokens", ("a", "number", "of", "story"))


def test_options_are_chosen_beside_the_kind() -> None:
    table = pa.table({"photo": [noise(0, 200, 100)] * 2, "x": NUMBERS[:2]})
    photo = {"kind": "image", "backbone": "pixels", "size": [64, 64]}
    column, _ = infer(table, overrides={"photo": photo, "x": {"kind": "numeric"}}).schema.columns
    assert column == ImageColumn(name="photo", backbone="pixels", size=(64, 64), grid=(2, 2))


def test_shuffled_whole_numbers_are_identifiers_by_their_name_only() -> None:
    shuffled = RNG.permutation(1000)
    for name in ("id", "ID", "customer_id", "customerId", "user.id", "uuid", "index", ""):
        assert verdict(shuffled, name=name) == "a different value in every row"
    for name in ("paid", "width", "humid", "idle", "amount"):
        assert verdict(shuffled, name=name) == "numeric"


@pytest.mark.parametrize(
    ("name", "cells", "remedy"),
    [
        ("id", range(N), "write `inputs: {id: numeric}` in mtl.yaml to use it"),
        ("kürzel", [f"u{n}" for n in range(N)], "write `inputs: {kürzel: categorical}` in mtl.yaml to use it"),
        ("no", [f"u{n}" for n in range(N)], 'write `inputs: {"no": categorical}` in mtl.yaml to use it'),
        ("a: 'b'", [f"u{n}" for n in range(N)], "write `inputs: {\"a: 'b'\": categorical}` in mtl.yaml to use it"),
        ("text", [f"{n}.5" for n in range(N)], "write `inputs: {text: numeric}` in mtl.yaml to use it"),
    ],
)
def test_the_remedy_can_be_pasted_and_works(name: str, cells: Any, remedy: str) -> None:
    table = pa.table({name: list(cells), "other": NUMBERS})
    assert infer(table).left_out[0].remedy == remedy
    overrides = yaml.safe_load(remedy.split("`")[1])["inputs"]
    assert [column.name for column in infer(table, overrides=overrides).schema.columns] == [name, "other"]


def test_a_date_that_is_none_makes_the_column_a_category() -> None:
    assert verdict(["2013-01-01"] * 30 + ["2013-02-02"] * 29 + ["2013-02-30"]) == "categorical"


def test_frames_and_files_of_one_table_are_taken_for_the_same(tmp_path: Any) -> None:
    frame = pd.DataFrame(
        {
            "level": [1, 2, None] * 20,
            "flag": [True, False, None] * 20,
            "word": pd.Categorical(["a", None, "b"] * 20),
            "number": NUMBERS,
            "when": pd.date_range("2013-01-01", periods=N),
        }
    )
    sources = [frame, pl.DataFrame(pa.Table.from_pandas(frame)), pa.Table.from_pandas(frame)]
    for suffix in (".csv", ".parquet", ".feather"):
        tables.write(tables.read(frame), tmp_path / f"t{suffix}")
        sources.append(tmp_path / f"t{suffix}")
    found = [infer(tables.read(source)).schema for source in sources]
    assert [column.kind for column in found[0].columns] == ["categorical"] * 3 + ["numeric", "datetime"]
    for schema in found[1:]:
        assert [column.kind for column in schema.columns] == [column.kind for column in found[0].columns]
        assert [c.levels for c in schema.columns if isinstance(c, CategoricalColumn)] == [
            (1, 2),
            (True, False),
            ("a", "b"),
        ]


def test_only_training_rows_are_learned_from() -> None:
    table = pa.table(
        {
            "word": ["a"] * 5 + ["b"] * 5 + ["c"] * 10,
            "constant": [1.5] * 10 + [float(n) for n in range(10)],
            "vector": [[1.0, 2.0]] * 10 + [[1.0]] * 10,
        }
    )
    found = infer(table, rows=np.arange(10))
    assert [item.name for item in found.left_out] == ["constant"]
    word, vector = found.schema.columns
    assert isinstance(word, CategoricalColumn)
    assert word.levels == ("a", "b")
    assert isinstance(vector, VectorColumn)
    assert vector.size == 2


def test_errors_name_the_row_of_the_table_not_of_the_training_rows() -> None:
    table = pa.table({"a": ["1", "x", "2", "y"], "b": [1.5, 2.5, float("inf"), 3.5]})
    with pytest.raises(SchemaError, match="Column 'a', row 3: 'y' is not a number"):
        infer(table, overrides={"a": "numeric"}, rows=np.array([2, 3, 0]))
    with pytest.raises(SchemaError, match="Column 'b', row 2: inf is infinite"):
        infer(table, ignore=["a"], rows=np.array([3, 2, 0]))


def test_overrides_decide_against_the_rules() -> None:
    table = pa.table({"zip": list(range(N)), "day": [20130501 + n % 30 for n in range(N)], "other": NUMBERS})
    found = infer(table, overrides={"zip": "categorical", "day": "datetime"})
    assert [column.kind for column in found.schema.columns] == ["categorical", "datetime", "numeric"]
    assert found.left_out == ()


def test_targets_and_ignored_columns_are_no_inputs_and_go_into_the_schema() -> None:
    table = pa.table({"y": [True, False] * 30, "split": ["train"] * N, "id": list(range(N)), "x": NUMBERS})
    found = infer(table, targets=["y"], ignore=["split"])
    assert found.schema.names == ("x",)
    assert (found.schema.targets, found.schema.ignored) == (("y",), ("split", "id"))
    assert Inference(found.schema, found.left_out) == found


def test_names_in_any_script_are_kept() -> None:
    table = pa.table({"分类": ["低", "高"] * 30, "a.b 'c' \"d\"": NUMBERS})
    assert infer(table).schema.names == ("分类", "a.b 'c' \"d\"")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"overrides": {"wrod": "numeric"}}, SpecError, "`inputs:` names 'wrod', which is no column of the table"),
        ({"overrides": {"wrod": "numeric"}}, SpecError, "; did you mean 'word'? Columns: word, x."),
        ({"ignore": ["wrod"]}, SpecError, "`ignore:` names 'wrod'"),
        ({"overrides": {"x": "number"}}, UnknownKindError, "There is no input kind 'number'"),
        (
            {"overrides": {"x": {"size": 3}}},
            SpecError,
            "`inputs:` 'x' needs a kind, such as `{kind: image}`; it is one",
        ),
        ({"overrides": {"x": {"kind": "number"}}}, UnknownKindError, "There is no input kind 'number'"),
        ({"overrides": {"x": {"kind": "numeric", "size": 3}}}, SpecError, "Input 'x': numeric has no option 'size'"),
        ({"overrides": {"x": "numeric"}, "targets": ["x"]}, SpecError, "`inputs:` names 'x', which is a target"),
        ({"overrides": {"x": "numeric"}, "ignore": ["x"]}, SpecError, "`inputs:` names 'x', which is ignored"),
        ({"overrides": {"word": "numeric"}}, SchemaError, "Column 'word', row 0: 'w0' is not a number"),
        ({"targets": ["word", "x"]}, SchemaError, "No column can be an input: there is none beside the targets."),
        ({"targets": ["x"], "rows": np.arange(0)}, SchemaError, "No column can be an input: 'word' (all cells are"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], error: type[Exception], words: str) -> None:
    table = pa.table({"word": [f"w{n % 3}" for n in range(N)], "x": NUMBERS})
    with pytest.raises(error) as caught:
        infer(table, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_of_one_row_says_why_nothing_is_left() -> None:
    with pytest.raises(SchemaError, match=r"No column can be an input: 'a' \(the same value in every row\)\. Name one"):
        infer(pa.table({"a": [1]}))


def test_dictionaries_and_views_are_taken_for_their_values() -> None:
    assert verdict(pa.array(["a", "b", None] * 20).dictionary_encode()) == "categorical"
    assert verdict(pa.array([f"u{n}" for n in range(N)], pa.string_view())) == "a different value in every row"
    assert verdict(pa.array([1.5, 2.5] * 30).cast(pa.decimal128(9, 2))) == "numeric"
    assert verdict(pa.chunked_array([["a", "b"] * 20, ["a", "c"] * 20])) == "categorical"
