"""What a run kept of rows that it did not learn, and two runs compared on their locked rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from small import TARGETS, make_table

import mtl_bento as mb
from mtl_bento.cli import cli
from mtl_bento.errors import RunError, SpecError
from mtl_bento_search import metrics
from mtl_bento_search.compare import comparison
from mtl_bento_search.explain import of_split
from mtl_bento_search.oof import PREDICTIONS, part_of, read_predictions
from mtl_bento_search.run import Run
from mtl_bento_search.verdict import LEVEL, holm

pytestmark = pytest.mark.usefixtures("in_process")

TABLE = make_table(300)


def tiny(out: Path, table: pa.Table = TABLE, **changes: Any) -> Run:
    space = {"steps": 48, "width": 8, "batch_size": 32}
    given: dict[str, Any] = {"targets": TARGETS, "n_trials": 1, "search": {"trunk": ["mlp"], "space": space}}
    return mb.search(table, out=out, **{**given, **changes})


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of three folds, with row weights."""
    weighted = TABLE.append_column("weight", pa.array(np.linspace(0.5, 1.5, 300)))
    return tiny(tmp_path_factory.mktemp("folds") / "run", weighted, split={"folds": 3}, sample_weight="weight")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on a holdout, of few steps and without trees."""
    space = {"steps": 16, "width": 8, "batch_size": 32}
    out = tmp_path_factory.mktemp("short") / "short"
    return tiny(out, split={"folds": 0}, search={"trunk": ["mlp"], "space": space, "trees": False})


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same with more steps."""
    space = {"steps": 192, "width": 16, "batch_size": 32}
    out = tmp_path_factory.mktemp("longer") / "longer"
    return tiny(out, split={"folds": 0}, search={"trunk": ["mlp"], "space": space})


def test_every_row_that_is_not_locked_is_answered_out_of_fold_once_with_folds(folds: Run) -> None:
    frame = folds.out_of_fold()
    locked = part_of(read_predictions(folds.folder), "test").column(0).to_pylist()
    assert sorted([*frame["row"], *locked]) == list(range(300))
    assert set(frame["fold"]) == {0, 1, 2}
    for name in TARGETS:
        assert {f"{name}__given", name} <= set(frame.columns)
    given = TABLE["income"].take(pa.array(frame["row"].to_numpy())).to_pylist()
    assert frame["income__given"].tolist() == given
    # Weights are kept as they are used: with mean 1.
    np.testing.assert_allclose(frame["weight"], np.linspace(0.5, 1.5, 300)[frame["row"]], atol=1e-6)


def test_an_answer_out_of_fold_is_that_of_the_member_that_did_not_learn_the_row(folds: Run) -> None:
    frame, model = folds.out_of_fold(), folds.model
    fold = 1
    rows = frame["row"][frame["fold"] == fold].to_numpy()
    assert len(model.members) > 3  # networks and trees of three folds, some on top of the others
    expected = of_split(model, fold, 3).predict(TABLE.take(pa.array(rows)))["hours.per week"].to_numpy()
    np.testing.assert_allclose(frame["hours.per week"][frame["fold"] == fold], expected, rtol=1e-4)


def test_answers_of_the_locked_rows_are_the_served_models(longer: Run) -> None:
    held = part_of(read_predictions(longer.folder), "test")
    expected = longer.model.predict(TABLE.take(held.column(0)), output="full")
    assert held["income"].to_pylist() == expected["income"].to_pylist()
    np.testing.assert_allclose(held["income__proba__>50K"], expected["income__proba__>50K"], atol=1e-5)


def test_targets_called_like_our_own_columns_are_kept(tmp_path: Path) -> None:
    table = TABLE.rename_columns(
        ["row" if n == "income" else "fold_" if n == "smoker" else n for n in TABLE.schema.names]
    )
    run = tiny(tmp_path / "run", table, targets=["row", "fold_"], split={"folds": 0})
    frame = run.out_of_fold()
    assert list(frame.columns)[:3] == ["row__", "fold__", "weight__"]
    assert set(frame["row"]) <= {"<=50K", ">50K"}


def test_the_importance_of_the_run_is_in_its_result_and_of_a_table_is_measured(longer: Run) -> None:
    frame = longer.importance()
    assert list(frame.columns) == ["task", "input", "importance", "lower", "upper"]
    assert len(frame) == 4 * 6
    assert longer.result["input_importance"] == frame.to_dict("records")
    again = longer.importance(make_table(100, seed=3), groups={"who": ["age", "state"]})
    assert "who" in set(again["input"])
    with pytest.raises(SpecError, match="measured on a labelled table"):
        longer.importance(groups={"who": ["age"]})


def test_an_explanation_is_a_frame_a_task_with_the_rows_index(longer: Run) -> None:
    frame = TABLE.slice(0, 5).to_pandas().set_index(np.arange(5) * 10)
    explained = longer.explain(frame)
    assert list(explained) == list(TARGETS)
    assert explained["smoker"].index.equals(frame.index)
    assert explained["smoker"].shape == (5, 6)


def test_the_longer_run_is_better_by_the_difference_of_both_test_figures(short: Run, longer: Run) -> None:
    frame = mb.compare(short.folder, longer.folder)
    assert list(frame["task"]) == list(TARGETS)
    for place, (one, other) in enumerate(zip(short.result["tasks"], longer.result["tasks"], strict=True)):
        row = frame.iloc[place]
        assert (row["first"], row["second"]) == pytest.approx((one["ours"], other["ours"]), abs=1e-5)
        assert row["difference"] == pytest.approx(other["ours"] - one["ours"], abs=1e-5)
        assert row["lower"] <= row["difference"] <= row["upper"]
        assert row["n_test"] == one["n_test"]
    back = mb.compare(longer, short)
    np.testing.assert_allclose(back["difference"], -frame["difference"])
    hours = frame.set_index("task").loc["hours.per week"]
    assert hours["verdict"] == "better"  # 16 steps are hardly a beginning
    assert back.set_index("task").loc["hours.per week", "verdict"] == "worse"


