"""`--tensorboard DIR`: what TensorBoard reads back, and what is said where it is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small import make_table

import mtl_bento as mb
from mtl_bento.errors import SpecError
from mtl_bento_search import api, metrics
from mtl_bento_search.executors.local import InProcess
from mtl_bento_search.tensorboard import TensorBoard

pytest.importorskip("tensorboard")


def test_each_trial_is_a_point_of_the_run_and_a_curve_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(api, "make_executor", InProcess)
    monkeypatch.setattr(metrics, "RESAMPLES", 10)
    search = {"trunk": ["mlp"], "space": {"steps": 48, "width": [8, 16], "batch_size": 32}}
    given = {"targets": ["income", "smoker"], "search": search, "split": {"folds": 0}, "tensorboard": tmp_path / "tb"}
    mb.search(make_table(200), out=tmp_path / "run", n_trials=3, **given)
    run = mb.search(make_table(200), out=tmp_path / "run", n_trials=5, **given)  # a resumed run writes on

    def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
        held = EventAccumulator(str(folder)).Reload()
        return {tag: [(e.step, e.value) for e in held.Scalars(tag)] for tag in held.Tags()["scalars"]}

    whole = read(tmp_path / "tb" / "run")
    complete = [t for t in run.study.trials if t.state.name == "COMPLETE"]
    assert sorted(whole["gain"]) == [(t.number, pytest.approx(t.value, abs=1e-6)) for t in complete]
    assert {"best gain", "gain/income", "gain/smoker", "val/income.roc_auc", "n_params"} <= set(whole)
    assert whole["best gain"][-1][1] == pytest.approx(run.study.best_value)
    for trial in run.study.trials:
        own = read(tmp_path / "tb" / "run" / f"trial-{trial.number:05d}")
        assert [step for step, _ in own["score"]][-1] >= max(trial.intermediate_values)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot be written"):
        TensorBoard(tmp_path / "file" / "tb")


def test_without_the_extra_nothing_is_written_and_the_pip_line_is_said(tmp_path: Path) -> None:
    pq.write_table(make_table(100), tmp_path / "t.parquet")
    code = "import sys; sys.modules['tensorboard'] = None; from mtl_bento.cli import main; main()"
    given = ["search", "t.parquet", "--target", "income", "--tensorboard", "tb", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *given], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "Error: --tensorboard needs tensorboard, which is not installed: pip install 'mtl-bento[tensorboard]'\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]
