"""Requests and answers: the JSON of `POST /predict`, its validation against a schema, its way to a table and back.

A request is `{"rows": [{"age": 39, "state": "CA"}, ...]}`. Each row is validated into *cells*: a tuple with one value a
column, in the schema's order, None where missing. Cells of many requests are then put into one table for the model.
No torch here: the client and the service's parent process use this file too.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from mtl_bento.columns._base import Column
from mtl_bento.columns.categorical import text_of
from mtl_bento.errors import MtlBentoError, RequestError, SchemaError, listing, nearest
from mtl_bento.schema import Schema
from mtl_bento.table import cell_error, folder_of, plain, type_error

MOST_DETAILS = 100
"""Places that one refusal lists."""
TOLERANCE = 1e-5
"""How far two answers to the same row may lie apart: a probability, or a share of value and spread for numbers."""

Cells: TypeAlias = tuple[Any, ...]
"""The validated values of one row in the order of the schema's columns, None where missing."""

AnyError = TypeVar("AnyError", bound=MtlBentoError)

_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
_EXAMPLE = '{"rows": [{...}, ...]}'


# Requests in


def row_model(schema: Schema) -> type[BaseModel]:
    """Return the model of one row: a strict, optional field an input, under the column's own name.

    Targets and ignored columns are accepted and dropped; any other name is refused.
    """
    fields: dict[str, Any] = {
        f"c{place}": (column.wire_type() | None, _field(column)) for place, column in enumerate(schema.columns)
    }
    dropped = frozenset(schema.targets) | frozenset(schema.ignored)

    def drop(data: Any) -> Any:
        if isinstance(data, dict) and not dropped.isdisjoint(data):
            return {name: value for name, value in data.items() if name not in dropped}
        return data

    validators: dict[str, Any] = {"drop": model_validator(mode="before")(drop)}
    return create_model("Row", __config__=_CONFIG, __validators__=validators, **fields)


def request_model(schema: Schema) -> type[BaseModel]:
    """Return the model of a request's body: `rows`, 1 to the schema's `max_rows` of them, and nothing else."""
    row: Any = row_model(schema)
    rows: Any = (list[row], Field(min_length=1, max_length=schema.max_rows))
    return create_model("PredictInput", __config__=_CONFIG, rows=rows)


class Reader:
    """Reads requests for one schema; building its model takes milliseconds, so keep the reader."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.model = request_model(schema)
        self._names = (*schema.names, *schema.targets, *schema.ignored)

    def read(self, body: bytes) -> list[Cells]:
        """Return the cells of a request's rows; raises RequestError or SchemaError, in one line with its places."""
        return self.cells(parse(body))

    def cells(self, data: Any, *, start: int = 0) -> list[Cells]:
        """Return the cells of `{"rows": [...]}`; `start` is the number of rows before them, for the errors.

        Raises SchemaError with every place that is wrong.
        """
        try:
            request = self.model.model_validate(data, context={})  # columns count in it what a request takes
        except ValidationError as error:
            sentence, detail = request_error(error, self._names)
            raise shifted(SchemaError(sentence, detail=detail), start) from None
        # A model's own dict holds its fields in order, which is the order of the columns.
        return [tuple(vars(row).values()) for row in request.rows]  # type: ignore[attr-defined]


def parse(body: bytes) -> Any:
    """Return the body of a request as Python data.

    Raises RequestError for what is no JSON in the strict sense: NaN, Infinity, a key given twice, half a surrogate.
    """
    try:
        text = body.decode("utf-8-sig")
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeError:
        raise RequestError("The body is not UTF-8 text; send JSON in UTF-8.") from None
    except RecursionError:
        raise RequestError(f"The body is nested too deeply; send {_EXAMPLE}.") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"The body is not JSON ({error.msg}, character {error.pos}); send {_EXAMPLE}.") from None
    except ValueError as error:  # a number of thousands of digits
        raise RequestError(f"The body is not JSON that can be read ({str(error).partition(';')[0]}).") from None
    return data


def rows_to_table(rows: Sequence[Mapping[str, Any]], schema: Schema) -> pa.Table:
    """Return rows, as a request holds them, as a table of the schema's columns.

    Raises SchemaError naming row and column of the first value that is not of its column's kind. Unlike a request's,
    their number is not limited.
    """
    reader = Reader(schema)
    parts = (range(len(rows))[start : start + schema.max_rows] for start in range(0, len(rows), schema.max_rows))
    cells = [row for part in parts for row in reader.cells({"rows": [dict(rows[i]) for i in part]}, start=part.start)]
    return cells_to_table(cells, schema)


