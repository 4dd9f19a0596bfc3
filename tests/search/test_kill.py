"""Nothing lost: killed at any moment and started again, a search ends as if nobody had touched it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from killing import KILLED, N_TRIALS, Whole, Zygote, outcome, told

from mtl_bento.errors import RunError
from mtl_bento_search.checkpoints import load_members, load_round
from mtl_bento_search.run import Run


def kill_at_random(zygote: Zygote, folder: Path, whole: Whole, *, kills: int, seed: int) -> tuple[int, int]:
    """Kill searches at random moments, each until it is finished, so often in all; return (searches, trials lost).

    A trial is lost that was finished at one kill and is not, or is another one, at the next or at the end.
    """
    rng, done, lost = random.Random(seed), 0, 0
    for search in range(1, kills + 1):
        out, before = folder / str(search) / "run", dict[int, Any]()
        code = KILLED
        while code == KILLED:
            # About twenty kills a search; the last one is left to finish.
            after = rng.uniform(0, 0.3 * whole.seconds) if done < kills else None
            answer = zygote.sit(out, n_trials=N_TRIALS, after=after)
            code = answer["code"]
            assert code in (0, KILLED), answer
            done += code == KILLED
            now = told(out)
            lost += len(before.items() - now.items())
            before = now
        assert outcome(out) == whole.outcome
        if done == kills:
            return search, lost
    raise AssertionError("every sitting finished before it was killed")


def test_a_search_killed_at_twenty_random_points_ends_as_the_uninterrupted_one(
    zygote: Zygote, whole: Whole, tmp_path: Path
) -> None:
    _, lost = kill_at_random(zygote, tmp_path, whole, kills=20, seed=1)
    assert lost == 0


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing(zygote: Zygote, whole: Whole, tmp_path: Path) -> None:
    searches, lost = kill_at_random(zygote, tmp_path, whole, kills=200, seed=2)
    print(f"kills tried: 200, in {searches} searches of {N_TRIALS} trials; trials lost: {lost}")
    assert lost == 0


APPEND = "optuna.storages.journal:JournalFileBackend.append_logs"
MOMENTS = {
    "the study is there and the spec is not": ("mtl_bento_search.run:Folder.write_spec", 1, "before"),
    "the spec is written": ("mtl_bento_search.run:Folder.write_spec", 1, "after"),
    "the references are trained": ("mtl_bento.training:Cohort._look", 9, "before"),
    "the references are written": ("mtl_bento_search.references:save_members", 1, "before"),
    "trial 0 is about to be told": ("mtl_bento_search.study:save_members", 1, "after"),
    "trial 0 is in the study": ("optuna.storages:JournalStorage.create_new_trial", 1, "after"),
    "a trial is asked, in the first batch": ("optuna.storages:JournalStorage.set_trial_param", 33, "after"),
    "a trial is there without parameters": ("optuna.storages:JournalStorage.create_new_trial", 10, "after"),
    "a trial is asked, in the second batch": ("optuna.storages:JournalStorage.set_trial_param", 105, "before"),
    "a batch is asked and not yet written": ("mtl_bento_search.study:save_round", 5, "before"),
    "the losers of a rung are told and the others not yet written": ("mtl_bento_search.study:save_round", 2, "before"),
    "a round is trained and not yet written": ("mtl_bento_search.study:save_round", 4, "before"),
    "the journal has half a line": (APPEND, 19, "tear"),
    "half of a trial's attributes are in the journal": (APPEND, 33, "tear"),
    "half of a rung's reports are in the journal": (APPEND, 49, "tear"),
    "a round is written beside": ("pathlib:Path.replace~.round.safetensors", 6, "before"),
    "a round is renamed": ("pathlib:Path.replace~.round.safetensors", 6, "after"),
    "a rung is trained": ("mtl_bento.training:Cohort._look", 60, "before"),
    "a rung is half reported": ("optuna.trial:Trial.report", 10, "after"),
    "a rung is half pruned": ("optuna.study:Study.tell", 4, "after"),
    "a trial's weights are saved and it is not told": ("mtl_bento_search.study:save_members", 3, "after"),
    "a trial is told": ("optuna.storages:JournalStorage.set_trial_state_values", 6, "after"),
    "a round is told and its checkpoint is there": ("pathlib:Path.unlink~round.safetensors", 1, "before"),
    "the finals are trained": ("mtl_bento_search.finals:save_members", 1, "before"),
    "the finals are written": ("mtl_bento_search.finals:save_members", 1, "after"),
    "the model is written beside": ("pathlib:Path.rename~.model", 1, "before"),
    "the result is written beside": ("pathlib:Path.replace~.result.json", 1, "before"),
    "the result is renamed": ("pathlib:Path.replace~.result.json", 1, "after"),
    "the report is written beside": ("pathlib:Path.replace~.report.html", 1, "before"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_search_ends_as_the_uninterrupted_one_when_it_is_killed_and(
    moment: str, zygote: Zygote, whole: Whole, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert zygote.sit(out, n_trials=N_TRIALS, at=MOMENTS[moment])["code"] == KILLED
    assert zygote.sit(out, n_trials=N_TRIALS)["code"] == 0
    assert outcome(out) == whole.outcome


def test_a_round_is_written_without_the_trials_that_were_told(zygote: Zygote, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert zygote.sit(out, n_trials=N_TRIALS, at=MOMENTS["a round is renamed"])["code"] == KILLED
    packed, info = load_round(out / "checkpoints" / "round.safetensors")
    second = Run(out).study.trials[7:]  # after trial 0 and a round of six
    assert sorted(t.state.name for t in second) == ["PRUNED"] * 3 + ["RUNNING"] * 3
    assert list(info["numbers"].values()) == [t.number for t in second if t.state.name == "RUNNING"]
    assert sorted(str(place) for places, _ in packed for place in places) == list(info["numbers"])
    assert {stack.step for _, stack in packed} == {8}


def test_a_search_writes_its_journal_about_four_times_a_trial(zygote: Zygote, tmp_path: Path) -> None:
    # The study 8 times and trial 0 once; 13 trials asked in 2 and told in 2; 3 rungs of 3 rounds reported in 1.
    n = 8 + 1 + 13 * 4 + 9
    assert zygote.sit(tmp_path / "run", n_trials=N_TRIALS, at=(APPEND, n, "before"))["code"] == KILLED
    assert zygote.sit(tmp_path / "another" / "run", n_trials=N_TRIALS, at=(APPEND, n + 1, "before"))["code"] == 0


def test_a_journal_that_is_locked_by_a_dead_driver_does_not_stop_the_next(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Optuna waits 30 s for such a lock; and for ever where the folder was given by a relative path.
    out = tmp_path / "run"
    assert zygote.sit(out, n_trials=8, at=MOMENTS["the journal has half a line"])["code"] == KILLED
    assert (out / "study.log.lock").is_symlink()
    assert zygote.sit(out, n_trials=8, after=20)["code"] == 0
    assert not (out / "study.log.lock").is_symlink()


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_search_killed_around_the_renames_of_its_second_model_has_a_model_and_goes_on(
    call: int, zygote: Zygote, whole: Whole, tmp_path: Path
) -> None:
    # The old model stayed beside, hidden, until the next was written, and Run.model was damaged until then.
    out = tmp_path / "run"
    assert zygote.sit(out, n_trials=7)["code"] == 0
    before = Run(out).model.card
    at = ("pathlib:Path.rename~/run/", call, "before") if call < 3 else ("pathlib:Path.rename~/run/", 2, "after")
    assert zygote.sit(out, n_trials=N_TRIALS, at=at)["code"] == KILLED
    assert (Run(out).model.card == before) == (call < 3)
    assert zygote.sit(out, n_trials=N_TRIALS)["code"] == 0
    expected = {"result": {**whole.outcome["result"], "test_looks": 2}}
    assert outcome(out) == whole.outcome | expected


def test_trials_that_a_killed_driver_asked_beyond_a_lower_total_are_failed_and_asked_again(
    zygote: Zygote, whole: Whole, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert zygote.sit(out, n_trials=N_TRIALS, at=MOMENTS["a batch is asked and not yet written"])["code"] == KILLED
    assert len(told(out)) == 7
    assert zygote.sit(out, n_trials=8)["code"] == 0
    assert [t.state.name for t in Run(out).study.trials][8:] == ["FAIL"] * 5
    assert zygote.sit(out, n_trials=N_TRIALS)["code"] == 0
    assert [t.state.name for t in Run(out).study.trials].count("FAIL") == 5
    assert Run(out).result["trials"]["total"] == N_TRIALS


def test_a_round_that_is_interrupted_goes_on_with_the_next_sitting(
    zygote: Zygote, whole: Whole, tmp_path: Path
) -> None:
    # Its trials were told as pruned, though nothing had beaten them.
    out = tmp_path / "run"
    at = ("mtl_bento.training:Cohort._look", 60, "interrupt")
    assert zygote.sit(out, n_trials=N_TRIALS, at=at)["code"] == 0
    first = Run(out).result["trials"]
    assert first["total"] < N_TRIALS
    assert first["total"] == first["complete"] + first["pruned"]
    assert zygote.sit(out, n_trials=N_TRIALS)["code"] == 0
    assert told(out) == told(whole.out)


def test_references_that_are_interrupted_are_trained_again(zygote: Zygote, whole: Whole, tmp_path: Path) -> None:
    # Half trained, they were the yardstick of the run for good.
    out = tmp_path / "run"
    at = ("mtl_bento.training:Cohort._look", 9, "interrupt")
    answer = zygote.sit(out, n_trials=N_TRIALS, at=at)
    assert answer["code"] == 2
    assert answer["error"] == (
        "Interrupted before trial 0 and the networks of each task alone were trained; run the same search again."
    )
    assert zygote.sit(out, n_trials=N_TRIALS)["code"] == 0
    assert outcome(out) == whole.outcome


def test_a_study_that_is_gone_is_not_begun_anew(zygote: Zygote, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert zygote.sit(out, n_trials=7)["code"] == 0
    (out / "study.log").unlink()
    answer = zygote.sit(out, n_trials=N_TRIALS)
    assert answer["code"] == 2
    assert answer["error"] == (
        "The study of this run, with 7 trials, is not where it was (its journal is gone); bring it back, or search "
        "anew with another --out."
    )


def test_a_killed_worker_is_one_line_and_the_same_search_goes_on(zygote: Zygote, tmp_path: Path) -> None:
    touched, whole = tmp_path / "touched" / "run", tmp_path / "whole" / "run"
    at = ("mtl_bento_search.executors.local:Processes.advance", 5, "worker")
    answer = zygote.sit(touched, n_trials=8, workers=2, at=at)
    assert answer["code"] == 2
    assert answer["error"] == (
        "A worker process was ended by SIGKILL, as the system does where memory runs out. "
        "Run the same search again: it goes on where it stopped."
    )
    assert zygote.sit(touched, n_trials=8, workers=2)["code"] == 0
    assert zygote.sit(whole, n_trials=8, workers=2)["code"] == 0
    assert outcome(touched) == outcome(whole)


def test_a_checkpoint_with_a_flipped_byte_is_named(whole: Whole, tmp_path: Path) -> None:
    path = tmp_path / "trial-00000.safetensors"
    shutil.copy(whole.out / "checkpoints" / path.name, path)
    assert load_members(path)[0]
    flip(path)
    with pytest.raises(RunError, match=r"trial-00000\.safetensors is missing or damaged \(its checksum differs\)"):
        load_members(path)
    with pytest.raises(RunError, match="is missing or damaged"):
        load_round(tmp_path / "nothing.safetensors")


def test_a_round_with_a_flipped_byte_is_named_and_trained_again_where_it_is_removed(
    zygote: Zygote, whole: Whole, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "checkpoints" / "round.safetensors"
    asked = ("pathlib:Path.replace~.round.safetensors", 1, "after")
    assert zygote.sit(tmp_path / "run", n_trials=N_TRIALS, at=asked)["code"] == KILLED
    flip(path)
    answer = zygote.sit(tmp_path / "run", n_trials=N_TRIALS)
    assert answer["code"] == 2
    assert answer["error"].startswith(f"{path} is missing or damaged (")
    assert answer["error"].endswith(
        "). Put a whole copy in its place, or search anew with another --out; unless it is a trial's, it is also "
        "trained again where you remove it."
    )
    path.unlink()
    assert zygote.sit(tmp_path / "run", n_trials=N_TRIALS)["code"] == 0
    assert outcome(tmp_path / "run") == whole.outcome


def flip(path: Path) -> None:
    """Change a byte of a file."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