def test_a_run_against_itself_is_the_same_everywhere(short: Run) -> None:
    frame = mb.compare(short, short)
    assert (frame[["difference", "lower", "upper"]] == 0).all().all()
    assert set(frame["verdict"]) == {"same"}
    assert frame[["p", "p_corrected", "smallest"]].isna().all().all()


def test_two_runs_are_compared_by_the_machinery_of_a_searchs_verdicts(short: Run, longer: Run) -> None:
    records = comparison(short, longer)
    assert list(records[0]) == [
        "task", "metric", "first", "second", "difference", "lower", "upper", "p", "p_corrected", "verdict", "smallest",
        "n_test",
    ]  # fmt: skip
    assert [r["p_corrected"] for r in records] == pytest.approx(holm([r["p"] for r in records]))
    for r in records:
        assert (r["smallest"] is not None) == (r["verdict"] == "inconclusive")
        assert (r["verdict"] in ("better", "worse")) == (r["p_corrected"] <= LEVEL)
    held = [part_of(read_predictions(run.folder), "test") for run in (short, longer)]
    task = next(t for t in short.model.tasks if t.name == "hours.per week")
    truth = task.truth(held[0]["hours.per week__given"])
    one, two = (t["hours.per week"].to_numpy() for t in held)
    _, (difference,) = metrics.compared(task.metric, truth, two, [one])
    hours = next(r for r in records if r["task"] == "hours.per week")
    assert (hours["difference"], hours["p"]) == pytest.approx((difference.difference, difference.p))
    assert (hours["lower"], hours["upper"]) == pytest.approx(difference.interval)


def refused(*arguments: Any) -> str:
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_runs_of_other_rows_other_data_or_without_a_result_are_refused_in_one_line(
    short: Run, folds: Run, tmp_path: Path
) -> None:
    assert "learned from different tables" in refused("compare", short.folder, folds.folder)
    other = tiny(tmp_path / "seed", split={"folds": 0}, seed=7)
    assert "lock other rows for the test" in refused("compare", short.folder, other.folder)
    assert "is no run folder" in refused("compare", short.folder, tmp_path)
    cut = tmp_path / "cut"
    shutil.copytree(short.folder, cut)
    (cut / PREDICTIONS).write_bytes(b"PAR1")
    assert "is damaged" in refused("compare", short.folder, cut)
    (cut / PREDICTIONS).unlink()
    assert "has no predictions yet" in refused("compare", short.folder, cut)


def test_runs_without_a_common_task_or_with_one_of_two_kinds_are_refused(tmp_path: Path) -> None:
    # A split by time locks the same rows whatever is predicted.
    by_time: dict[str, Any] = {"split": {"kind": "time", "column": "when"}}
    one = tiny(tmp_path / "one", targets={"children": "multiclass"}, **by_time)
    other = tiny(tmp_path / "other", targets={"children": "regression", "smoker": "binary"}, **by_time)
    third = tiny(tmp_path / "third", targets={"smoker": "binary"}, **by_time)
    with pytest.raises(RunError, match=r"Task 'children' is multiclass in .* and regression in"):
        mb.compare(one, other)
    with pytest.raises(RunError, match="no task in common: children; and smoker"):
        mb.compare(one, third)
    assert list(mb.compare(other, third)["task"]) == ["smoker"]


def test_the_command_prints_a_table_or_json(short: Run, longer: Run) -> None:
    shown = CliRunner().invoke(cli, ["compare", str(short.folder), str(longer.folder)])
    assert shown.exit_code == 0
    assert "hours.per week" in shown.stdout
    assert "Holm's correction" in shown.stdout
    printed = CliRunner().invoke(cli, ["compare", str(short.folder), str(longer.folder), "--json"])
    data = json.loads(printed.stdout)
    assert [task["task"] for task in data["tasks"]] == list(TARGETS)
    assert data["tasks"] == comparison(short, longer)
    assert all(task["verdict"] in shown.stdout for task in data["tasks"])
    back = mb.compare(short, longer)
    assert back["verdict"].tolist() == [task["verdict"] for task in data["tasks"]]
    assert data["tasks"][0]["first"] == pytest.approx(short.result["tasks"][0]["ours"], abs=1e-5)


def test_all_trials_are_written_as_a_table(longer: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(longer.folder), "--trials", str(tmp_path / "trials.csv")])
    assert done.exit_code == 0
    assert done.stdout == f"{longer.folder / 'report.html'}\n"
    assert done.stderr == f"All trials: {tmp_path / 'trials.csv'}\n"
    read = pyarrow.csv.read_csv(tmp_path / "trials.csv")
    board = longer.leaderboard()
    assert read.column_names == list(board.columns)
    assert read["trial"].to_pylist() == board["trial"].tolist()
    piped = CliRunner().invoke(cli, ["report", str(longer.folder), "--trials", "-"])
    assert piped.stdout.splitlines()[0].startswith('"trial","state","gain"')
    assert str(longer.folder / "report.html") in piped.stderr
    assert "has no suffix of a table" in refused("report", longer.folder, "--trials", tmp_path / "x.doc")


def test_predictions_are_a_parquet_file_that_anyone_can_read(longer: Run) -> None:
    held = pq.read_table(longer.folder / PREDICTIONS)
    assert held.column_names[:4] == ["row", "part", "fold", "weight"]
    assert set(held["part"].to_pylist()) == {"valid", "test"}
