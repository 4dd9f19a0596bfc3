"""Scoring a model on a table: row weights count as they do in the locked test."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from small import TARGETS, make_table

import mtl_bento as mb
from mtl_bento.cli import cli
from mtl_bento.errors import SchemaError, SpecError
from mtl_bento_search.evaluation import evaluate, judged
from mtl_bento_search.oof import part_of, read_predictions
from mtl_bento_search.run import Run

pytestmark = pytest.mark.usefixtures("in_process")

TABLE = make_table(240).append_column("w", pa.array(np.random.default_rng(0).integers(0, 4, 240)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, in_process: None) -> Run:
    """A run whose rows have weights."""
    space = {"steps": 48, "width": 8, "batch_size": 32}
    out = tmp_path_factory.mktemp("weighed") / "run"
    search = {"trunk": ["mlp"], "space": space, "trees": False}
    return mb.search(TABLE, targets=TARGETS, out=out, n_trials=1, sample_weight="w", split={"folds": 0}, search=search)


def test_rows_weigh_in_evaluate_what_they_weigh_in_the_locked_test(run: Run) -> None:
    locked = TABLE.take(part_of(read_predictions(run.folder), "test").column(0))
    tasks, inputs, card = judged(run.model)
    assert card["sample_weight"] == "w"
    records = evaluate(partial(run.model.predict, output="full"), tasks, locked, inputs=inputs, sample_weight="w")
    plain = evaluate(partial(run.model.predict, output="full"), tasks, locked, inputs=inputs)
    for told in run.result["tasks"]:
        own = {r["metric"]: r["value"] for r in records if r["task"] == told["task"]}
        for name, value in told["metrics"].items():
            assert own[name] == pytest.approx(value, abs=1e-5)
    assert [r["value"] for r in records] != [r["value"] for r in plain]


def test_a_row_of_weight_two_counts_as_two_rows(run: Run) -> None:
    rows = TABLE.slice(0, 100).drop_columns(["w"])
    twice = pa.concat_tables([rows, rows.slice(0, 40)])
    weighed = rows.append_column("n", pa.array(np.where(np.arange(100) < 40, 2.0, 1.0)))
    tasks, inputs, _ = judged(run.model)
    one, other = (
        evaluate(partial(run.model.predict, output="full"), tasks, table, inputs=inputs, sample_weight=name)
        for table, name in ((weighed, "n"), (twice, None))
    )
    assert [r["value"] for r in one] == pytest.approx([r["value"] for r in other])


def test_the_command_takes_the_weights_of_the_search_or_those_that_are_named(run: Run, tmp_path: Path) -> None:
    pq.write_table(TABLE.append_column("n", pa.array(np.ones(240))), tmp_path / "t.parquet")
    pq.write_table(TABLE.drop_columns(["w"]), tmp_path / "bare.parquet")

    def printed(table: str, *options: str) -> dict[str, Any]:
        done = CliRunner().invoke(cli, ["evaluate", str(run.folder), str(tmp_path / table), "--json", *options])
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    own, named, bare = printed("t.parquet"), printed("t.parquet", "--sample-weight", "n"), printed("bare.parquet")
    assert [found["sample_weight"] for found in (own, named, bare)] == ["w", "n", None]
    values = [[metric["value"] for metric in found["metrics"]] for found in (own, named, bare)]
    assert values[0] != pytest.approx(values[1])
    assert values[1] == pytest.approx(values[2])
    done = CliRunner().invoke(cli, ["evaluate", str(run.folder), str(tmp_path / "t.parquet")])
    assert "rows weighed by 'w'" in " ".join(done.stdout.split())


def test_what_is_no_weight_is_one_line(run: Run) -> None:
    tasks, inputs, _ = judged(run.model)
    predict = partial(run.model.predict, output="full")
    with pytest.raises(SpecError, match=r"^sample_weight: there is no column 'ww'; did you mean 'w'\? Columns: age, "):
        evaluate(predict, tasks, TABLE, inputs=inputs, sample_weight="ww")
    negative = TABLE.append_column("n", pa.array(np.full(240, -1.0)))
    with pytest.raises(SchemaError, match=r"sample_weight 'n', row 0: -1\.0 is not a weight"):
        evaluate(predict, tasks, negative, inputs=inputs, sample_weight="n")
