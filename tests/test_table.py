"""Tables in and out: every format, every kind of frame, and one line for every unreadable thing."""

from __future__ import annotations

import datetime as dt
import decimal
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from mtl_bento import table as tables
from mtl_bento.errors import TableError

SMALL = pa.table({"n": [1, 2, None], "s": ["a", None, 'q "c", d'], "f": [0.1, None, -2.5], "分类": [True, False, None]})

every_suffix = pytest.mark.parametrize(
    "suffix", [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".feather", ".arrow", ".CSV"]
)


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def complaint(source: Any, **options: str) -> str:
    with pytest.raises(TableError) as caught:
        tables.read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@every_suffix
def test_a_written_table_is_read_back_with_its_missing_cells(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tëst 表{suffix}"
    tables.write(SMALL, path)
    assert tables.read(path).to_pydict() == SMALL.to_pydict()
    assert [item.name for item in tmp_path.iterdir()] == [path.name]  # no part file is left


@every_suffix
def test_a_table_knows_the_folder_of_its_file_and_takes_it_nowhere(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ü").mkdir()
    tables.write(SMALL, Path("ü") / f"t{suffix}")
    table = tables.read(Path("ü") / f"t{suffix}")
    assert tables.folder_of(table) == tmp_path / "ü"
    assert tables.folder_of(table.select(["n"]).take(pa.array([0]))) == tmp_path / "ü"
    assert tables.folder_of(SMALL) == Path()
    tables.write(table, tmp_path / f"again{suffix}")
    assert b"bento" not in (tmp_path / f"again{suffix}").read_bytes()
    assert tables.folder_of(tables.read(tmp_path / f"again{suffix}")) == tmp_path


def test_arrow_streams_and_string_paths_are_read(tmp_path: Path) -> None:
    path = tmp_path / "stream.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SMALL.schema) as stream:
        stream.write_table(SMALL)
    assert tables.read(str(path)).equals(SMALL)


def test_empty_cells_of_csv_are_missing_also_in_text_and_quoted(tmp_path: Path) -> None:
    table = tables.read(put(tmp_path, "t.csv", b'n,s\n"1",\n"","x"\n3,""\nNA,N/A\n'))
    assert table.to_pydict() == {"n": [1, None, 3, None], "s": [None, "x", None, None]}


def test_a_late_text_in_a_column_of_numbers_makes_it_text_instead_of_failing(tmp_path: Path) -> None:
    # Arrow infers types from the first mebibyte only, unless told otherwise.
    table = tables.read(put(tmp_path, "t.csv", b"a,b\n" + b"1,2\n" * 400_000 + b"n/k,2.5\n"))
    assert [str(kind) for kind in table.schema.types] == ["string", "double"]
    assert table["a"][-1].as_py() == "n/k"


def test_an_empty_line_of_a_table_of_one_column_is_a_row(tmp_path: Path) -> None:
    table = pa.table({"a": [1, None, 3, None]})
    tables.write(table, tmp_path / "t.csv")
    assert tables.read(tmp_path / "t.csv").equals(table)


def test_byte_order_marks_windows_lines_and_newlines_in_cells_are_ordinary(tmp_path: Path) -> None:
    table = tables.read(put(tmp_path, "t.csv", b'\xef\xbb\xbfa,b\r\n"x\ny",2\r\n\r\nz,3\r\n'))
    assert table.to_pydict() == {"a": ["x\ny", "z"], "b": [2, 3]}


def test_lists_structs_and_bytes_become_text_in_csv(tmp_path: Path) -> None:
    table = pa.table({"l": [[1.0, 2.5], None], "s": [{"é": 1}, None], "b": [b"\xff", None]})
    tables.write(table, tmp_path / "t.csv")
    assert tables.read(tmp_path / "t.csv").to_pydict() == {
        "l": ["[1.0, 2.5]", None],
        "s": ['{"é": 1}', None],
        "b": ["/w==", None],
    }


def test_a_dash_writes_csv_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    tables.write(pa.table({"a": [1, None], "d": pa.array(["x", "y"]).dictionary_encode()}), "-")
    assert capfdbinary.readouterr().out == b'"a","d"\n1,"x"\n,"y"\n'


def test_parquet_of_pandas_comes_without_its_nameless_index(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1, 2]}, index=[7, 9]).to_parquet(tmp_path / "t.parquet")
    assert tables.read(tmp_path / "t.parquet").column_names == ["a"]


