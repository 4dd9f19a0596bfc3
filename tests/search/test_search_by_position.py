"""A whole search on a text-like input of a block of its own: one target answers by its positions, one by the row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pytest

import mtl_bento as mb
from mtl_bento.columns._base import COLUMNS, Column
from mtl_bento.errors import SchemaError, SpecError
from mtl_bento.model import Model
from mtl_bento.samples import LENGTH, N_TOKENS, SampleCells
from mtl_bento.table import plain
from mtl_bento.tasks._base import TASKS
from mtl_bento.tasks.regression import RegressionSpec
from mtl_bento_search import api, metrics
from mtl_bento_search.config import parse_config
from mtl_bento_search.evaluation import evaluate
from mtl_bento_search.executors.local import InProcess
from mtl_bento_search.problem import make_problem
from mtl_bento_search.run import Run


class DigitsColumn(Column):
    """Texts of up to six digits."""

    kind: Literal["test_digits"] = "test_digits"
    dtype: ClassVar[Any] = np.int64
    length: int = 0
    """Set by the task that answers for each digit."""

    @property
    def block(self) -> str:
        return f"sample_positions:{self.name}"

    @property
    def n_features(self) -> int:
        return LENGTH

    @classmethod
    def fit(cls, name: str, values: pa.ChunkedArray) -> Self:
        return cls(name=name)

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        rows = [[int(digit) for digit in text or ""] for text in plain(values).to_pylist()]
        return np.array([row + [-1] * (LENGTH - len(row)) for row in rows], dtype=np.int64).reshape(-1, LENGTH)

    def wire_type(self) -> Any:
        return str

    def arrow_type(self) -> pa.DataType:
        return pa.string()

    def draw(self, rng: np.random.Generator) -> str:
        return "".join(map(str, rng.integers(0, N_TOKENS, 3)))

    def describe(self) -> str:
        return "digits"


class DigitsSpec(RegressionSpec):
    kind: Literal["test_each"] = "test_each"  # type: ignore[assignment]
    length: int = LENGTH


class Digits(SampleCells):
    """A number for each digit; labels are texts of as many numbers as the row's text has digits."""

    metrics = ("mae",)
    texts: list[str] | None = None

    @property
    def reads(self) -> str:
        return "digits"

    def suited(self, column: Any, table: pa.Table, rows: np.ndarray) -> Any:
        return column.model_copy(update={"length": self.spec.length})

    def place(self, table: pa.Table, columns: Any) -> Digits:
        (column,) = (column for column in columns if column.name == "digits")
        placed = Digits(self.spec)
        placed.texts = [text or "" for text in table[column.name].to_pylist()]
        return placed

    @classmethod
    def fit(cls, spec: Any, values: pa.ChunkedArray) -> Any:
        return spec

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        assert self.texts is not None
        encoded = np.full((len(values), self.spec.length), np.nan, dtype=np.float32)
        for row, (label, text) in enumerate(zip(values.to_pylist(), self.texts, strict=True)):
            numbers = [] if label is None else [float(number) for number in label.split()]
            assert len(numbers) in (0, len(text))
            encoded[row, : len(numbers)] = numbers
        return encoded

    def truth(self, values: pa.ChunkedArray) -> np.ndarray:
        known = self.encode(values)
        return np.where(np.isnan(known).all(1), np.nan, np.nan_to_num(known).sum(1))

    def scored(self, answers: np.ndarray) -> np.ndarray:
        assert self.texts is not None
        return np.array([a[: len(t)].sum() for a, t in zip(answers, self.texts, strict=True)], dtype=np.float64)

    def scored_columns(self, columns: Any) -> np.ndarray:
        return self.truth(columns[self.name])

    def values(self, answers: np.ndarray) -> pa.Array:
        assert self.texts is not None
        rows = [" ".join(map(str, a[: len(t)].tolist())) for a, t in zip(answers, self.texts, strict=True)]
        return pa.array(rows, pa.string())

    def rows(self, answers: np.ndarray) -> list[dict[str, Any]]:
        return [{"value": text} for text in self.values(answers).to_pylist()]


@pytest.fixture(autouse=True, scope="module")
def kinds() -> Iterator[None]:
    """The kinds above, in this process and for these tests alone."""
    COLUMNS.kinds(), TASKS.kinds()
    COLUMNS.register(DigitsColumn)(DigitsColumn)
    TASKS.register(DigitsSpec)(Digits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COLUMNS._origins, "test_digits", None)  # as if we shipped them
        patch.setitem(TASKS._origins, "test_each", None)
        patch.setattr(api, "make_executor", InProcess)
        patch.setattr(metrics, "RESAMPLES", 40)
        yield
    for registry, spec in ((COLUMNS, DigitsColumn), (TASKS, DigitsSpec)):
        del registry._specs[spec.model_fields["kind"].default], registry._classes[spec]


