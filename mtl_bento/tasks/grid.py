"""A class for each cell of a grid laid over a picture: which parts show a car, the road, somebody.

Letters: B rows, L cells (rows x columns, row by row), C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from mtl_bento.columns._base import Column
from mtl_bento.columns.categorical import by_text, text_of
from mtl_bento.errors import SchemaError, SpecError
from mtl_bento.tasks._base import TASKS, TaskSpec, shortest
from mtl_bento.tasks._cells import all_alike, all_missing, lists, picture, refusal
from mtl_bento.tasks._levels import Label, arrow_type, natural, typed, unknown_label
from mtl_bento.tasks._positions import PositionsTask

Side = Annotated[int, Field(ge=1)]


class GridSpec(TaskSpec):
    """A grid of labels; null or -1 is a cell that is not known."""

    kind: Literal["grid"] = "grid"
    image: str | None = None
    """The picture that the grid lies over, where there are several."""
    shape: tuple[Side, Side] | None = None
    """Rows and columns of the grid; learned where the labels are nested lists."""
    levels: tuple[Label, ...] = ()
    """The labels of cells in their own type; learned where not given. Of two, the later is the positive one."""
    dtype: str = "string"
    """Arrow type of the labels."""
    frequencies: tuple[float, ...] = ()
    """Share of each level among the known cells of the training rows."""


@TASKS.register(GridSpec)
class Grid(PositionsTask[GridSpec]):
    """Cross-entropy in nats, averaged over a picture's known cells; answers are probabilities [B, L * (1 or C)]."""

    metrics = ("average_precision", "mean_cell_iou", "cell_accuracy")

    def __init__(self, spec: GridSpec) -> None:
        super().__init__(spec)
        self.texts = [text_of(level) for level in spec.levels]

    @property
    def reads(self) -> str | None:
        """The picture."""
        return self.spec.image

    def settled(self, columns: Sequence[Column]) -> Self:
        """Return the task with its picture named; raises SpecError where it names what is none."""
        return self.with_spec(image=picture(self.name, self.spec.image, columns))

    def suited(self, column: Column, table: pa.Table, rows: np.ndarray) -> Column:
        """Return a picture with a grid of this shape, other columns as they are."""
        del table, rows
        has_grid = "grid" in type(column).model_fields
        return column.model_copy(update={"grid": self.spec.shape}) if has_grid else column

    @classmethod
    def recognises(cls, values: pa.ChunkedArray) -> bool:
        """Return whether every cell is a list of rows, or a flat list of whole numbers; then `shape` is asked for."""
        cells = lists(values)
        return all(isinstance(cell, list) and cell and all(map(_is_row_or_label, cell)) for cell in cells)

    @classmethod
    def survey(cls, spec: GridSpec, values: pa.ChunkedArray) -> GridSpec:
        """Return the spec with the shape of the grids and all labels as levels, where it names none."""
        shape = _shape(spec, values)
        _, firsts = _labels(spec, shape, values)
        levels = spec.levels or natural(value for _, value in firsts)
        return spec.model_copy(update={"shape": shape, "levels": levels})

    @classmethod
    def fit(cls, spec: GridSpec, values: pa.ChunkedArray) -> GridSpec:
        """Return the spec with shape, levels, dtype and frequencies; SchemaError where there is nothing to learn."""
        spec = cls.survey(spec, values)
        places, firsts = _labels(spec, spec.shape, values)
        if not firsts:
            raise all_missing(spec.name)
        texts = [text_of(level) for level in spec.levels]
        if twice := [text for text in texts if texts.count(text) > 1]:
            raise SpecError(f"Target {spec.name!r}: `levels` names {twice[0]!r} more than once; name each label once.")
        if unknown := [text for text, _ in firsts if text not in texts]:
            raise SchemaError(unknown_label(spec.name, unknown[0], spec.levels))
        if len(firsts) < 2:
            raise all_alike(spec.name, f"{firsts[0][1]!r} in every known cell")
        labelled = places[(places >= 0).any(1)]
        if (labelled == labelled[0]).all():
            raise all_alike(spec.name, "the same grid")
        counts = dict(zip([text for text, _ in firsts], np.bincount(places[places >= 0]).tolist(), strict=True))
        shares = tuple(counts.get(text, 0) / sum(counts.values()) for text in texts)
        dtype = str(typed(spec.levels, pa.array([value for _, value in firsts]).type).type)
        return spec.model_copy(update={"dtype": dtype, "frequencies": shares})

    def describe(self) -> str:
        """Return "15 x 20 cells: 0, 1"."""
        rows, columns = self.spec.shape or (0, 0)
        return f"{rows} x {columns} cells: {super().describe()}"

    @property
    def n_classes(self) -> int:
        """How many levels."""
        return len(self.spec.levels)

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return codes, int64 [B, L], -1 where not known; raises SchemaError on another shape or an unknown label."""
        places, firsts = _labels(self.spec, self.spec.shape, values)
        codes = {text: code for code, text in enumerate(self.texts)}
        if unknown := [text for text, _ in firsts if text not in codes]:
            raise SchemaError(unknown_label(self.name, unknown[0], self.spec.levels))
        found = np.array([codes[text] for text, _ in firsts] + [-1], dtype=np.int64)
        return np.asarray(found[places])  # what is not known has place -1: the last

    def truth(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return codes, int64 [B, L], -1 where not known."""
        return self.encode(values)

    def scored(self, answers: np.ndarray) -> np.ndarray:
        """Return probabilities [B, L, C]."""
        return self.table(answers)

    def scored_columns(self, columns: Mapping[str, pa.ChunkedArray]) -> np.ndarray:
        """Return probabilities [B, L, C] from the columns `proba__LABEL`."""
        tables = [columns[f"{self.name}__proba__{text}"].to_pylist() for text in self.texts]
        n_rows, n_columns = self.spec.shape or (1, 1)
        shape = (len(tables), len(tables[0]), n_rows * n_columns)
        return np.array(tables, dtype=np.float32).reshape(shape).transpose(1, 2, 0)

    def values(self, answers: np.ndarray) -> pa.Array:
        """Return the likeliest label of each cell, as lists of rows."""
        codes = self.table(answers).argmax(-1)
        return self._nested(pa.array(self.spec.levels, arrow_type(self.spec.dtype)).take(pa.array(codes.ravel())))

    def columns(self, answers: np.ndarray) -> dict[str, pa.Array]:
        """Return a column `proba__LABEL` a level: lists of rows."""
        table = self.table(answers).astype(np.float32)
        return {f"proba__{name}": self._nested(pa.array(table[..., c].ravel())) for c, name in enumerate(self.texts)}

    def rows(self, answers: np.ndarray) -> list[dict[str, Any]]:
        """Return the grid of the likeliest labels, and of each label's probabilities, row by row."""
        table = self.table(answers)
        grids = [self._nested(pa.array(shortest(table[..., c].ravel()))).to_pylist() for c in range(len(self.texts))]
        return [
            {"value": value, "probabilities": dict(zip(self.texts, shares, strict=True))}
            for value, *shares in zip(self.values(answers).to_pylist(), *grids, strict=True)
        ]

    def said(self, values: pa.ChunkedArray) -> list[Any]:
        """Return the grids row by row, null where nothing of one is known, and in cells that are not."""
        codes = self.encode(values)
        places = pa.array(codes.ravel(), mask=codes.ravel() < 0)
        grids = self._nested(pa.array(self.spec.levels, arrow_type(self.spec.dtype)).take(places)).to_pylist()
        return [grid if known else None for grid, known in zip(grids, np.any(codes >= 0, axis=1), strict=True)]

    def card(self) -> dict[str, Any]:
        """Return the fields of the spec, and the classes in their own type."""
        return super().card() | {"classes": list(self.spec.levels)}

    def _nested(self, cells: pa.Array) -> pa.Array:
        """Return cells [B * L] as lists of rows [B]."""
        n_rows, n_columns = self.spec.shape or (1, 1)
        return _lists(_lists(cells, n_columns), n_rows)