def test_folders_named_like_partitions_add_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "year=2013"
    folder.mkdir()
    tables.write(SMALL, folder / "t.parquet")
    assert tables.read(folder / "t.parquet").column_names == SMALL.column_names


# Frames


def test_pandas_frames_of_every_ordinary_dtype_are_read() -> None:
    frame = pd.DataFrame(
        {
            "int": pd.array([1, None], dtype="Int64"),
            "bool": pd.array([True, None], dtype="boolean"),
            "category": pd.Categorical(["x", None]),
            "string": pd.array(["x", None], dtype="string"),
            "object": pd.Series(["x", None], dtype=object),
            "arrow": pd.array([1, 2], dtype="int64[pyarrow]"),
            "sparse": pd.arrays.SparseArray([0, 1]),
            "zoned": pd.to_datetime(["2020-01-01", "2020-01-02"]).tz_localize("Europe/Berlin"),
            "date": [dt.date(2020, 1, 1), None],
            "decimal": [decimal.Decimal("1.5"), None],
            "vector": [np.array([1.0, 2.0]), np.array([3.0, 4.0])],
            "nan": [1.5, float("nan")],
            7: [1, 2],
        }
    )
    table = tables.read(frame)
    assert table.column_names == [str(name) for name in frame.columns]
    assert table["int"].to_pylist() == [1, None]
    assert table["bool"].to_pylist() == [True, None]
    assert table["category"].to_pylist() == table["string"].to_pylist() == table["object"].to_pylist() == ["x", None]
    assert table["sparse"].to_pylist() == [0, 1]
    assert table["vector"].to_pylist() == [[1.0, 2.0], [3.0, 4.0]]
    assert table["nan"].to_pylist() == [1.5, None]


def test_polars_frames_of_every_ordinary_dtype_are_read() -> None:
    frame = pl.DataFrame(
        {
            "category": pl.Series(["x", None], dtype=pl.Categorical),
            "enum": pl.Series(["y", "x"], dtype=pl.Enum(["x", "y"])),
            "array": pl.Series([[1.0, 2.0], [3.0, 4.0]], dtype=pl.Array(pl.Float32, 2)),
            "text": ["a", None],
        }
    )
    assert tables.read(frame).to_pydict() == frame.to_dict(as_series=False)


def test_record_batches_and_other_arrow_streams_are_read() -> None:
    assert tables.read(pa.record_batch({"a": [1]})).to_pydict() == {"a": [1]}
    assert tables.read(pa.RecordBatchReader.from_batches(SMALL.schema, SMALL.to_batches())).equals(SMALL)


def test_answers_come_back_in_the_callers_kind_and_pandas_keeps_its_index(tmp_path: Path) -> None:
    answers = pa.table({"y": [1, 2]})
    frame = tables.like(answers, pd.DataFrame({"x": [5, 6]}, index=["p", "q"]))
    pd.testing.assert_frame_equal(frame, pd.DataFrame({"y": [1, 2]}, index=["p", "q"]))
    assert tables.like(answers, pl.DataFrame({"x": [5, 6]})).equals(pl.DataFrame({"y": [1, 2]}))
    assert tables.like(answers, pa.table({"x": [5, 6]})) is answers
    pd.testing.assert_frame_equal(tables.like(answers, tmp_path / "t.csv"), pd.DataFrame({"y": [1, 2]}))


def test_a_path_gives_an_arrow_table_where_pandas_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    assert tables.like(SMALL, "t.csv") is SMALL