def cells_to_table(cells: Sequence[Cells], schema: Schema) -> pa.Table:
    """Return validated cells as a table of the schema's columns, in the type that each column asks for."""
    by_column = list(zip(*cells, strict=True)) or [()] * len(schema.columns)
    arrays = [pa.array(values, column.arrow_type()) for column, values in zip(schema.columns, by_column, strict=True)]
    return pa.table(arrays, names=list(schema.names))


def request_error(error: ValidationError, names: Iterable[str] = ()) -> tuple[str, list[dict[str, Any]]]:
    """Return the first complaint as a sentence, and all of them as `{"loc", "msg", "type"}` (100 at most).

    `names` are the columns that a row may hold, for the nearest to a misspelt one. The sentences hold values of the
    request: they are for its caller, not for a log.
    """
    by_place: dict[tuple[int | str, ...], list[Any]] = {}
    for item in error.errors(include_url=False):
        place = _place(item["loc"])
        if place in by_place or len(by_place) < MOST_DETAILS:
            by_place.setdefault(place, []).append(item)
    known = list(names)
    detail = [
        {"loc": list(place), "msg": _complaint(place, items, known), "type": items[0]["type"]}
        for place, items in by_place.items()
    ]
    first = detail[0]
    return f"{place_text(first['loc'])}{first['msg']}", detail


def place_text(loc: Sequence[int | str]) -> str:
    """Return the place of a complaint as a reader writes it: `rows[3].age: `; empty for the whole body."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not text or not part.isidentifier():
            text += part if not text else f"[{part!r}]"
        else:
            text += f".{part}"
    return f"{text}: " if text else ""


def _field(column: Column) -> Any:
    return Field(default=None, alias=column.name, title=column.name, description=column.describe())


def shifted(error: AnyError, start: int) -> AnyError:
    """Return the error with every row number `start` higher: it was found in a later part of the rows."""
    if not start:
        return error
    detail = [{**item, "loc": _later(item["loc"], start)} for item in error.detail]
    message = re.sub(r"^rows\[(\d+)\]", lambda found: f"rows[{int(found[1]) + start}]", str(error))
    return type(error)(message, detail=detail)


def _later(loc: Sequence[int | str], start: int) -> list[int | str]:
    in_row = len(loc) > 1 and loc[0] == "rows" and isinstance(loc[1], int)
    return [loc[0], int(loc[1]) + start, *loc[2:]] if in_row else list(loc)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"The body gives the key {twice[:60]!r} twice in one object; give it once.")
    return data


def _no_constant(text: str) -> Any:
    raise RequestError(f"The body holds {text}, which is not JSON; send a finite number, or null for a missing value.")


def _place(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the place without the names that pydantic gives the branches of a union."""
    return (*loc[:3], *(part for part in loc[3:] if isinstance(part, int)))


_WORDS = {
    "string_type": ["a text"],
    "float_type": ["a number"],
    "finite_number": ["a number"],
    "int_type": ["a whole number"],
    "bool_type": ["true", "false"],
    "list_type": ["a list of numbers"],
}
"""What would have been right, by the type of pydantic's complaint."""


def _complaint(place: tuple[int | str, ...], items: list[Any], names: list[str]) -> str:
    first = items[0]
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        return _unknown_name(str(place[-1]), names if len(place) > 1 else ["rows"])
    if len(place) < 3 and place != ("rows",):
        wanted = '{"column": value, ...}' if place else _EXAMPLE
        return f"{_shown(value)} is not an object; send {wanted}"
    if place == ("rows",):
        return _bad_rows(kind, first)
    if kind in ("too_short", "too_long"):
        limit = first["ctx"].get("min_length") or first["ctx"].get("max_length")
        return f"has length {first['ctx']['actual_length']}; send {limit} numbers or null"
    if any(item["type"] == "value_error" for item in items):
        message = str(next(item for item in items if item["type"] == "value_error")["msg"]).removeprefix(
            "Value error, "
        )
        return f"{_shown(value)} {message}" if message.startswith("is ") else message
    return _not_wanted(value, [item["type"] for item in items])


def _not_wanted(value: Any, kinds: list[str]) -> str:
    found = {kind: words for kind, words in _WORDS.items() if kind in kinds}
    if "float_type" in found or "finite_number" in found:
        found.pop("int_type", None)
    wanted = list(dict.fromkeys(word for words in found.values() for word in words)) or ["a value of this column"]
    return f"{_shown(value)} is not {_either(wanted)}; send {_either([*wanted, 'null'])}"