def _lists(values: pa.Array, size: int) -> pa.Array:
    """Return values as lists of so many each."""
    return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, size, dtype=np.int32), values)


def _wanted(shape: tuple[int, int] | None) -> str:
    if shape is None:
        return (
            "a grid is a list of rows, such as [[0, 1], [1, 1]], or one flat list, row by row, beside "
            "`shape: [2, 2]` in mtl.yaml; null or -1 is a cell that is not known"
        )
    n_rows, n_columns = shape
    return (
        f"a grid here has {n_rows} rows of {n_columns} labels, nested or as one flat list of {n_rows * n_columns}, "
        "row by row; null or -1 is a cell that is not known"
    )


def _shape(spec: GridSpec, values: pa.ChunkedArray) -> tuple[int, int]:
    """Return the shape of the grids, that of the first label where the spec names none."""
    if spec.shape is not None:
        return spec.shape
    for row, cell in enumerate(lists(values)):
        if cell is None:
            continue
        if isinstance(cell, list) and cell and isinstance(cell[0], list) and cell[0]:
            return len(cell), len(cell[0])
        if isinstance(cell, list) and cell:
            raise SpecError(
                f"Target {spec.name!r} holds flat lists of {len(cell)} cells; give the grid its shape in mtl.yaml, "
                f"`{spec.name}: {{kind: grid, shape: [rows, columns]}}`, such as shape: {_square(len(cell))}."
            )
        raise refusal(spec.name, row, cell, wrong="is no grid", wanted=_wanted(None))
    raise all_missing(spec.name)