def test_a_pandas_subclass_is_a_pandas_frame() -> None:
    class Special(pd.DataFrame):
        pass

    assert tables.read(Special({"a": [1]})).to_pydict() == {"a": [1]}


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pd.DataFrame({"fine": [1, 2], "mixed": [1, "x"]}), "column 'mixed' cannot be read"),
        (pd.DataFrame({"huge": [10**30, 1]}), "column 'huge' cannot be read"),
        (pd.DataFrame({"matrix": [np.zeros((2, 2)), np.zeros((2, 2))]}), "column 'matrix' cannot be read"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "several columns are called 'a'; rename them."),
        (pd.DataFrame([[1, 2]], columns=["1", 1]), "several columns are called '1'; rename them."),
        (pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_product([["a"], ["b", "c"]])), "have 2 levels"),
        (pd.DataFrame({"a": []}), "there is no row in it"),
        (pd.DataFrame(), "there is no column in it"),
        (pl.DataFrame({"o": pl.Series([object()], dtype=pl.Object)}), "column 'o' holds Python objects"),
        (pl.DataFrame({"a": [1]}).lazy(), "LazyFrame is not a table; give a path, a pandas or polars DataFrame"),
        (pd.Series([1, 2]), "cannot be turned into an Arrow table"),
        (pl.Series([1, 2]), "cannot be turned into an Arrow table"),
        ({"a": [1]}, "a builtins.dict is not a table"),
        (None, "a builtins.NoneType is not a table"),
        (pa.table([[1], [2]], names=["a", "a"]), "several columns are called 'a'"),
    ],
)
def test_a_frame_that_is_no_table_is_one_line_naming_the_column(frame: Any, words: str) -> None:
    message = complaint(frame, role="--test table")
    assert message.startswith("--test table: ")
    assert words in message


# Files that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"a,b\n1,2\n3\n4,5\n", "is ragged: line 3 has 1 cells where the header has 2; mend that line"),
        ("a.csv", b"a,b\n" + b"1,2\n" * 400_000 + b"3\n", "line 400002 has 1 cells"),
        ("a.csv", b'a,b\n"open,1\n2,3\n', "is ragged"),
        ("a.csv", b"", "is empty; give a table with a line of column names."),
        ("a.csv", b"\n\n", "is empty"),
        ("a.csv", b"a,b\n", "there is no row in it"),
        ("a.csv", b"a,a\n1,2\n", "several columns are called 'a'"),
        ("a.csv", b"PAR1\x15\x04", "holds binary data, not text (it looks like .parquet)"),
        ("a.csv", gzip.compress(b"a\n1\n"), "it looks like .csv.gz"),
        ("a.csv", b"a,b\n1,\x00\n", "holds binary data, not text; give it its true suffix"),
        ("a.csv", "a,b\nä,1\n".encode("latin-1"), "is not UTF-8 text (column 'a'); save it as UTF-8."),
        ("a.csv", "ä,b\n1,1\n".encode("latin-1"), "is not UTF-8 text; save it as UTF-8."),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8."),
        ("a.csv", b"a;b\n1;2\n", "its cells are separated by ';'; separate them by ','."),
        ("a.tsv", b"a,b\n1,2\n", r"its cells are separated by ','; separate them by '\t'."),
        ("a.csv.gz", b"a,b\n1,2\n", "cannot be read"),
        ("a.parquet", b"hello", "is damaged or is not what its suffix says"),
        ("a.parquet", b"", "is damaged or is not what its suffix says"),
        ("a.feather", b"hello", "is damaged or is not what its suffix says"),
        ("a.arrow", b"ARROW1\x00\x00", "is damaged or is not what its suffix says"),
        ("a.xlsx", b"PK", "'a.xlsx' has no suffix of a table; use one of .csv, .csv.gz, .tsv"),
        ("a", b"a\n1\n", "'a' has no suffix of a table"),
    ],
)
def test_an_unreadable_file_is_one_line_naming_the_cause(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    assert words in complaint(put(tmp_path, name, content))


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    put(tmp_path, "flights.csv", b"a\n1\n")
    path = tmp_path / "fligths.csv"
    assert complaint(path) == f"table: there is no file {str(path)!r}; did you mean 'flights.csv'?"
    assert complaint("/nowhere/x.csv") == "table: there is no file '/nowhere/x.csv'; check the path."


def test_a_folder_names_the_tables_in_it(tmp_path: Path) -> None:
    put(tmp_path, "b.csv", b"a\n1\n")
    put(tmp_path, "notes.txt", b"")
    assert complaint(tmp_path) == f"table: {str(tmp_path)!r} is a folder; name a file in it: b.csv."


# Places that cannot be written


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    for path, words in [
        (tmp_path, "is a folder; name a file in it."),
        (tmp_path / "no" / "t.csv", "there is no folder"),
        (tmp_path / "t.xlsx", "'t.xlsx' has no suffix of a table"),
    ]:
        with pytest.raises(TableError, match=words):
            tables.write(SMALL, path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = put(tmp_path, "t.parquet", b"old")
    spans = pa.table({"a": pa.array([pa.MonthDayNano([1, 1, 1])])})
    with pytest.raises(pa.ArrowException):
        tables.write(spans, path)  # Parquet has no such type: no mistake of a user's that we foresee
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["t.parquet"]


# Together


def test_concat_fills_columns_that_one_table_lacks_and_widens_types() -> None:
    whole, floats = pa.table({"a": [1], "b": ["x"]}), pa.table({"a": [1.5], "c": pa.array(["y"]).dictionary_encode()})
    assert tables.concat([whole, floats]).to_pydict() == {"a": [1.0, 1.5], "b": ["x", None], "c": [None, "y"]}
    text = pa.table({"c": pa.array(["z"], pa.large_string())})
    assert tables.concat([floats, text, pa.table({"c": [None]})])["c"].to_pylist() == ["y", "z", None]


def test_tables_of_different_folders_are_put_together_with_the_whole_paths_of_their_pictures(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        tables.write(pa.table({"photo": ["a.jpg", None], "word": ["b", "c"]}), tmp_path / name / "t.csv")
    parts = [tables.read(tmp_path / name / "t.csv") for name in ("train", "test")]
    together = tables.concat(parts)
    assert together["photo"].to_pylist() == [str(tmp_path / "train/a.jpg"), None, str(tmp_path / "test/a.jpg"), None]
    assert together["word"].to_pylist() == ["b", "c", "b", "c"]
    assert tables.concat([parts[0], parts[0]])["photo"].to_pylist() == ["a.jpg", None] * 2
    assert tables.folder_of(tables.concat([parts[0], parts[0]])) == tmp_path / "train"


def test_concat_names_the_column_whose_types_contradict() -> None:
    with pytest.raises(TableError, match="column 'a' is int64 and string in different tables; give it one type"):
        tables.concat([pa.table({"a": [1]}), pa.table({"a": ["x"]})])


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["x", None]).dictionary_encode(),
        pa.array(["x", None], pa.string_view()),
        pa.array(["x", None], pa.large_string()),
        pa.chunked_array([["x"], [None]]),
        pa.RunEndEncodedArray.from_arrays([1, 2], ["x", None]),
        pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["x", None])),
        pa.array(["x", None]).cast(pa.dictionary(pa.int8(), pa.large_string())),
    ],
)
def test_every_encoding_of_text_becomes_one_plain_type(values: Any) -> None:
    cells = tables.plain(values)
    assert cells.type == pa.large_string()
    assert cells.to_pylist() == ["x", None]