def _unknown_name(name: str, names: list[str]) -> str:
    close = nearest(name, names)
    return f"there is no such name{close}" if close else f"there is no such name; send {listing(map(repr, names))}"


def _bad_rows(kind: str, item: Mapping[str, Any]) -> str:
    if kind == "too_long":
        return f"there are {item['ctx']['actual_length']} rows; send at most {item['ctx']['max_length']} in one request"
    if kind == "too_short":
        return f"there is no row; send {_EXAMPLE} with at least one"
    if kind == "missing":
        return f"is missing; send {_EXAMPLE}"
    return f"{_shown(item['input'])} is not a list of objects; send {_EXAMPLE}"


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


# Requests out


def table_to_rows(table: pa.Table, schema: Schema) -> list[dict[str, Any]]:
    """Return the inputs in a table as the rows of a request; missing cells are left out, other columns dropped.

    Bytes become base64, files are read. Raises SchemaError where the table has none of the inputs, or a cell that JSON
    cannot hold (an infinity).
    """
    columns = [column for column in schema.columns if column.name in table.column_names]
    if not columns:
        raise SchemaError(f"The table has none of the model's inputs ({listing(map(repr, schema.names))}); add them.")
    folder = folder_of(table)
    listed = [_json_cells(column.sent(column.located(table.column(column.name), folder)), column) for column in columns]
    names = [column.name for column in columns]
    return [
        {name: cell for name, cell in zip(names, row, strict=True) if cell is not None}
        for row in zip(*listed, strict=True)
    ]


def _json_cells(values: pa.ChunkedArray, column: Column) -> list[Any]:
    cells = plain(values)
    kind, wanted = cells.type, column.arrow_type()
    if pa.types.is_floating(kind):
        return _json_numbers(cells, column.name)
    if pa.types.is_large_string(kind) and not (pa.types.is_string(wanted) or pa.types.is_large_string(wanted)):
        return [_spelled(cell) for cell in cells.to_pylist()]
    if pa.types.is_large_binary(kind) and pa.types.is_large_binary(wanted):
        return [None if cell is None else base64.b64encode(cell).decode() for cell in cells.to_pylist()]
    if pa.types.is_boolean(kind) and pa.types.is_floating(wanted):
        return list(cells.cast(pa.uint8()).to_pylist())
    if pa.types.is_temporal(kind) and not (pa.types.is_interval(kind) or pa.types.is_duration(kind)):
        return list(cells.cast(pa.string()).to_pylist())
    if pa.types.is_nested(kind) and not (pa.types.is_struct(kind) or pa.types.is_map(kind) or pa.types.is_union(kind)):
        return [_json_list(cell, row, column.name) for row, cell in enumerate(cells.to_pylist())]
    known = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_large_string)
    if not any(check(kind) for check in known):
        raise type_error(column.name, kind, wanted="a request holds texts, numbers, true and false, dates and lists")
    return list(cells.to_pylist())


def _json_numbers(cells: pa.Array, name: str) -> list[float | int | None]:
    # Through text: 0.1 as a float32 goes out as 0.1, not as 0.10000000149011612, which would be another category.
    texts = cells.cast(pa.string()).to_pylist() if cells.type == pa.float32() else cells.to_pylist()
    return [_json_number(cell, row, name) for row, cell in enumerate(texts)]


def _json_number(cell: Any, row: int, name: str) -> float | int | None:
    number = math.nan if cell is None else float(cell)
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise cell_error(name, row, number, wrong="is infinite", wanted="give a finite number or leave the cell empty")
    # Whole numbers with missing cells reach us as floats from pandas; milliseconds since 1970 have to be whole.
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _json_list(cell: list[Any] | None, row: int, name: str) -> list[Any] | None:
    if cell is None:
        return None
    return [_json_number(item, row, name) if isinstance(item, float) else item for item in cell]


def _spelled(cell: str | None) -> Any:
    """Return what a text spells where the column is no text: a number, or a list of numbers as it stands in CSV."""
    if cell is None or not cell.strip():
        return None
    try:
        return json.loads(cell, parse_constant=lambda _: None)
    except ValueError:
        return cell  # the service names the cell and says what it wants


# Answers


def answer_model(examples: Mapping[str, Any]) -> type[BaseModel]:
    """Return the model of one answer for the API's documentation: an object a target, with an example of each."""
    fields: dict[str, Any] = {
        f"t{place}": (
            dict[str, Any],
            Field(alias=name, title=name, description=_fields_in_words(example), examples=[example]),
        )
        for place, (name, example) in enumerate(examples.items())
    }
    return create_model("Answer", __config__=ConfigDict(protected_namespaces=()), **fields)


