"""Files read a part at a time: the same as read at once, in memory that does not grow with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from mtl_bento import streams
from mtl_bento import table as tables
from mtl_bento.cli import cli
from mtl_bento.errors import SchemaError, TableError
from mtl_bento.model import Model


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK", 256)


def parts_of(path: Path, rows: int = 7) -> list[pa.Table]:
    parts = list(streams.batches(path, rows=rows))
    assert all(0 < part.num_rows <= rows for part in parts)
    assert len({part.schema for part in parts}) == 1
    return parts


CELLS = {
    "int": "12",
    "one": "1",
    "float": "2.5",
    "date": "2024-01-02",
    "moment": "2024-01-02 03:04:05",
    "fine moment": "2024-01-02 03:04:05.678",
    "time": "03:04:05",
    "bool": "true",
    "text": '"a, ""b""\nc"',
    "missing": "",
    "zeros": "007",
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.sampled_from(sorted(CELLS))] * 2), min_size=1, max_size=3), st.integers(1, 3))
def test_a_text_file_in_parts_has_the_types_and_cells_of_the_whole(
    small_blocks: None, tmp_path: Path, pairs: list[tuple[str, str]], early: int
) -> None:
    # Each column changes its kind of cell after the first blocks.
    lines = [",".join(f"c{i}" for i in range(len(pairs)))]
    for row in range(60):
        lines.append(",".join(CELLS[pair[row >= 20 * early]] for pair in pairs))
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines) + "\n")
    whole = tables.read(path)
    joined = pa.concat_tables(parts_of(path))
    assert joined.schema.types == whole.schema.types
    assert joined.to_pydict() == whole.to_pydict()


def test_a_line_longer_than_a_block_is_read(small_blocks: None, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,x\n" * 1 + "2,y\n" * 100 + '3,"' + "z" * 5_000 + '"\n' + "4,w\n" * 100)
    assert pa.concat_tables(parts_of(path)).to_pydict() == tables.read(path).to_pydict()


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".feather", ".arrow"])
def test_every_format_in_parts_is_the_whole(suffix: str, small_blocks: None, tmp_path: Path) -> None:
    table = pa.table(
        {
            "number": pa.array(np.arange(100) / 4),
            "text": pa.array(["a", None, "ü"] * 33 + ["b"]),
            "kind": pa.array(["x", "y"] * 50).dictionary_encode(),
        }
    )
    path = tmp_path / f"t{suffix}"
    tables.write(table, path)
    joined = pa.concat_tables(parts_of(path))
    assert joined.to_pydict() == table.to_pydict()
    assert tables.folder_of(joined) == tmp_path


def test_a_stream_of_arrow_is_read(small_blocks: None, tmp_path: Path) -> None:
    table = pa.table({"a": list(range(1_000))})
    with pa.ipc.new_stream(tmp_path / "t.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    assert pa.concat_tables(parts_of(tmp_path / "t.arrow")).to_pydict() == table.to_pydict()


def test_what_pandas_calls_an_index_is_no_column_and_a_frame_is_cut(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(20)), "__index_level_0__": list(range(20))})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert {tuple(part.column_names) for part in parts_of(tmp_path / "t.parquet")} == {("a",)}
    assert [part.num_rows for part in parts_of(tmp_path / "t.parquet")] == [7, 7, 6]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n" + b"1,2\n" * 200 + b"1,2,3\n", "is ragged: line 202 has 3 cells where the header has 2"),
        (b"a,b\n" + b"x,2\n" * 200 + b"\xff\xfe,2\n", "is not UTF-8 text"),
        (b"a;b\n" + b"1;2\n" * 200, "cells are separated by ';'"),
        (b"a,a\n" + b"1,2\n" * 200, "several columns are called 'a'"),
        (b"PAR1" + b"\0" * 500, "holds binary data"),
    ],
)
def test_a_damaged_text_file_is_one_line(content: bytes, words: str, small_blocks: None, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=words) as caught:
        list(streams.batches(path))
    assert "\n" not in str(caught.value)


def test_damaged_and_empty_files_of_other_formats_are_one_line(small_blocks: None, tmp_path: Path) -> None:
    table = pa.table({"a": list(range(5_000))})
    for suffix in (".parquet", ".arrow"):
        path = tmp_path / f"t{suffix}"
        tables.write(table, path)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(TableError, match=r"t\.(parquet|arrow)' (is damaged|cannot be read)"):
            list(streams.batches(path))
        tables.write(table.slice(0, 0), tmp_path / f"empty{suffix}")
        with pytest.raises(TableError, match="there is no row in it"):
            list(streams.batches(tmp_path / f"empty{suffix}"))


def test_an_error_in_a_later_part_names_the_row_of_the_file() -> None:
    with pytest.raises(SchemaError, match="Column 'age', row 1003: 'old'") as caught, streams.counted_from(1_000):
        raise tables.cell_error("age", 3, "old", wrong="is not a number", wanted="give one")
    assert caught.value.detail[0]["loc"] == ["rows", 1_003, "age"]


def test_a_bad_cell_of_a_later_part_leaves_no_file(
    model_folder: Path, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ROWS", 16)
    rows = table.slice(0, 100)
    age = [str(value) for value in range(100)]
    age[77] = "old"
    tables.write(rows.set_column(0, "age", pa.array(age)), tmp_path / "t.parquet")
    result = CliRunner().invoke(
        cli, ["predict", str(model_folder), str(tmp_path / "t.parquet"), "--out", str(tmp_path / "p.csv")]
    )
    assert result.exit_code == 2
    assert "Column 'age', row 77: 'old' is not a number" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".feather", ".arrow"])
def test_predictions_in_parts_are_those_of_the_whole(
    suffix: str,
    model_folder: Path,
    model: Model,
    table: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = table.slice(0, 100).drop_columns(["embedding"])
    tables.write(rows, tmp_path / f"t{suffix}")
    whole = model.predict(tables.read(tmp_path / f"t{suffix}"))
    monkeypatch.setattr(streams, "ROWS", 16)
    out = tmp_path / f"p{suffix}"
    result = CliRunner().invoke(
        cli, ["predict", str(model_folder), str(tmp_path / f"t{suffix}"), "--out", str(out), "--keep", "children"]
    )
    assert result.exit_code == 0, result.output
    written = tables.read(out)
    assert written["children"].to_pylist() == rows["children"].to_pylist()
    for name in ("income", "分类", "smoker"):
        assert written[name].to_pylist() == whole[name].to_pylist()
    np.testing.assert_allclose(written["hours.per week"].to_numpy(), whole["hours.per week"].to_numpy(), rtol=1e-4)


def test_a_model_of_pictures_is_given_fewer_rows_at_once_than_one_of_numbers(model: Model) -> None:
    class Pictures:
        class schema:
            max_rows = 64

    assert streams.rows_of(model) == 16_000
    assert streams.rows_of(Pictures()) == 1_024
    assert streams.rows_of(object()) == streams.ROWS


PEAK = """
import resource, sys
import pyarrow as pa
from mtl_bento import sources, streams
from mtl_bento.cli import cli

