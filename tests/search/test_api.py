"""The whole search on a small table: what it leaves, that it repeats, resumes, stops in time, and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small import TARGETS, make_table

import mtl_bento as mb
from mtl_bento.dataset import Dataset
from mtl_bento.errors import MtlBentoError, RunError, SchemaError, SpecError
from mtl_bento.training import Stack
from mtl_bento_search import api, rounds
from mtl_bento_search.executors import local
from mtl_bento_search.executors.local import InProcess, make_executor
from mtl_bento_search.report.words import VERDICTS
from mtl_bento_search.run import Run
from mtl_bento_search.storage import repair_journal

pytestmark = pytest.mark.usefixtures("in_process")

SMALL = {"trunk": ["mlp", "tabm"], "space": {"steps": 48, "width": [8, 16], "tabm.inner": 2, "batch_size": 64}}


def small_search(out: Path, table: pa.Table | None = None, **changes: Any) -> Run:
    """A search of seconds."""
    given: dict[str, Any] = {"targets": TARGETS, "n_trials": 6, "seed": 1, "search": SMALL, "split": {"folds": 0}}
    return mb.search(make_table(300) if table is None else table, out=out, **{**given, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of six trials."""
    return small_search(tmp_path_factory.mktemp("runs") / "small")


def trials_of(run: Run) -> list[tuple[Any, ...]]:
    return [(t.number, t.state, t.value, t.params, t.intermediate_values) for t in run.study.trials]


def test_a_run_leaves_what_the_design_says(run: Run) -> None:
    names = {path.name for path in run.folder.iterdir()}
    assert {"spec.yaml", "study.log", "checkpoints", "model", "report.html", "result.json"} <= names
    assert not [path for path in run.folder.rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".bin")]


def test_the_model_answers_exactly_the_targets_in_their_own_types(run: Run) -> None:
    table = make_table(20, seed=5)
    answered = run.model.predict(table)
    assert answered.column_names == list(TARGETS)
    assert answered["smoker"].type == pa.bool_()
    assert set(answered["分类"].to_pylist()) <= {"低", "中", "高"}
    frame = table.to_pandas().set_index("age")
    assert run.model.predict(frame).index.equals(frame.index)


def test_the_comparison_has_a_row_a_task(run: Run) -> None:
    frame = run.comparison
    assert list(frame["task"]) == list(TARGETS)
    keys = ["difference", "lower", "upper", "p", "verdict", "smallest"]
    opponents = ("single_task", "ensemble", "trees")
    against = [column for arm in opponents for column in (arm, *(f"{arm}_{key}" for key in keys))]
    assert list(frame.columns) == ["task", "metric", "ours", *against, "served_by"]
    assert ((frame["single_task_lower"] <= frame["single_task_upper"]) | frame["single_task_lower"].isna()).all()