def test_extension_types_and_decimals_become_their_values() -> None:
    periods = tables.read(pd.DataFrame({"p": pd.period_range("1970-02", periods=2, freq="M")}))["p"]
    assert tables.plain(periods).to_pylist() == [1, 2]  # months since 1970
    assert tables.plain(pa.array([decimal.Decimal("1.50"), None])).to_pylist() == [1.5, None]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)])
def test_every_encoding_of_bytes_becomes_one_plain_type(kind: pa.DataType) -> None:
    cells = tables.plain(pa.array([b"ab", None], kind))
    assert cells.type == pa.large_binary()
    assert cells.to_pylist() == [b"ab", None]


def test_the_first_cell_that_fails_is_found_by_halving() -> None:
    texts = pa.array(["1", "2", "x", "4", "y"])
    assert tables.first_failure(texts, lambda part: part.cast(pa.int64())) == 2
    assert tables.first_failure(texts.slice(2, 1), lambda part: part.cast(pa.int64())) == 0


def test_a_cell_error_is_one_line_with_its_place_and_a_short_value() -> None:
    error = tables.cell_error("n", 3, "x" * 500 + "\n", wrong="is not a number", wanted="give one")
    assert str(error) == f"Column 'n', row 3: '{'x' * 56}... is not a number; give one."
    assert error.detail[0]["loc"] == ["rows", 3, "n"]