_FIELDS = {
    "value": "the answer",
    "probability": "how likely the value is",
    "probabilities": "how likely each label is (the ten likeliest where there are more)",
    "set": "the labels among which the true one is, as often as GET /model says",
    "lower": "the end below of an interval that holds the truth as often as GET /model says",
    "upper": "the end above",
}
"""What the fields of an answer are, by name."""


def _fields_in_words(example: Mapping[str, Any]) -> str:
    return "; ".join(f"`{name}`: {_FIELDS[name]}" for name in example if name in _FIELDS)


def disagreement(
    answers: Sequence[Mapping[str, Any]],
    expected: Sequence[Mapping[str, Any]],
    spreads: Mapping[str, float],
    edges: Mapping[str, Mapping[str, float]] | None = None,
) -> str | None:
    """Return where two lists of answers lie further apart than the project promises, or None.

    Probabilities may differ by 1e-5, numbers by 1e-5 of (their size + the target's spread in training), labels only
    where the two likeliest are equally likely, or one lies at the threshold from which on it is answered. `spreads`
    holds the standard deviation of each target that is a number, `edges` the thresholds of targets that have some,
    as `Task.edges` says them.
    """
    edges = edges or {}
    if len(answers) != len(expected):
        return f"{len(answers)} answers for {len(expected)} rows"
    for row, (got, wanted) in enumerate(zip(answers, expected, strict=True)):
        if got.keys() != wanted.keys():
            return f"row {row}: targets {listing(got)} instead of {listing(wanted)}"
        for target, answer in wanted.items():
            edge = edges.get(target, {})
            for path, one, other in _pairs(got[target], answer):
                alike = _alike(path, one, other, spreads.get(target, 0.0))
                if not alike and not _tied(path, answer, got[target], edge):
                    return f"row {row}, target {target!r}: {path} is {one!r} instead of {other!r}"
    return None


def _pairs(got: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, value, expected value) of all leaves of two answers."""
    if isinstance(got, dict) and isinstance(wanted, dict):
        # The listed probabilities are the ten likeliest: the tenth may be another at a tie.
        both = dict.fromkeys([*wanted, *got])
        keys = [key for key in both if key in got and key in wanted] if path == "probabilities" else list(both)
        for key in keys:
            yield from _pairs(got.get(key), wanted.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(got, list) and isinstance(wanted, list) and len(got) == len(wanted):
        for place, pair in enumerate(zip(got, wanted, strict=True)):
            yield from _pairs(*pair, f"{path}[{place}]")
    else:
        yield path, got, wanted


def _alike(path: str, one: Any, other: Any, spread: float) -> bool:
    if not (_is_number(one) and _is_number(other)):
        return bool(one == other)
    slack = TOLERANCE if "probabilit" in path else TOLERANCE * (abs(other) + spread)
    return bool(abs(one - other) <= slack)


def _tied(path: str, answer: Mapping[str, Any], got: Mapping[str, Any], edge: Mapping[str, float]) -> bool:
    """Return whether a label, of a cell where the answer is a grid, may as well be another; or whether there is one.

    Of a prediction set: whether each label that only one of the two has lies at the edge, or may be the value.
    """
    if path.startswith("set"):
        shares = answer["probabilities"]
        differing = {text_of(label) for label in [*got["set"], *answer["set"]]}
        differing -= {text_of(label) for label in got["set"] if label in answer["set"]}
        near = [abs(shares.get(label, math.inf) - edge.get("set", math.inf)) <= TOLERANCE for label in differing]
        return (bool(near) and all(near)) or (got["value"] != answer["value"] and _tied("value", answer, got, edge))
    if "value" in edge:
        # At the threshold the value may be either label; its probability is then the other's.
        near = [abs(share - edge["value"]) <= TOLERANCE for share in answer["probabilities"].values()]
        return any(near) and (path == "value" or (path == "probability" and got["value"] != answer["value"]))
    if not re.fullmatch(r"(value|box)(\[\d+\])*", path):
        return False
    if "probabilities" not in answer:
        return bool(abs(answer.get("probability", 1.0) - 0.5) <= TOLERANCE)
    cell = [int(place) for place in re.findall(r"\d+", path)]
    likeliest = sorted((reduce(getitem, cell, shares) for shares in answer["probabilities"].values()), reverse=True)
    return len(likeliest) > 1 and bool(likeliest[0] - likeliest[1] <= 2 * TOLERANCE)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