def test_result_frame_card_and_page_say_the_same(run: Run) -> None:
    records = run.result["tasks"]
    frame, card = run.comparison, run.model.card
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    text = (run.folder / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    for record, (_, row) in zip(records, frame.iterrows(), strict=True):
        held = record["against"]["single_task"]
        assert row["single_task_verdict"] == held["verdict"]
        told = card["verdicts"][record["task"]]["single_task"]
        assert told == {key: value for key, value in held.items() if key != "metrics"}
        assert f"| {record['ours']:.4f} | {held['verdict']}" in text
        assert VERDICTS[held["verdict"]].label in page


def test_every_arm_is_in_the_record_and_what_learned_nothing_loses_one(run: Run) -> None:
    arms = {"ours", "single_task", "single_task_default", "shared_default", "trivial", "ensemble", "trees", "networks"}
    for record in run.result["tasks"]:
        assert set(record["values"]) == set(record["losses"]) == arms
        # Of the test rows' labels, by the shares of the training rows: about the entropy of the latter.
        assert record["losses"]["trivial"] == pytest.approx(1.0, abs=0.25)
        assert record["losses"]["ours"] < record["losses"]["trivial"]


def test_a_result_of_another_version_is_one_line_and_the_same_search_writes_it_anew(tmp_path: Path) -> None:
    run = small_search(tmp_path / "small", n_trials=2)
    path = run.folder / "result.json"
    held = run.result
    path.write_text(json.dumps(held | {"version": 1}), encoding="utf-8")
    with pytest.raises(RunError, match=r"is of version 1, .* reads version 2; run the same search again"):
        _ = run.result
    again = small_search(tmp_path / "small", n_trials=2).result
    assert again["test_looks"] == 1
    assert again["tasks"] == held["tasks"]


def test_the_study_reads_well_in_optunas_own_tools(run: Run) -> None:
    study = run.study
    assert study.study_name == "small"
    assert study.metric_names == ["gain"]
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.user_attrs["tasks"] == list(TARGETS)
    assert set(study.user_attrs["single_task_losses"]) == set(TARGETS)
    assert len(study.trials) == 6
    best = study.best_trial
    assert {
        "trunk",
        "width",
        "shared_depth",
        "lr",
        "weight_decay",
        "dropout",
        "loss_weight.分类",
        "head_width.income",
    } <= set(best.params)
    assert {f"gain.{name}" for name in TARGETS} <= set(best.user_attrs)
    assert "val.income.roc_auc" in best.user_attrs
    assert best.user_attrs["n_params"] > 0
    assert list(best.intermediate_values) == [12, 24, 48]
    optuna.visualization.plot_optimization_history(study)
    optuna.visualization.plot_intermediate_values(study)
    optuna.visualization.plot_slice(study, params=["width", "lr"])


def test_the_dashboard_opens_the_journal(run: Run) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    app = dashboard.wsgi(JournalStorage(JournalFileBackend(str(run.folder / "study.log"))))
    got: dict[str, Any] = {}
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "SERVER_NAME": "x", "SERVER_PORT": "1"}
    environ |= {"wsgi.url_scheme": "http", "wsgi.input": sys.stdin, "wsgi.errors": sys.stderr, "QUERY_STRING": ""}  # type: ignore[dict-item]
    body = b"".join(app(environ, lambda status, *_: got.update(status=status)))
    assert got["status"].startswith("200")
    assert b'"small"' in body


def test_the_same_search_twice_gives_the_same_trials_and_the_same_best(run: Run, tmp_path: Path) -> None:
    again = small_search(tmp_path / "small")
    assert trials_of(again) == trials_of(run)
    assert again.result["trials"]["best"] == run.result["trials"]["best"]
    assert [t["ours"] for t in again.result["tasks"]] == [t["ours"] for t in run.result["tasks"]]


def test_another_seed_gives_other_trials(run: Run, tmp_path: Path) -> None:
    other = small_search(tmp_path / "small", seed=2, n_trials=3)
    assert [t.params for t in other.study.trials[1:]] != [t.params for t in run.study.trials[1:3]]


def test_the_same_call_again_changes_nothing_and_looks_at_no_test_row(tmp_path: Path) -> None:
    first = small_search(tmp_path / "small", n_trials=2).result
    again = small_search(tmp_path / "small", n_trials=2)
    assert again.result == first
    assert again.result["test_looks"] == 1


class Recorder(InProcess):
    """Pretends to a number of workers, and keeps how many members each stack held."""

    workers = 1
    sizes: list[int] = []

    @property
    def n_workers(self) -> int:
        return self.workers

    def advance(self, stacks: Sequence[Stack], goal: int, **given: Any) -> Any:
        self.sizes += [len(stack.members) for stack in stacks]
        return super().advance(stacks, goal, **given)


def test_a_run_that_goes_on_with_fewer_cores_stacks_as_where_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "make_executor", Recorder)
    monkeypatch.setattr(Recorder, "workers", 3)
    first = small_search(tmp_path / "small", n_trials=1)
    fixed = {
        "weights": 2**20,
        "least": 2,
        "most": 64,
        "n_features": 117,
        "length": 1,
    }  # as many as the encoders make of the table
    packing = {**fixed, "room": 2**18, "n_workers": 3, "ran_out": []}
    assert first.result["packing"] == packing
    monkeypatch.setattr(Recorder, "workers", 1)
    monkeypatch.setattr(Recorder, "sizes", [])
    longer = small_search(tmp_path / "small", n_trials=7)
    assert longer.result["packing"] == packing
    # Six trials for three workers, and eight networks of the finals: for one they would be stacks of all of a kind.
    assert max(Recorder.sizes) == 3