class Echo:
    def predict(self, table, *, output):
        return pa.table({"y": table["number"]})

sources.open_source = lambda _: Echo()
streams.BLOCK, streams.ROWS = 2**19, 4096
cli(["predict", "model", sys.argv[1], "--out", sys.argv[2], "--keep", "text", "--quiet"], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def written(path: Path, n: int) -> Path:
    table = pa.table({"number": np.arange(n) / 3, "text": [f"{i:040d}" for i in range(n)]})
    if path.suffix == ".parquet":  # one group of rows: what the writer of the file made no parts of
        parquet.write_table(table, path, row_group_size=n, use_dictionary=False, compression="none")
    else:
        tables.write(table, path)
    return path


@pytest.mark.parametrize(("given", "out"), [(".csv", ".parquet"), (".parquet", ".csv"), (".arrow", ".feather")])
def test_peak_memory_does_not_grow_with_the_rows(given: str, out: str, tmp_path: Path) -> None:
    # 20,000 rows are 1 MB, 800,000 rows 45 MB in memory.
    def peak(n: int) -> int:
        path = written(tmp_path / f"t{n}{given}", n)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, path, tmp_path / f"p{n}{out}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert tables.read(tmp_path / f"p{n}{out}").num_rows == n
        return int(done.stdout)

    assert peak(800_000) - peak(20_000) < 20_000  # kilobytes
