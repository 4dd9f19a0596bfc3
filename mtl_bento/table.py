"""Tables in and out: files and frames become Arrow tables, and answers go back in the caller's kind.

Everything above this file works on `pyarrow.Table`. pandas and polars are never imported unless the caller passed such
a frame. Missing cells are Arrow nulls; NaN counts as missing too, which the columns see to, not this file. In text
files an empty cell is missing in every column, and so are the usual words for it (NA, N/A, NaN, null, ...): write
Parquet where such a word is a value of its own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import sys
import uuid
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from pyarrow import feather, parquet

from mtl_bento.errors import SchemaError, TableError, listing, nearest

Source: TypeAlias = "str | os.PathLike[str] | Any"
"""A path, a pandas or polars DataFrame, a pyarrow Table, or anything with the Arrow stream protocol."""

FOLDER = b"mtl_bento.folder"
"""The key in a table's metadata under which the folder of its file is kept: paths in cells are relative to it."""
PICTURE = r"(?i)\.(jpe?g|png|webp)$"
"""How the path of a picture ends."""
STDOUT = "-"
"""The path that stands for standard output."""


def read(source: Source, *, role: str = "table") -> pa.Table:
    """Return a file or a frame as an Arrow table with at least one row and unique column names.

    Args:
        source: a path (CSV, TSV, Parquet, Feather, Arrow by its suffix), a frame or a table.
        role: what the table is to the user ("--test table"), the first words of every error.

    Raises:
        TableError: in one line, where the source is missing, unreadable, empty or names a column twice.
    """
    if not isinstance(source, str | os.PathLike):
        return _checked(_read_frame(source, role), role)
    path = Path(source)
    return _with_folder(_checked(_read_file(path, role), role), str(path.absolute().parent))


def folder_of(table: pa.Table) -> Path:
    """Return the folder of the file that a table was read from; the current one for a frame."""
    return Path(os.fsdecode((table.schema.metadata or {}).get(FOLDER, b".")))


def _with_folder(table: pa.Table, folder: str | None) -> pa.Table:
    others = {key: value for key, value in (table.schema.metadata or {}).items() if key != FOLDER}
    return table.replace_schema_metadata(others | ({FOLDER: os.fsencode(folder)} if folder is not None else {}))


def like(table: pa.Table, source: Source) -> Any:
    """Return the table as the kind of frame that `source` is; a pandas source keeps its index.

    For a path: a pandas frame where pandas is installed, else the table itself.
    """
    if isinstance(source, str | os.PathLike):
        try:
            import pandas as pd  # noqa: F401  # only to learn whether it is installed: it is no dependency of ours
        except ImportError:
            return table
        return table.to_pandas()
    if _is_frame(source, "pandas"):
        frame = table.to_pandas()
        frame.index = source.index
        return frame
    if _is_frame(source, "polars"):
        import polars as pl  # the caller has it: the source is one of its frames

        return pl.from_arrow(table)
    return table


def write(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """Write the table by the path's suffix, beside the file and then renamed; `-` writes CSV to standard output.

    In text files lists and structs become JSON text, and bytes base64. Raises TableError for an unknown suffix, a
    folder, or a place that cannot be written.
    """
    with writing(path) as put:
        put(table)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Callable[[pa.Table], None]]:
    """Give a function that writes tables of one schema one below the other, as `write` writes one.

    A file appears when the last is written, and not at all where an error ends it. Raises TableError as `write` does.
    """
    if str(path) == STDOUT:
        with _Texts(sys.stdout.buffer) as texts:
            yield texts.put
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    if target.is_dir():
        raise TableError(f"output: {str(target)!r} is a folder; name a file in it.")
    writer = _WRITERS[_suffix(target, "output", _WRITERS)]
    if not target.parent.is_dir():
        raise TableError(f"output: there is no folder {str(target.parent)!r}; create it, or name another.")
    # A hidden neighbour, so that the rename stays on one disk and no reader ever sees half a file.
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with beside.open("wb") as file, writer(file) as rows:
            yield rows.put
        beside.replace(target)
    except OSError as error:
        # What the caller does between two tables may fail as well, with files of its own.
        if error.filename not in (None, str(beside)):
            raise
        raise TableError(f"output: {str(target)!r} cannot be written ({error.strerror or error}).") from error
    finally:
        beside.unlink(missing_ok=True)


