"""A student learns from what is served, and that is trained again: what is kept, said, packaged and resumed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from killing import KILLED, Zygote
from small import TARGETS, make_table

import mtl_bento as mb
from mtl_bento import artifact
from mtl_bento.cli import cli
from mtl_bento.errors import RunError
from mtl_bento.forest import Forest
from mtl_bento.network import Trained
from mtl_bento_search import finish as ending
from mtl_bento_search import trees
from mtl_bento_search.arms import Arms
from mtl_bento_search.checkpoints import load_members
from mtl_bento_search.executors.local import InProcess
from mtl_bento_search.run import Run
from mtl_bento_search.said import after_the_test, rounded
from mtl_bento_search.select import validation_rows
from mtl_bento_search.student import lessons

pytestmark = pytest.mark.usefixtures("in_process")

SMALL = {"trunk": ["mlp"], "space": {"steps": 48, "width": 16, "batch_size": 32}}
NAMES = list(TARGETS)
ROWS = 240


def tiny(out: Path, *, split: dict[str, Any] | None = None, **search: Any) -> Run:
    """A search of two trials, two folds, in this process."""
    given = {"targets": TARGETS, "n_trials": 2, "seed": 1, "split": split or {"folds": 2}, "search": SMALL | search}
    return mb.search(make_table(ROWS), out=out, **given)


def stamps(run: Run) -> dict[str, int]:
    """When each checkpoint was written."""
    return {path.name: path.stat().st_mtime_ns for path in (run.folder / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, in_process: None) -> Run:
    """A run with a student and a refit."""
    return tiny(tmp_path_factory.mktemp("both") / "run", student=True, refit=True)


def test_without_either_nothing_is_trained_kept_or_said(tmp_path: Path) -> None:
    run = tiny(tmp_path / "run", trees=False)
    assert run.result["student"] is None
    assert run.result["refit"] is None
    assert after_the_test(run.result) == []
    assert not (run.folder / "student").exists()
    assert not [name for name in stamps(run) if name.startswith(("student", "refit"))]
    assert not {"student", "refit"} & run.result["phases_s"].keys()


def test_the_student_is_one_network_of_all_targets_compared_in_the_same_look(both: Run) -> None:
    assert both.result["test_looks"] == 1
    assert both.result["chosen_by"]["student"] is True
    for record in both.result["tasks"]:
        against = record["against"]["student"]
        assert against["name"] == "student"
        assert against["value"] == record["values"]["student"]
        assert math.isfinite(against["difference"])
        assert record["losses"]["student"] > 0
    student = both.student
    (network,) = student.members
    assert not isinstance(network, Forest)
    assert student.blend.tolist() == [[1.0]] * len(NAMES)
    size = both.result["student"]["student"]
    assert size["parameters"] == network.n_parameters
    assert size["bytes"] == sum(path.stat().st_size for path in (both.folder / "student").rglob("*"))
    assert list(size["latency_ms"]) == ["1", "64"]
    assert list(student.card["metrics"]) == NAMES
    assert student.card["student_of"] == "run"


def test_the_students_own_answers_calibrate_it(both: Run) -> None:
    hours = {name: model.tasks[2].spec.half_width for name, model in (("ours", both.model), ("its", both.student))}
    assert hours["ours"] != hours["its"]
    assert both.student.tasks[2].spec.calibrated_on == both.model.tasks[2].spec.calibrated_on


def test_forests_of_several_targets_are_trained_again_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, int] = {}

    def again(problem: Any, held: trees.Trees, *given: Any, n_workers: int, **options: Any) -> trees.Trees:
        threads[held.task] = n_workers
        return original(problem, held, *given, n_workers=n_workers, **options)

    original = trees.again
    monkeypatch.setattr(trees, "again", again)
    monkeypatch.setattr(InProcess, "n_workers", 4)
    tiny(tmp_path / "run", refit=True, max_members=1)
    assert len(threads) == 4
    assert set(threads.values()) == {1}


@pytest.mark.parametrize(
    ("took", "said"), [(0.0149, "0.015"), (1.84, "1.8"), (23.4, "23"), (268.0, "270"), (12_345.0, "12,000")]
)
def test_milliseconds_are_said_as_one_reads_them(took: float, said: str) -> None:
    assert rounded(took) == said


def test_what_it_costs_is_said(both: Run) -> None:
    refitted, student = after_the_test(both.result)
    assert refitted.startswith(f"What is served was trained again on all {ROWS} rows after the test: ")
    assert student.startswith(f"The student, one network configured as trial {both.result['student']['trial']}, takes ")
    assert "what it costs" in (both.folder / "report.html").read_text()
    card = both.model.card_text()
    assert f"After the test it was trained again on all {ROWS}: the figures are those of before." in card
    assert "against student" in card
    assert f"trained again on all {ROWS}" in both.student.card_text()


def test_milliseconds_are_said_in_digits() -> None:
    sizes = [
        {"parameters": 1, "bytes": size, "latency_ms": {"1": one, "64": many}}
        for size, one, many in ((9_251_000, 8.16, 123.4), (276_000, 1.04, 3.66))
    ]
    (said,) = after_the_test({"student": {"trial": 3, "model": sizes[0], "student": sizes[1]}})
    assert said == (
        "The student, one network configured as trial 3, takes 1 ms (not 8.2) for one row and 3.7 ms "
        "(not 120) for 64 rows, and 276 kB (not 9,251); what it costs stands beside each target."
    )


def test_a_refit_changes_what_is_served_and_nothing_that_is_said_of_it(both: Run, tmp_path: Path) -> None:
    plain = tiny(tmp_path / "run", student=True)
    ignored = dict.fromkeys(("phases_s", "elapsed_s", "refit", "chosen_by", "student", "network", "model"))
    assert {**plain.result, **ignored} == {**both.result, **ignored}
    before, after = plain.model, both.model
    np.testing.assert_array_equal(before.blend, after.blend)
    assert [task.spec for task in before.tasks] == [task.spec for task in after.tasks]
    assert len(before.members) == len(after.members)
    table = make_table(20, seed=3)
    ours, theirs = before.answers(table), after.answers(table)
    assert all(not np.allclose(ours[name], theirs[name]) for name in NAMES)


def test_what_is_trained_again_has_its_own_configuration_seed_and_steps(both: Run) -> None:
    again, info = load_members(both.folder / "checkpoints" / "refit-00002.safetensors")
    assert len(again) == len(info["keys"]) == sum(not isinstance(member, Forest) for member in both.model.members)
    first = [
        held
        for path in (both.folder / "checkpoints").iterdir()
        if path.name.startswith(("references", "trial", "finals"))
        for held in load_members(path)[0]
    ]
    recipes = [(held.member.spec, held.member.seed, held.step) for held in first]
    for member in again:
        assert member.step == member.member.until
        assert (member.member.spec, member.member.seed, member.step) in recipes


def test_one_forest_of_all_rows_has_the_share_of_those_that_it_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trees.again

    def alike(*given: Any, **options: Any) -> trees.Trees:  # as where parameters draw no rows or inputs at random
        grown = original(*given, **options)
        return replace(grown, forests=grown.forests[:1])

    monkeypatch.setattr(trees, "again", alike)
    run = tiny(tmp_path / "run", refit=True, max_members=1)
    model = run.model
    assert [member.task for member in model.members if isinstance(member, Forest)]
    assert run.result["model"]["members"] == len(model.members)
    assert model.blend.shape == (len(NAMES), len(model.members))
    np.testing.assert_allclose(model.blend.sum(1), 1, rtol=1e-12)


def test_options_taken_back_or_added_train_only_what_is_missing(both: Run, tmp_path: Path) -> None:
    run = tiny(tmp_path / "run")
    before = stamps(run)
    added = tiny(tmp_path / "run", student=True, refit=True)
    names = set(stamps(added))
    assert {name: at for name, at in stamps(added).items() if name in before} == before
    assert names == set(stamps(both))
    assert added.result["test_looks"] == 2  # another arm was looked at
    for folder in ("model", "student"):
        weights = [(r.folder / folder / artifact.WEIGHTS).read_bytes() for r in (added, both)]
        assert weights[0] == weights[1]
    held = stamps(added)
    assert tiny(tmp_path / "run", refit=True).result["student"] is None
    assert not (tmp_path / "run" / "student").exists()
    assert tiny(tmp_path / "run", student=True).result["test_looks"] == 2
    assert stamps(added) == held
    with pytest.raises(RunError, match=r"run has no student; run the same search again with --student for one\.$"):
        _ = tiny(tmp_path / "run").student


def test_another_teacher_has_another_student(both: Run, tmp_path: Path) -> None:
    run = tiny(tmp_path / "run", student=True, members="networks", max_members=1)
    own = {name for name in stamps(run) if name.startswith("student")}
    assert not own & set(stamps(both))


def test_a_holdouts_student_is_the_network_that_its_validation_rows_judged(tmp_path: Path) -> None:
    run = tiny(tmp_path / "run", split={"folds": 0}, student=True, trees=False)
    (path,) = (run.folder / "checkpoints").glob("student-*.safetensors")
    fold, kept = load_members(path)[0]
    assert (fold.member, fold.step) == (kept.member, kept.step)
    (network,) = run.student.members
    assert isinstance(network, Trained)
    assert all(torch.equal(network.state[name], held) for name, held in fold.state.items())


def test_a_teacher_answers_rows_by_those_that_did_not_learn_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Arms] = []

    def learn(driver: Any, arms: Arms) -> Any:
        kept.append(arms)
        return original(driver, arms)

    original = ending.learn
    monkeypatch.setattr(ending, "learn", learn)
    run = tiny(tmp_path / "run", student=True)
    (arms,) = kept
    taught, problem = lessons(arms), arms.problem
    rows = validation_rows(problem.dataset)
    test = problem.protocol.test
    served = arms.answered(test)["ours"].answers
    for t, held in enumerate(arms.out_of_fold()):
        np.testing.assert_array_equal(taught[t][rows], held.astype(np.float32))
        own = served[t]
        assert own is not None
        np.testing.assert_array_equal(taught[t][test], own.astype(np.float32))
    assert run.result["student"] is not None


def test_packaging_takes_the_student_or_says_that_there_is_none(
    both: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[tuple[Path, str]] = []
    monkeypatch.setattr("mtl_bento.packaging._store", lambda folder, tag, _labels: stored.append((folder, tag)))
    mb.package(both.folder, student=True)
    assert stored == [(both.folder / "student", "run-student")]
    table = make_table(30, seed=9)
    found = mb.load(stored[0][0]).predict(table)
    assert found.equals(both.student.predict(table))
    bare = tmp_path / "bare"
    bare.mkdir()
    result = CliRunner().invoke(cli, ["package", str(bare), "--student"])
    assert result.exit_code == 2
    said = f"Error: {bare} has no student; run its search again with --student, which trains one.\n"
    assert result.stderr.replace("\n", " ").strip() == said.strip()
    result = CliRunner().invoke(cli, ["package", str(both.folder), "--student", "--trial", "0"])
    assert result.exit_code == 2
    assert "package one at a time: --trial or --student" in result.stderr


MOMENTS = {
    "the student is trained": ("mtl_bento_search.student:save_members", 1, "before"),
    "the student is written": ("mtl_bento_search.student:save_members", 1, "after"),
    "the test is scored and nothing is trained again": ("mtl_bento_search.finish:refit", 1, "before"),
    "networks are trained again": ("mtl_bento_search.refit:save_members", 1, "before"),
    "some trees are trained again": ("mtl_bento_search.trees:again", 2, "before"),
    "the student is trained again": ("mtl_bento_search.student:save_members", 2, "before"),
    "the model is written and the student is not": ("pathlib:Path.rename~.student", 1, "before"),
}
OPTIONS = {
    "search": {
        "trunk": ["mlp", "tabm"],
        "space": {"steps": 32, "width": [8, 24], "tabm.inner": 2, "batch_size": 32},
        "student": True,
        "refit": True,
    }
}


def left(out: Path) -> dict[str, Any]:
    """Return what must not depend on kills."""
    result = Run(out).result
    timed = dict.fromkeys(("phases_s", "elapsed_s", "student"))
    return {
        "result": {**result, **timed},
        "student": {**result["student"], "model": None, "student": None},
        "weights": [(out / name / artifact.WEIGHTS).read_bytes() for name in ("model", "student")],
        "files": sorted(str(path.relative_to(out)) for path in out.rglob("*")),
    }


@pytest.fixture(scope="module")
def untouched(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("untouched") / "run"
    assert zygote.sit(out, n_trials=4, **OPTIONS)["code"] == 0
    return left(out)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_ends_as_the_uninterrupted_one_when_it_is_killed_and(
    moment: str, zygote: Zygote, untouched: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert zygote.sit(out, n_trials=4, at=MOMENTS[moment], **OPTIONS)["code"] == KILLED
    assert zygote.sit(out, n_trials=4, **OPTIONS)["code"] == 0
    assert json.dumps(left(out)["result"]) == json.dumps(untouched["result"])
    assert left(out) == untouched


@pytest.mark.parametrize("name", ["learn", "refit"])
def test_interrupted_on_the_way_it_ends_without_and_the_same_command_goes_on(
    name: str, zygote: Zygote, untouched: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert zygote.sit(out, n_trials=4, at=(f"mtl_bento_search.finish:{name}", 1, "interrupt"), **OPTIONS)["code"] == 0
    result = Run(out).result
    assert result["chosen_by"]["refit"] is False
    assert result["chosen_by"]["student"] is (name == "refit")
    assert zygote.sit(out, n_trials=4, **OPTIONS)["code"] == 0
    assert left(out)["weights"] == untouched["weights"]


def test_trees_teach_the_training_rows_of_a_holdout_by_cross_fitting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Arms] = []
    original = ending.learn
    monkeypatch.setattr(ending, "learn", lambda driver, arms: (kept.append(arms), original(driver, arms))[1])
    tiny(tmp_path / "run", split={"folds": 0}, student=True, max_members=1)
    (arms,) = kept
    taught, problem = lessons(arms), arms.problem
    learned = problem.protocol.learned
    by_trees = 0
    for t, task in enumerate(problem.tasks):
        (name,) = arms.ours.served_by(t)
        if name == f"trees {task.name}":
            grown = arms.finals.trees[t]
            assert grown is not None
            expected = task.activate(torch.from_numpy(grown.margins[learned])).numpy()
            np.testing.assert_array_equal(taught[t][learned], expected)
            by_trees += 1
    assert by_trees
