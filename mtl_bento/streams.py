"""Files larger than memory, read a part at a time: every part is a table as `table.read` would have cut from the whole.

Parts of CSV have the types that the whole file would have: those that Arrow infers from a first block of it, each
replaced by the next that holds the first cell that it does not, until one pass over the file finds none.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
from pyarrow import parquet

from mtl_bento import table as tables
from mtl_bento.errors import SchemaError, TableError

ROWS = 16_384
"""Rows of a part at most."""
REQUESTS = 16
"""Of the largest request's rows, as many at most."""
BLOCK = 2**24
"""Bytes of a text file that are read at once; a file that is no longer is read as a whole."""
BUFFER = 2**18
"""Bytes of a column of a Parquet file that are read at once: its groups of rows may be larger than memory."""


def batches(source: str | os.PathLike[str], *, rows: int = ROWS, role: str = "table") -> Iterator[pa.Table]:
    """Yield a file's rows in order, in tables of at most `rows` of them, all of one schema; at least one.

    Each is as `table.read` gives the whole, but that dictionaries are their values, since those of parts differ.
    Raises TableError as `table.read` does, some of it only when the part in question is reached.
    """
    path = Path(source)
    opened = next((open_ for suffix, open_ in _PARTS.items() if path.name.lower().endswith(suffix)), None)
    if opened is None or not path.is_file() or not _is_large(path):
        table = tables.read(source, role=role)
        yield from _cut(table, rows)
        return
    empty = True
    with tables.complaining(path, role):
        for part in opened(path, role, rows):
            for table in _cut(tables.checked_part(part, path, role), rows):
                empty = False
                yield table
    if empty:
        tables.read(source, role=role)  # says that there is no row in it


def rows_of(source: Any) -> int:
    """Return how many rows whoever answers is given at once: so many times what a request may hold of a model's inputs.

    A picture takes a thousand times the memory of a row of numbers. A service says itself how many it takes.
    """
    schema = getattr(source, "schema", None)
    return ROWS if schema is None else min(ROWS, REQUESTS * schema.max_rows)


@contextlib.contextmanager
def counted_from(first: int) -> Iterator[None]:
    """Let errors about cells of a part name the row of the file, where the part begins at row `first`."""
    try:
        yield
    except SchemaError as error:
        if first and error.detail and error.detail[0]["loc"][:1] == ["rows"]:
            row = error.detail[0]["loc"][1]
            detail = [{**place, "loc": ["rows", place["loc"][1] + first, *place["loc"][2:]]} for place in error.detail]
            raise type(error)(str(error).replace(f"row {row}:", f"row {row + first}:", 1), detail=detail) from None
        raise


def _is_large(path: Path) -> bool:
    """Return whether a file is to be read in parts; how large a compressed one is, only reading it says."""
    return path.stat().st_size > BLOCK or path.name.lower().endswith((".gz", ".parquet"))


def _cut(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


# Text


def _text_parts(delimiter: str) -> Callable[[Path, str, int], Iterator[pa.Table]]:
    def parts(path: Path, role: str, rows: int) -> Iterator[pa.Table]:
        del rows  # a block of text is small enough, and is cut afterwards
        with pa.input_stream(str(path), compression="detect") as stream:
            start = stream.read(BLOCK)
        buffer = pa.py_buffer(start)
        tables.check_text(buffer, path, role)
        if len(start) < BLOCK:
            yield tables.read(path, role=role)
            return
        options = tables.parsing(buffer, delimiter)
        with _text_complaints(path, role):
            types, block = _types(path, options)
            yield from _blocks(path, options, types, block)

    return parts


@contextlib.contextmanager
def _text_complaints(path: Path, role: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise TableError(f"{role}: {str(path)!r} is not UTF-8 text; save it as UTF-8.") from None
        raise TableError(f"{role}: {str(path)!r} {tables.text_complaint(str(error))}") from None
    except UnicodeDecodeError:  # from the line of names
        raise TableError(f"{role}: {str(path)!r} is not UTF-8 text; save it as UTF-8.") from None


def _blocks(path: Path, options: Any, types: dict[str, pa.DataType], block: int) -> Iterator[pa.Table]:
    with (
        pa.input_stream(str(path), compression="detect") as stream,
        pacsv.open_csv(
            stream,
            read_options=pacsv.ReadOptions(block_size=block, use_threads=False),
            parse_options=options,
            convert_options=pacsv.ConvertOptions(strings_can_be_null=True, column_types=types),
        ) as reader,
    ):
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _types(path: Path, options: Any) -> tuple[dict[str, pa.DataType], int]:
    """Return the type of each column over the whole file, and how large a block holds its longest line.

    The first block is inferred by Arrow and so misfits nothing before it is named here.
    """
    types: dict[str, pa.DataType] = {}
    names: list[str] = []
    block = BLOCK
    while True:
        try:
            for table in _blocks(path, options, types, block):
                names = table.column_names
                types = types or dict(zip(names, table.schema.types, strict=True))
            return types, block
        except pa.ArrowInvalid as error:
            if "straddl" in str(error):
                block *= 2
            elif (found := _MISFIT.search(str(error))) is not None and names:
                name, value = names[int(found[1])], found[3]
                types[name] = _wider(types[name], value)
            else:
                raise


_MISFIT = re.compile(
    r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to ([^:]+): invalid value '(.*)'$", re.S
)
_CANDIDATES = (
    pa.null(),
    pa.int64(),
    pa.bool_(),
    pa.date32(),
    pa.time32("s"),
    pa.timestamp("s"),
    pa.timestamp("ns"),
    pa.float64(),
    pa.string(),
)
"""Types in the order in which Arrow tries them."""


def _wider(kind: pa.DataType, value: str) -> pa.DataType:
    """Return the next type after `kind`, in the order in which Arrow tries them, that a cell can be read as."""
    place = _CANDIDATES.index(kind) if kind in _CANDIDATES else len(_CANDIDATES) - 2
    for candidate in _CANDIDATES[place + 1 :]:
        cell = ('x\n"' + value.replace('"', '""') + '"\n').encode()
        try:
            pacsv.read_csv(
                pa.BufferReader(cell),
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(column_types={"x": candidate}),
            )
        except pa.ArrowInvalid:
            continue
        return candidate
    return pa.string()


# Parquet and Arrow


def _parquet_parts(path: Path, _role: str, rows: int) -> Iterator[pa.Table]:
    with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=rows):
            yield pa.Table.from_batches([batch])


def _arrow_parts(path: Path, role: str, _rows: int) -> Iterator[pa.Table]:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"FEA1"):  # Feather's first version has no parts
        yield tables.read(path, role=role)
        return
    with pa.OSFile(str(path)) as file:
        if start == b"ARROW1":
            with pa.ipc.open_file(file) as reader:
                for place in range(reader.num_record_batches):
                    yield pa.Table.from_batches([reader.get_batch(place)])
        else:
            with pa.ipc.open_stream(file) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])


_PARTS: dict[str, Callable[[Path, str, int], Iterator[pa.Table]]] = {
    ".csv": _text_parts(","),
    ".csv.gz": _text_parts(","),
    ".tsv": _text_parts("\t"),
    ".tsv.gz": _text_parts("\t"),
    ".parquet": _parquet_parts,
    ".feather": _arrow_parts,
    ".arrow": _arrow_parts,
}