def _is_row_or_label(item: Any) -> bool:
    return isinstance(item, list | int) or (isinstance(item, float) and item.is_integer())


def _square(n: int) -> list[int]:
    rows = next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
    return [rows, n // rows]


def _labels(
    spec: GridSpec, shape: tuple[int, int] | None, values: pa.ChunkedArray
) -> tuple[np.ndarray, list[tuple[str, Any]]]:
    """Return each cell's place [B, L] among the distinct texts, -1 where not known, and (text, first value) each."""
    assert shape is not None
    n_rows, n_columns = shape
    flat: list[Any] = []
    for row, cell in enumerate(lists(values)):
        if cell is None:
            flat += [None] * (n_rows * n_columns)
            continue
        held = _flat(cell, n_rows, n_columns)
        if held is None:
            size = f"{len(cell)} cells" if isinstance(cell, list) else "no list"
            raise refusal(spec.name, row, cell, wrong=f"does not fit ({size})", wanted=_wanted(shape))
        flat += held
    try:
        cells = pa.array(flat, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SchemaError(f"Target {spec.name!r} mixes kinds of labels ({error}); {_wanted(shape)}.") from None
    places, firsts = by_text(pa.chunked_array([cells]), spec.name)
    if "-1" not in [text_of(level) for level in spec.levels]:
        unknown = [place for place, (text, _) in enumerate(firsts) if text == "-1"]
        firsts = [first for first in firsts if first[0] != "-1"]
        for place in unknown:
            places = np.where(places == place, -1, places - (places > place))
    return places.reshape(len(values), n_rows * n_columns), firsts


def _flat(cell: Any, n_rows: int, n_columns: int) -> list[Any] | None:
    """Return the labels of one grid row by row, or None where it has another shape."""
    if not isinstance(cell, list):
        return None
    if len(cell) == n_rows and all(isinstance(row, list) and len(row) == n_columns for row in cell):
        return [label for row in cell for label in row]
    if len(cell) == n_rows * n_columns and not any(isinstance(label, list) for label in cell):
        return cell
    return None