def concat(tables: Sequence[pa.Table], *, role: str = "table") -> pa.Table:
    """Return the rows of all tables, in order; a column that one of them lacks is missing there.

    Raises TableError naming the column where two tables hold it in types that have no common one.
    """
    for table in tables:
        _check_names(table.column_names, role)
    folder = folder_of(tables[0])
    if any(folder_of(table) != folder for table in tables):
        tables = [_with_whole_paths(table) for table in tables]
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    plainly = {name for name in names if len(_types(tables, name)) > 1}
    alike = [_with_plain(table, plainly) for table in tables]
    for name in plainly:
        try:
            pa.unify_schemas([pa.schema([(name, kind)]) for kind in _types(alike, name)], promote_options="permissive")
        except pa.ArrowException:
            both = " and ".join(sorted(str(kind) for kind in _types(tables, name)))
            raise TableError(f"{role}: column {name!r} is {both} in different tables; give it one type.") from None
    return _with_folder(pa.concat_tables(alike, promote_options="permissive"), str(folder))


def plain(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return the cells as one array of a plain type, so that columns and tasks need to know few of them.

    Dictionaries, run-end encodings and extension types become their values; every kind of string `large_string`, of
    bytes `large_binary`; decimals and half floats `double`.
    """
    chunked = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    if chunked.type.id in _PLAIN and chunked.num_chunks == 1:
        return chunked.chunk(0)  # what nearly all cells are: neither looked through nor copied
    while (unwrapped := _unwrapped(chunked)) is not None:
        chunked = unwrapped
    return chunked.combine_chunks()


_PLAIN = frozenset(
    kind.id for kind in (pa.float64(), pa.float32(), pa.int64(), pa.int32(), pa.bool_(), pa.large_string())
)


def first_failure(cells: pa.Array, convert: Callable[[pa.Array], Any]) -> int:
    """Return the row of the first cell that `convert` refuses with an ArrowInvalid, given that it refuses one."""
    good, bad = 0, len(cells)  # the first `good` cells convert, the first `bad` do not
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            convert(cells.slice(good, middle - good))
            good = middle
        except pa.ArrowInvalid:
            bad = middle
    return good


def cell_error(name: str, row: int, value: Any, *, wrong: str, wanted: str) -> SchemaError:
    """Return the error for one bad cell: "Column 'age', row 3: 'old' is not a number; give ...".

    `row` counts from 0. The value is cut after 60 characters; of bytes only their number is shown.
    """
    shown = f"a file of {len(value):,} bytes" if isinstance(value, bytes) else repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    message = f"Column {name!r}, row {row}: {shown} {wrong}; {wanted}."
    return SchemaError(message, detail=[{"loc": ["rows", row, name], "msg": f"{shown} {wrong}", "type": "cell"}])


def type_error(name: str, kind: pa.DataType, *, wanted: str) -> SchemaError:
    """Return the error for a column whose Arrow type is of the wrong kind."""
    return SchemaError(f"Column {name!r} holds cells of type {kind}; {wanted}.")


def _unwrapped(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in values.chunks], type=kind.storage_type)
    if pa.types.is_dictionary(kind):
        # Not `dictionary_decode`: it knows no dictionaries of string views, such as those of polars.
        empty = plain(pa.nulls(0, kind.value_type))
        return pa.chunked_array([plain(chunk.dictionary).take(chunk.indices) for chunk in values.chunks], empty.type)
    if pa.types.is_run_end_encoded(kind):
        return pa.chunked_array([pc.run_end_decode(chunk) for chunk in values.chunks], type=kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return values.cast(pa.large_string())  # 64-bit offsets: a combined text column may pass 2 GiB
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return values.cast(pa.large_binary())
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return values.cast(pa.float64(), safe=False)
    return None


def _types(tables: Sequence[pa.Table], name: str) -> set[pa.DataType]:
    return {table.schema.field(name).type for table in tables if name in table.column_names}


def _with_plain(table: pa.Table, names: set[str]) -> pa.Table:
    columns = [plain(table[name]) if name in names else table[name] for name in table.column_names]
    return pa.table(columns, names=table.column_names)


def _checked(table: pa.Table, role: str) -> pa.Table:
    _check_names(table.column_names, role)
    if table.num_columns == 0:
        raise TableError(f"{role}: there is no column in it; give a table with inputs and targets.")
    if table.num_rows == 0:
        raise TableError(f"{role}: there is no row in it; give a table with at least one.")
    return table


def _check_names(names: Sequence[str], role: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise TableError(f"{role}: several columns are called {listing(map(repr, twice))}; rename them.")


def located(values: pa.ChunkedArray, folder: Path) -> pa.ChunkedArray:
    """Return paths as paths from `folder`; missing cells stay missing."""
    paths = [path and str(folder / path) for path in plain(values).to_pylist()]
    return pa.chunked_array([pa.array(paths, pa.large_string())])


def _with_whole_paths(table: pa.Table) -> pa.Table:
    folder = folder_of(table).absolute()
    columns = [located(column, folder) if _holds_pictures(column) else column for column in table.columns]
    return pa.table(columns, names=table.column_names, metadata=table.schema.metadata)


def _holds_pictures(values: pa.ChunkedArray) -> bool:
    few = plain(values.slice(0, 100))
    if not pa.types.is_large_string(few.type):
        return False
    return bool((pc.mean(pc.match_substring_regex(few, PICTURE)).as_py() or 0) > 0.5)


# Frames


def _is_frame(source: Any, library: str) -> bool:
    return any(
        base.__name__ == "DataFrame" and base.__module__.partition(".")[0] == library for base in type(source).__mro__
    )


def _read_frame(source: Any, role: str) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if _is_frame(source, "pandas"):
        return _from_pandas(source, role)
    if _is_frame(source, "polars"):
        return _from_polars(source, role)
    if hasattr(source, "__arrow_c_stream__") or isinstance(source, pa.RecordBatch):
        return _from_stream(source, role)
    raise TableError(
        f"{role}: a {type(source).__module__}.{type(source).__name__} is not a table; "
        "give a path, a pandas or polars DataFrame, or a pyarrow Table."
    )


def _from_pandas(frame: Any, role: str) -> pa.Table:
    if frame.columns.nlevels > 1:
        raise TableError(f"{role}: the column names have {frame.columns.nlevels} levels; join them into plain names.")
    names = [str(name) for name in frame.columns]
    cells = [_from_series(frame.iloc[:, position], name, role) for position, name in enumerate(names)]
    return pa.table(cells, names=names)


def _from_series(series: Any, name: str, role: str) -> Any:
    if type(series.dtype).__name__ == "SparseDtype":  # by name: pandas is not imported here
        series = series.sparse.to_dense()
    try:
        return pa.Array.from_pandas(series)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TableError(f"{role}: column {name!r} cannot be read ({reason}); give its cells one type.") from None


def _from_polars(frame: Any, role: str) -> pa.Table:
    # Objects would come through as the addresses of their pointers.
    objects = [name for name, dtype in frame.schema.items() if str(dtype) == "Object"]
    if objects:
        raise TableError(f"{role}: column {objects[0]!r} holds Python objects; give its cells one type.")
    columns = [_from_stream(frame.select(name), f"{role}: column {name!r}") for name in frame.columns]
    return pa.table([column.column(0) for column in columns], names=frame.columns)


def _from_stream(source: Any, role: str) -> pa.Table:
    try:
        return pa.table(source)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TableError(f"{role}: it cannot be turned into an Arrow table ({reason}); use other types.") from None


# Files


def _read_file(path: Path, role: str) -> pa.Table:
    reader = _READERS[_suffix(path, role, _READERS)] if path.is_file() else None
    if reader is None:
        raise TableError(f"{role}: {_not_a_file(path)}")
    with complaining(path, role):
        return reader(path, role)


@contextlib.contextmanager
def complaining(path: Path, role: str) -> Iterator[None]:
    """Turn what reading a file fails with into a TableError."""
    try:
        yield
    except OSError as error:
        # Arrow's own complaints about a file's content are OSErrors too, without an errno.
        reason = error.strerror or str(error).splitlines()[0].rstrip(".")
        raise TableError(f"{role}: {str(path)!r} cannot be read ({reason}).") from error
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise TableError(f"{role}: {str(path)!r} is damaged or is not what its suffix says ({reason}).") from error


def _not_a_file(path: Path) -> str:
    if path.is_dir():
        inside = sorted(item.name for item in path.iterdir() if item.name.lower().endswith(tuple(_READERS)))
        return f"{str(path)!r} is a folder; name a file" + (f" in it: {listing(inside)}." if inside else ".")
    around = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"there is no file {str(path)!r}{nearest(path.name, around) or '; check the path.'}"


def _suffix(path: Path, role: str, known: dict[str, Any]) -> str:
    name = path.name.lower()
    found = next((suffix for suffix in known if name.endswith(suffix)), None)
    if found is None:
        raise TableError(f"{role}: {path.name!r} has no suffix of a table; use one of {listing(known)}.")
    return found


def _read_text(delimiter: str) -> Callable[[Path, str], pa.Table]:
    def reader(path: Path, role: str) -> pa.Table:
        with pa.input_stream(str(path), compression="detect") as stream:
            content = stream.read_buffer()
        check_text(content, path, role)
        try:
            table = _parse_text(content, delimiter)
            _check_encoding(table, path, role)
        except pa.ArrowInvalid as error:
            raise TableError(f"{role}: {str(path)!r} {text_complaint(str(error))}") from None
        except UnicodeDecodeError:  # from the line of names
            raise TableError(f"{role}: {str(path)!r} is not UTF-8 text; save it as UTF-8.") from None
        _check_delimiter(table, delimiter, path, role)
        return table

    return reader


def _parse_text(content: pa.Buffer, delimiter: str) -> pa.Table:
    return pacsv.read_csv(
        pa.BufferReader(content),
        # One block: types are inferred from the first one only, and a late "n/k" in a column of numbers would fail.
        # No threads: only then does a ragged line come with its number.
        read_options=pacsv.ReadOptions(block_size=min(max(content.size, 1), 2**31 - 1), use_threads=False),
        parse_options=parsing(content, delimiter),
        convert_options=pacsv.ConvertOptions(strings_can_be_null=True),
    )


def parsing(start: pa.Buffer, delimiter: str) -> pacsv.ParseOptions:
    """Return how a text file is parsed that begins so."""
    return pacsv.ParseOptions(
        delimiter=delimiter,
        newlines_in_values=True,
        # In a table of one column an empty line is a row whose cell is missing.
        ignore_empty_lines=not _has_one_column(start, delimiter),
    )


def _has_one_column(content: pa.Buffer, delimiter: str) -> bool:
    names = content.slice(0, min(content.size, 65536)).to_pybytes().partition(b"\n")[0].strip()
    return bool(names) and delimiter.encode() not in names


def text_complaint(message: str) -> str:
    """Return what Arrow says of a text file in words that follow its name."""
    ragged = re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)", message)
    if ragged:
        line = f"line {ragged[1]}" if ragged[1] else "a line"
        return (
            f"is ragged: {line} has {ragged[3]} cells where the header has {ragged[2]}; mend that line or its quotes."
        )
    if "Empty CSV" in message:
        return "is empty; give a table with a line of column names."
    return f"cannot be read as text cells ({message.splitlines()[0]})."


_BINARY = {
    b"\x1f\x8b": ".csv.gz",
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
    b"FEA1": ".feather",
    b"PK\x03\x04": ".xlsx or .zip",
}


def check_text(content: pa.Buffer, path: Path, role: str) -> None:
    """Raise TableError where a file begins as no text file does."""
    start = content.slice(0, min(content.size, 65536)).to_pybytes()
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TableError(f"{role}: {str(path)!r} is UTF-16 text; save it as UTF-8.")
    truly = next((f" (it looks like {suffix})" for magic, suffix in _BINARY.items() if start.startswith(magic)), "")
    if truly or b"\x00" in start:
        raise TableError(
            f"{role}: {str(path)!r} holds binary data, not text{truly}; "
            "give it its true suffix, or save the table as CSV."
        )


def checked_part(table: pa.Table, path: Path, role: str) -> pa.Table:
    """Return some rows of a file as `read` gives the whole, but dictionaries as their values."""
    _check_names(table.column_names, role)
    table = _without_index(table)
    for place, kind in enumerate(table.schema.types):
        if pa.types.is_dictionary(kind):
            name = table.column_names[place]
            table = table.set_column(place, name, table.column(place).cast(kind.value_type))
    if path.name.lower().endswith(_TEXTS):
        _check_encoding(table, path, role)
        _check_delimiter(table, "\t" if ".tsv" in path.name.lower() else ",", path, role)
    return _with_folder(table, str(path.absolute().parent))


_TEXTS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


def _check_encoding(table: pa.Table, path: Path, role: str) -> None:
    # Arrow reads a column of text that is not UTF-8 as bytes.
    wrong = [
        name for name, kind in zip(table.column_names, table.schema.types, strict=True) if pa.types.is_binary(kind)
    ]
    if wrong:
        raise TableError(f"{role}: {str(path)!r} is not UTF-8 text (column {wrong[0]!r}); save it as UTF-8.")


def _check_delimiter(table: pa.Table, delimiter: str, path: Path, role: str) -> None:
    if table.num_columns > 1:
        return
    other = next((mark for mark in ",;\t|" if mark != delimiter and mark in table.column_names[0]), None)
    if other is not None:
        raise TableError(
            f"{role}: {str(path)!r} has one column only, as its cells are separated by {other!r}; "
            f"separate them by {delimiter!r}."
        )


def _read_parquet(path: Path, _role: str) -> pa.Table:
    # Not `read_table`: it takes folders called `a=b` on the way to the file for columns.
    with parquet.ParquetFile(path) as file:
        table = file.read()
    return _without_index(table)


def _without_index(table: pa.Table) -> pa.Table:
    """Return a table without what pandas calls an index that has no name: no column of the user's."""
    return table.drop_columns([name for name in table.column_names if re.fullmatch(r"__index_level_\d+__", name)])


def _read_arrow(path: Path, _role: str) -> pa.Table:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"FEA1"):
        return feather.read_table(str(path))
    with pa.OSFile(str(path)) as file:
        opened = pa.ipc.open_file if start == b"ARROW1" else pa.ipc.open_stream
        with opened(file) as batches:
            return batches.read_all()