def make_table(n: int = 240) -> pa.Table:
    rng = np.random.default_rng(0)
    texts = ["".join(map(str, rng.integers(0, N_TOKENS, size))) for size in rng.integers(1, LENGTH + 1, n)]
    texts[5] = ""
    # Each digit counts as much as the others of its row make of it: only a trunk that sees the row knows.
    each = [" ".join(str(int(d) / 4 + len(text)) for d in text) for text in texts]
    return pa.table(
        {
            "digits": pa.array([text or None for text in texts]),
            "size": rng.normal(size=n),
            "each": pa.array(each, mask=rng.random(n) < 0.1),
            "long": pa.array([len(text) > 3 for text in texts]),
        }
    )


OPTIONS: dict[str, Any] = {
    "targets": {"each": "test_each", "long": "binary"},
    "inputs": {"digits": "test_digits"},
    "split": {"folds": 0},
}
TRUNK = {"trunk": ["sample_positional"], "space": {"steps": 64, "width": [8, 16], "batch_size": 32}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    return mb.search(make_table(), out=out, n_trials=3, seed=1, search=TRUNK, **OPTIONS)


def test_a_search_by_position_ends_with_a_model_that_answers_for_each_digit(run: Run) -> None:
    table = make_table().select(["digits", "size"])
    answered = run.model.predict(table)
    digits = [text or "" for text in table["digits"].to_pylist()]
    assert [len((cell or "").split()) for cell in answered["each"].to_pylist()] == [len(text) for text in digits]
    assert answered["long"].type == pa.bool_()
    assert {row["task"] for row in run.result["tasks"]} >= {"each", "long"}


def test_the_model_answers_alike_from_its_folder_and_row_by_row(run: Run) -> None:
    table = make_table(20)
    loaded = Model.load(run.folder / "model")
    whole, alone = loaded.answers(table), [loaded.answers(table.slice(row, 1)) for row in range(20)]
    assert whole["each"].shape == (20, LENGTH)
    for name, held in whole.items():
        np.testing.assert_allclose(held, np.concatenate([one[name] for one in alone]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(held, run.model.answers(table)[name], rtol=1e-6)


def test_a_task_that_reads_cells_is_evaluated_with_them(run: Run) -> None:
    table = make_table(30)
    records = evaluate(
        lambda rows: run.model.table(rows, output="full"),
        run.model.tasks,
        table,
        inputs=run.model.schema.columns,
    )
    (own,) = (record for record in records if record["task"] == "each")
    placed = run.model.tasks[0].place(table, run.model.schema.columns)
    known = np.isfinite(truth := placed.truth(table["each"]))
    error = np.abs(placed.scored(run.model.answers(table)["each"]) - truth)[known].mean()
    assert own["value"] == pytest.approx(error, rel=1e-5)
    assert own["n"] == known.sum()


def test_tasks_are_placed_on_the_rows_asked_for_and_once() -> None:
    problem = make_problem(parse_config(OPTIONS, where="test"), data=make_table())
    rows = np.array([7, 3])
    (each, _) = problem.placed(rows)
    texts = make_table()["digits"].to_pylist()
    assert each.texts == [texts[7], texts[3]]  # type: ignore[attr-defined]
    assert problem.placed(np.array([7, 3]))[0] is each


def test_a_column_is_as_the_task_by_its_positions_needs_it_or_refused() -> None:
    longer = {**OPTIONS, "targets": {"each": {"kind": "test_each", "length": 8}, "long": "binary"}}
    schema = make_problem(parse_config(OPTIONS, where="test"), data=make_table()).schema
    (column,) = (column for column in schema.columns if column.name == "digits")
    assert column == DigitsColumn(name="digits", length=LENGTH)
    # Its encoder has six positions, whatever the column says.
    with pytest.raises(SchemaError, match=r"Target 'each' has 8 cells a row, but its input 'digits' has 6 positions"):
        make_problem(parse_config(longer, where="test"), data=make_table())


def test_a_trunk_without_positions_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"Trunk 'mlp' reads no positions, by which target 'each' answers; allowed: "):
        mb.search(make_table(), out=tmp_path / "run", n_trials=1, search={**TRUNK, "trunk": ["mlp"]}, **OPTIONS)
    assert not (tmp_path / "run").exists()
