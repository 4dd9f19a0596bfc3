"""Searches of bad input, as they are typed: one line that says what is allowed and exit code 2, or a note."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from small import make_table

from mtl_bento.cli import cli
from mtl_bento_search import api, metrics
from mtl_bento_search.executors.local import InProcess

N = 240
PART = np.array(["train"] * 140 + ["val"] * 50 + ["test"] * 50)
BY_PART = {"kind": "column", "column": "part", "folds": 0}
LABELS = np.random.default_rng(0).choice(["p", "q"], N).astype(object)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "make_executor", InProcess)
        patch.setattr(metrics, "RESAMPLES", 20)
        yield


def labelled(rows: dict[int, Any], n: int = N) -> pa.Array:
    """Return a column of which only some rows have a label."""
    return pa.array([rows.get(i) for i in range(n)])


def typed(folder: Path, columns: dict[str, Any], *options: str, n: int = N, **config: Any) -> tuple[int, str, Any]:
    """Search as a user types it; return the exit code, the error lines, and the result where there is one."""
    table = make_table(n)
    for name, values in columns.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    pq.write_table(table, folder / "t.parquet")
    small = {"n_trials": 1, "trunk": ["mlp"], "space": {"steps": 16, "width": 8, "batch_size": 64}}
    given = {"data": "t.parquet", "targets": ["income", "smoker"], "split": {"folds": 3}, "search": small} | config
    (folder / "mtl.yaml").write_text(yaml.safe_dump(given, allow_unicode=True), encoding="utf-8")
    done = CliRunner().invoke(cli, ["search", str(folder / "mtl.yaml"), "--out", str(folder / "run"), *options])
    assert "Traceback" not in done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    path = folder / "run" / "result.json"
    return done.exit_code, "\n".join(errors), json.loads(path.read_bytes()) if path.is_file() else None


@pytest.mark.parametrize(
    ("columns", "config", "line"),
    [
        ({}, {"groups": [["incme"], ["smoker"]]},
         "groups: 'incme' is no target; did you mean 'income'? Targets: income, smoker."),
        ({}, {"groups": [["income", "smoker"], ["smoker"]]},
         "groups: 'smoker' is named twice; every target belongs to one group."),
        ({}, {"groups": [["income", "income"], ["smoker"]]},
         "groups: 'income' is named twice; every target belongs to one group."),
        ({}, {"groups": [["income", "smoker"], []]}, "groups: group 2 is empty; remove it."),
        ({}, {"n": 12, "split": {"folds": 10}},
         "10 rows to develop on are too few for 10 folds of two rows at least; bring more rows, or ask for fewer: "
         "`split: {folds: 2}`."),
        ({"y": labelled({3: 1.0, 80: 2.0, 160: 3.0})}, {"targets": {"y": "regression", "smoker": None}},
         "Target 'y' has one value only in the training rows of fold 1; split otherwise (`split:` in mtl.yaml), or "
         "leave it out."),
        ({"part": PART, "y": pa.array(LABELS, mask=PART == "test")}, {"targets": ["y"], "split": BY_PART},
         "Target 'y' has no label in the test rows; split otherwise (`split:` in mtl.yaml), or leave it out."),
        ({"part": PART, "y": np.where(PART == "train", "p", LABELS).astype(object)},
         {"targets": ["y"], "split": BY_PART},
         "Target 'y' is 'p' in every training row; there is nothing to learn, leave it out."),
        ({"w": np.zeros(N)}, {"sample_weight": "w"}, "sample_weight 'w' is 0 in every row; give some rows weight."),
        *(
            ({"part": PART, "w": (part != PART) * 1.0}, {"sample_weight": "w", "split": BY_PART},
             f"Target 'income' has no label in the {words} rows that weigh more than 0; split otherwise (`split:` in "
             "mtl.yaml), or leave it out.")
            for part, words in (("train", "training"), ("val", "validation"), ("test", "test"))
        ),
        ({"w": (np.array(make_table(N)["income"].to_pylist()) == ">50K") * 1.0}, {"sample_weight": "w"},
         "Target 'income' has one value only in the training rows of fold 1 that weigh more than 0; split otherwise "
         "(`split:` in mtl.yaml), or leave it out."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(
    columns: dict[str, Any], config: dict[str, Any], line: str, tmp_path: Path
) -> None:
    code, errors, _ = typed(tmp_path, columns, **config)
    assert (code, errors) == (2, f"Error: {line}")
    assert not (tmp_path / "run").exists()


def test_a_latency_that_nothing_meets_is_one_line_and_what_was_trained_is_kept(tmp_path: Path) -> None:
    code, errors, result = typed(tmp_path, {}, "--max-latency-ms", "0.001")
    assert code == 2
    assert errors.startswith("Error: --max-latency-ms 0.001 cannot be met: the smallest choice of members takes ")
    assert result is None
    code, errors, result = typed(tmp_path, {}, "--max-latency-ms", "100000")
    assert (code, errors) == (0, "")
    assert result["trials"]["total"] == 1


@pytest.mark.parametrize(
    ("columns", "config", "note"),
    [
        ({"y": [*(["a", "b"] * (N // 2 - 1)), "a", "c"]}, {"targets": ["y", "smoker"], "split": {"folds": 3}},
         "labels of target 'y' that the training rows lack: 1, in fold "),
        ({"again": make_table(N)["income"].combine_chunks()}, {"targets": ["income", "again", "smoker"]},
         "Targets 'income' and 'again' hold the same labels, which therefore count twice in every mean"),
    ],
)  # fmt: skip
def test_what_a_search_can_go_on_with_is_noted(
    columns: dict[str, Any], config: dict[str, Any], note: str, tmp_path: Path
) -> None:
    code, errors, result = typed(tmp_path, columns, **config)
    assert (code, errors) == (0, "")
    assert [n for n in result["notes"] if n.startswith(note)]


@pytest.mark.parametrize(
    ("columns", "config", "options"),
    [
        ({"part": PART, "y": np.where(PART == "val", "p", LABELS).astype(object)}, {"targets": ["y", "smoker"],
         "split": BY_PART}, ()),  # one label in validation
        ({"w": np.arange(N) % 2}, {"sample_weight": "w"}, ()),  # half of the rows count
        ({}, {"groups": [["income", "smoker"]]}, ("--members", "networks")),
        ({}, {"groups": [["income"], ["smoker"]]}, ("--members", "networks", "--no-trees")),
        ({}, {"targets": ["income"]}, ()),
        ({}, {"targets": ["income"], "groups": [["income"]]}, ("--no-trees",)),
    ],
)  # fmt: skip
def test_odd_but_sound_searches_end_with_a_model(
    columns: dict[str, Any], config: dict[str, Any], options: tuple[str, ...], tmp_path: Path
) -> None:
    code, errors, result = typed(tmp_path, columns, *options, **config)
    assert (code, errors) == (0, "")
    assert all(np.isfinite(record["ours"]) for record in result["tasks"])
    kinds = {candidate["kind"] for candidate in result["blend"]["candidates"]}
    assert not kinds & {"trees", "offset"} or not options


def test_a_label_alone_in_the_test_is_not_measurable_and_said_so(tmp_path: Path) -> None:
    y = np.where(PART == "test", "p", LABELS).astype(object)
    code, _, result = typed(tmp_path, {"part": PART, "y": y}, targets=["y", "smoker"], split=BY_PART)
    assert code == 0
    record = next(r for r in result["tasks"] if r["task"] == "y")
    assert record["ours"] is None
    assert {held["verdict"] for held in record["against"].values()} <= {
        "not measurable",
        "same",
    }  # the same where the opponent itself answers