_READERS: dict[str, Callable[[Path, str], pa.Table]] = {
    ".csv": _read_text(","),
    ".csv.gz": _read_text(","),
    ".tsv": _read_text("\t"),
    ".tsv.gz": _read_text("\t"),
    ".parquet": _read_parquet,
    ".feather": _read_arrow,
    ".arrow": _read_arrow,
}


class _Rows(contextlib.ExitStack):
    """Tables written to a file one below the other; the first decides the columns. A context manager."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.file = file
        self._writer: Any = None

    def put(self, table: pa.Table) -> None:
        """Write the rows of a table."""
        table = self.shaped(_with_folder(table, None))  # where it was read from is nobody else's concern
        if self._writer is None:
            self._writer = self.enter_context(self.begin(table.schema))
        self._writer.write_table(table)

    def shaped(self, table: pa.Table) -> pa.Table:
        """Return a table as the format holds it."""
        return table

    @abstractmethod
    def begin(self, schema: pa.Schema) -> Any:
        """Return Arrow's writer of tables of a schema."""


class _Texts(_Rows):
    """CSV, or with tabs between cells."""

    delimiter = ","

    def shaped(self, table: pa.Table) -> pa.Table:
        return pa.table([_as_text(column) for column in table.columns], names=table.column_names)

    def begin(self, schema: pa.Schema) -> Any:
        return pacsv.CSVWriter(self.file, schema, write_options=pacsv.WriteOptions(delimiter=self.delimiter))


