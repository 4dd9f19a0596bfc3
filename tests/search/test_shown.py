"""Which test rows a run's report shows, in a whole search over a picture, a text and a number."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media import OPTIONS, SIDE, searched
from PIL import Image

from mtl_bento_search.config import parse_config
from mtl_bento_search.problem import Problem, make_problem
from mtl_bento_search.report.panels import EACH
from mtl_bento_search.run import Run
from mtl_bento_search.shown import shown


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of one trial, its pictures lying beside its table."""
    return searched(tmp_path_factory.mktemp("scenes"), steps=32)


@pytest.fixture(scope="module")
def problem(run: Run) -> Problem:
    """The problem of the run, anew."""
    return make_problem(parse_config(OPTIONS, where="test"), data=run.folder.parent / "t.parquet")


def by_task(run: Run) -> dict[str, dict[str, Any]]:
    return {task["task"]: task for task in run.result["shown"]["tasks"]}


def test_each_target_is_shown_in_the_input_that_it_speaks_of(run: Run) -> None:
    tasks = by_task(run)
    assert {name: task["input"] for name, task in tasks.items()} == {
        "colour": "photo", "place": "photo", "names": "note", "amount": "photo",
    }  # fmt: skip
    assert {name: task["labels"] for name, task in tasks.items()} == {
        "colour": [], "place": [], "names": ["city"], "amount": [],
    }  # fmt: skip
    assert all(0 < len(task["rows"]) <= 3 * EACH for task in tasks.values())


def test_a_target_by_position_finds_its_text_beside_a_picture(problem: Problem) -> None:
    names = next(task for task in problem.tasks if task.name == "names")
    assert names.reads == "note"  # the first input with positions is the picture


def test_only_test_rows_are_in_result_and_page(run: Run, problem: Problem) -> None:
    test = set(problem.protocol.test.tolist())
    picked = {row["row"] for task in by_task(run).values() for row in task["rows"]}
    held = {name: {int(row) for row in cells} for name, cells in run.result["shown"]["cells"].items()}
    assert picked
    assert picked <= test
    assert held["photo"] | held["note"] == picked
    # Of the page: every note names its row, and the first pixel of every picture does.
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    noted = {int(number) for number in re.findall(r"row (\d+) goes to", page)}
    assert noted == {row for row in held["note"] if row % 3}
    drawn = {Image.open(io.BytesIO(base64.b64decode(jpeg))).size for jpeg in re.findall(r"base64,([^\"]+)", page)}
    assert drawn == {(SIDE, SIDE)}
    assert page.count("<image") >= len(held["photo"] - {7})


def test_truths_have_the_form_of_answers_and_answers_are_the_models(run: Run, problem: Problem) -> None:
    table = pq.read_table(run.folder.parent / "t.parquet")
    for name, task in by_task(run).items():
        rows = [row["row"] for row in task["rows"]]
        served = run.model.rows(problem.table.take(pa.array(rows)))
        for row, answered in zip(task["rows"], served, strict=True):
            assert row["answer"] == {k: v for k, v in answered[name].items() if k != "probabilities"}
            cell = table[name][row["row"]].as_py()
            if name == "place":
                assert row["truth"] == (None if cell is None else dict(zip("xywh", cell, strict=True)))
            elif name == "names":
                assert cell is not None  # a row without a label is not shown
                start = len(f"row {row['row']} goes to ")
                span = {"label": "city", "start": start, "end": start + 4}
                assert row["truth"] == ([span] if "B-city" in cell else [])
            else:
                assert row["truth"] == cell


def test_the_best_are_those_that_lose_least_and_have_something_to_find(run: Run) -> None:
    place = by_task(run)["place"]["rows"]
    assert all(row["truth"] is not None for row in place if row["why"] == "best")
    colour = by_task(run)["colour"]
    sure = {why: [r for r in colour["rows"] if r["why"] == why] for why in ("best", "worst")}
    assert all(row["answer"]["value"] == row["truth"] for row in sure["best"])
    assert json.dumps(run.result["shown"], allow_nan=False)


class Answers:
    """A model that answers nothing."""

    def rows(self, table: pa.Table) -> list[dict[str, Any]]:
        return [{name: {"value": None} for name in OPTIONS["targets"]}] * table.num_rows


def answers(problem: Problem) -> list[np.ndarray]:
    """Return answers that are alike in all test rows."""
    n = len(problem.protocol.test)
    length = 3 * problem.schema.columns[1].n_features  # three tags a token
    return [np.full((n, width), 0.3, dtype=np.float32) for width in (3, 5, length, 1)]


def test_a_picture_that_is_there_no_more_is_missing_and_the_run_still_ends(run: Run, problem: Problem) -> None:
    model: Any = Answers()
    first = shown(problem, model, answers(problem))
    assert first is not None
    row = next(iter(key for key, cell in first["cells"]["photo"].items() if cell is not None))
    (run.folder.parent / f"{row}.png").unlink()
    again = shown(problem, model, answers(problem))
    assert again is not None
    assert again["cells"]["photo"][row] is None
    assert again["tasks"] == first["tasks"]


def test_nothing_is_shown_of_a_table_of_numbers(run: Run) -> None:
    config = parse_config({"targets": ["amount"], "ignore": ["photo", "note", "place", "names"]}, where="test")
    numbers = make_problem(config, data=pq.read_table(run.folder.parent / "t.parquet"))
    assert shown(numbers, run.model, []) is None