def test_a_search_that_runs_out_of_memory_ends_as_one_of_smaller_stacks_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without dropout: its bits are drawn by stack.
    search = {"trunk": ["mlp"], "space": {"steps": 48, "width": 8, "batch_size": 64, "dropout": 0.0}}
    whole, tried = local.advance, list[int]()

    def starved(stack: Stack, *given: Any, **named: Any) -> Stack:
        tried.append(len(stack.members))
        if len(stack.members) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB.")
        return whole(stack, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(local, "advance", starved)
        cut = small_search(tmp_path / "cut", n_trials=5, search=search)
        assert tried[:8] == [13, 6, 6, 1, 3, 3, 3, 3]  # trial 0, and four tasks alone with three seeds
        assert max(tried[8:]) == 3
        fixed = {"weights": 2**20, "least": 2, "most": 64, "n_features": 117, "length": 1, "n_workers": 1}
        packing = {**fixed, "room": 3 * 64 * 8, "ran_out": [13, 6]}
        assert cut.result["packing"] == packing
        note = "ran out of memory with 13 stacked members; went on with 6"
        assert note in cut.result["notes"]
        assert note in (cut.folder / "report.html").read_text(encoding="utf-8")
        tried.clear()
        longer = small_search(tmp_path / "cut", n_trials=10, search=search)  # resumed, it does not run out again
        assert max(tried) == 3
        assert longer.result["packing"] == packing
    monkeypatch.setattr(rounds, "SUITED", {"cpu": (3 * 64 * 8, 2**20, 2, 64)})
    small = small_search(tmp_path / "small", n_trials=5, search=search)
    small = small_search(tmp_path / "small", n_trials=10, search=search)
    assert small.result["packing"] == {**packing, "ran_out": []}
    assert trials_of(longer) == trials_of(small)
    assert [t["ours"] for t in longer.result["tasks"]] == [t["ours"] for t in small.result["tasks"]]


def test_raised_totals_resume_and_the_second_look_is_said(tmp_path: Path) -> None:
    small_search(tmp_path / "small", n_trials=2)
    longer = small_search(tmp_path / "small", n_trials=4)
    assert len(longer.study.trials) == 4
    assert longer.result["test_looks"] == 2


def test_one_complete_trial_can_be_packaged_and_a_pruned_one_is_refused(run: Run) -> None:
    states = {t.number: t.state for t in run.study.trials}
    best = run.trial_model("best")
    assert best.card["trial"] == run.study.best_trial.number
    assert "metrics" not in best.card
    np.testing.assert_array_equal(best.blend, np.ones((4, 1)))
    pruned = next(number for number, state in states.items() if state == optuna.trial.TrialState.PRUNED)
    with pytest.raises(RunError, match=rf"Trial {pruned} is pruned and has no weights; complete trials: 0"):
        run.trial_model(str(pruned))
    with pytest.raises(RunError, match="Trial 99 is not there"):
        run.trial_model("99")
    with pytest.raises(RunError, match="'first' is no number"):
        run.trial_model("first")


def test_one_trial_with_everything_fixed_trains_exactly_one_configuration(tmp_path: Path) -> None:
    fixed = {
        "width": 8,
        "shared_depth": 1,
        "dropout": 0,
        "lr": 1e-2,
        "weight_decay": 0,
        "head_width": 4,
        "loss_weight": 1,
    }
    held = {"trunk": ["mlp"], "space": {**fixed, "steps": 32, "batch_size": 64}}
    run = small_search(tmp_path / "one", n_trials=1, search=held)
    (trial,) = run.study.trials
    assert trial.params == {}
    assert trial.state == optuna.trial.TrialState.COMPLETE
    member = run.model.members[0].spec
    assert (member.trunk.kind, member.trunk.width, member.trunk.shared_depth) == ("mlp", 8, 1)


def test_folds_are_members_and_every_row_is_validated_once(tmp_path: Path) -> None:
    run = small_search(tmp_path / "folds", n_trials=2, split={"folds": 3})
    assert run.result["rows"] == {"train": 240, "valid": 240, "test": 60, "folds": 3}
    assert len({len(group) for group in [run.model.members]}) == 1
    assert len(run.model.members) % 3 == 0
    np.testing.assert_allclose(run.model.blend.sum(1), 1)


def test_a_users_sampler_pruner_and_callbacks_are_honoured(tmp_path: Path) -> None:
    seen: list[int] = []
    run = small_search(
        tmp_path / "own",
        n_trials=4,
        sampler=optuna.samplers.RandomSampler(seed=3),
        pruner=optuna.pruners.NopPruner(),
        callbacks=[lambda study, trial: seen.append(trial.number)],
    )
    assert seen == [0, 1, 2, 3]
    assert {t.state for t in run.study.trials} == {optuna.trial.TrialState.COMPLETE}


def needs_two_objectives(*_: Any) -> Any:
    raise ValueError("This needs a study of two objectives, not of one.\nSee its docs.")


def test_a_sampler_or_pruner_that_needs_several_objectives_is_one_line_and_the_run_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, pruner = optuna.samplers.RandomSampler(seed=3), optuna.pruners.NopPruner()
    monkeypatch.setattr(sampler, "sample_independent", needs_two_objectives)
    monkeypatch.setattr(pruner, "prune", needs_two_objectives)
    words = (
        r"^{} cannot be used in this search \(This needs a study of two objectives, not of one\): it must work with "
        r"one objective and with the parameters of the space; leave it out for ours\.$"
    )
    with pytest.raises(SpecError, match=words.format("RandomSampler")):
        small_search(tmp_path / "run", n_trials=3, sampler=sampler)
    with pytest.raises(SpecError, match=words.format("NopPruner")):
        small_search(tmp_path / "run", n_trials=3, pruner=pruner)
    run = small_search(tmp_path / "run", n_trials=3)
    assert [t.number for t in run.study.trials if t.state.is_finished()] == [0, 1, 2]


def test_a_sampler_for_several_objectives_works_with_one(tmp_path: Path) -> None:
    run = small_search(tmp_path / "run", n_trials=4, sampler=optuna.samplers.NSGAIISampler(seed=3))
    assert [t.number for t in run.study.trials if t.state.is_finished()] == [0, 1, 2, 3]


def test_a_callback_that_stops_the_study_ends_the_search_after_its_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Optuna's own: `study.stop` raised outside of `study.optimize`.
    monkeypatch.setattr("mtl_bento_search.study.ROUND_SIZE", 2)
    enough = optuna.study.MaxTrialsCallback(2, states=None)
    run = small_search(tmp_path / "run", n_trials=9, callbacks=[enough])
    assert run.result["trials"]["total"] == 3


def test_sqlite_holds_the_study(tmp_path: Path) -> None:
    run = small_search(tmp_path / "db", n_trials=2, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert len(run.study.trials) == 2
    assert not (run.folder / "study.log").exists()


def test_a_changed_spec_or_changed_data_is_refused_and_named(run: Run) -> None:
    with pytest.raises(RunError, match=r"another .*metric.*--out"):
        small_search(run.folder, targets={**TARGETS, "income": {"kind": "binary", "metric": "accuracy"}})
    with pytest.raises(RunError, match=r"another data_sha256"):
        small_search(run.folder, table=make_table(300, seed=9))


def test_a_second_driver_is_refused(run: Run) -> None:
    from mtl_bento_search.run import Folder

    with Folder(run.folder).locked(), pytest.raises(RunError, match="in use by another search"):
        small_search(run.folder)


def test_a_short_timeout_holds_and_still_leaves_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "make_executor", make_executor)
    started = time.monotonic()
    run = small_search(tmp_path / "quick", n_trials=None, timeout="20s", search={})
    assert time.monotonic() - started < 25
    assert run.result["trials"]["complete"] >= 1
    assert run.model.predict(make_table(3)).num_rows == 3


def test_a_torn_last_line_of_the_journal_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(b'{"op": 1}\n{"op": 2}\n{"op"')
    repair_journal(path)
    assert path.read_bytes() == b'{"op": 1}\n{"op": 2}\n'
    repair_journal(path)
    assert path.read_bytes() == b'{"op": 1}\n{"op": 2}\n'


def table_with(**columns: Any) -> pa.Table:
    held = make_table(60)
    for name, values in columns.items():
        held = held.append_column(name, values)
    return held


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"targets": ["incom"]}, SpecError, r"no column 'incom' for a target; did you mean 'income'"),
        ({"targets": []}, SpecError, "No target is given"),
        ({"targets": ["one"]}, SchemaError, r"Target 'one' is 1 in every training row"),
        ({"targets": ["none"]}, SchemaError, r"Target 'none' is missing in every"),
        ({"targets": ["income"], "inputs": {"state": "numeric"}}, SchemaError, r"state.*'[A-Z]"),
        ({"targets": ["income"], "inputs": {"stat": "numeric"}}, SpecError, r"'stat'.*did you mean 'state'"),
        ({"targets": ["income"], "inputs": {"state": "number"}}, SpecError, "number"),
        ({"targets": ["income"], "sample_weight": "wight"}, SpecError, "no column 'wight'"),
        ({"targets": ["late"], "split": {"kind": "column", "column": "part"}}, SchemaError, "'late' has no label in"),
        (
            {"targets": ["kept"], "split": {"kind": "column", "column": "part"}},
            SchemaError,
            "'kept' is 'a' in every training",
        ),
        ({"targets": ["income"], "executor": "moon"}, SpecError, "allowed: local"),
        ({"targets": ["income"], "device": "cuda:99"}, SpecError, "Device 'cuda:99' is not here; allowed: auto, cpu"),
        ({"targets": ["income"], "device": "meta"}, SpecError, "Device 'meta' is not here; allowed: auto, cpu"),
        ({"targets": ["income"], "device": "gpu"}, SpecError, "Device 'gpu' is not here; allowed: auto, cpu"),
        ({"targets": ["income"], "device": "hpu"}, SpecError, "Device 'hpu' is not here; allowed: auto, cpu"),
        ({"targets": ["income"], "serch": {}}, SpecError, r"serch is not a known key; did you mean 'search'"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    changes: dict[str, Any], error: type[MtlBentoError], words: str, tmp_path: Path
) -> None:
    table = table_with(
        one=pa.array([1.5] * 60).cast(pa.int64(), safe=False),
        none=pa.nulls(60),
        part=pa.array(["train", "val", "test"] * 20),
        kept=pa.array(["a", "a", "b"] * 20),
        late=pa.array(["a", "b", None, "b", "a", None] * 10),
    )
    with pytest.raises(error, match=words) as caught:
        mb.search(table, out=tmp_path / "run", n_trials=1, **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_table_that_does_not_fit_into_the_memory_of_a_gpu_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upload(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 GiB.")

    monkeypatch.setattr(Dataset, "build", upload)
    with pytest.raises(SpecError, match="does not fit into the memory of the device; give --device cpu") as caught:
        small_search(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "split",
    [
        {"kind": "random"},
        {"kind": "time", "column": "when"},
        {"kind": "group", "column": "children", "folds": 2},
        {"kind": "fold", "column": "children"},
        {"kind": "column", "column": "part", "folds": 0},
    ],
    ids=lambda split: split["kind"],
)
def test_every_kind_of_split_searches(split: dict[str, Any], tmp_path: Path) -> None:
    table = make_table(300).append_column("part", pa.array((["train"] * 4 + ["val", "test"]) * 50))
    run = small_search(tmp_path / "run", table, n_trials=1, split=split)
    assert run.result["trials"]["complete"] == 1


def test_nothing_but_which_labels_there_are_is_learned_from_test_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    part = np.array((["train"] * 4 + ["val", "test"]) * 50)
    numbers = np.where(part == "test", 1e6, 0.0) + rng.normal(size=300)
    table = pa.table({"x": rng.normal(size=300), "part": part, "y": numbers})
    run = small_search(
        tmp_path / "run", table, targets=["y"], n_trials=1, split={"kind": "column", "column": "part", "folds": 0}
    )
    (task,) = run.model.tasks
    np.testing.assert_allclose([task.spec.mean, task.spec.spread], [0, 1], atol=0.2)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from small import TARGETS
import mtl_bento as mb
small = {{"space": {{"steps": 64}}}}
mb.search({table!r}, targets=TARGETS, out={out!r}, timeout="120s", split={{"folds": 0}}, search=small)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_still_leaves_model_and_report(tmp_path: Path) -> None:
    table, out = tmp_path / "t.parquet", tmp_path / "run"
    pq.write_table(make_table(400), table)
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), table=str(table), out=str(out))
    # A script without `if __name__ == "__main__"`: workers must not run it again.
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 90
        while not (out / "checkpoints" / "trial-00000.safetensors").exists() and time.monotonic() < end:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    run = Run(out)
    assert (out / "report.html").is_file()
    assert run.result["trials"]["complete"] >= 1
    assert run.model.predict(make_table(2)).num_rows == 2