class _Packed(_Texts):
    """The same through gzip."""

    def begin(self, schema: pa.Schema) -> Any:
        self.file = self.enter_context(pa.CompressedOutputStream(pa.PythonFile(self.file), "gzip"))
        return super().begin(schema)


class _Tabs(_Texts):
    delimiter = "\t"


class _PackedTabs(_Packed):
    delimiter = "\t"


class _Parquet(_Rows):
    def begin(self, schema: pa.Schema) -> Any:
        return parquet.ParquetWriter(self.file, schema)


class _Arrow(_Rows):
    """An Arrow file, which is what Feather is since its second version."""

    compression: str | None = None

    def begin(self, schema: pa.Schema) -> Any:
        # A file holds one dictionary a column.
        options = pa.ipc.IpcWriteOptions(compression=self.compression, unify_dictionaries=True)
        return pa.ipc.new_file(self.file, schema, options=options)


class _Feather(_Arrow):
    compression = "lz4"


def _as_text(values: pa.ChunkedArray) -> pa.Array:
    cells = plain(values)
    if pa.types.is_nested(cells.type):
        return pa.array(
            [None if cell is None else json.dumps(cell, ensure_ascii=False, default=str) for cell in cells.to_pylist()],
            pa.large_string(),
        )
    if pa.types.is_large_binary(cells.type):
        texts = [None if cell is None else base64.b64encode(cell).decode() for cell in cells.to_pylist()]
        return pa.array(texts, pa.large_string())
    return cells


_WRITERS: dict[str, type[_Rows]] = {
    ".csv": _Texts,
    ".csv.gz": _Packed,
    ".tsv": _Tabs,
    ".tsv.gz": _PackedTabs,
    ".parquet": _Parquet,
    ".feather": _Feather,
    ".arrow": _Arrow,
}
