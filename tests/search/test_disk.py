"""A full disk and a read-only folder: one line that names the folder, nothing half-written, and the search goes on."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from killing import N_TRIALS, Whole, Zygote, outcome

from mtl_bento.cli import cli
from mtl_bento.errors import RunError
from mtl_bento_search.run import Folder

FULL = {
    "the journal": ("optuna.storages.journal:JournalFileBackend.append_logs", 40, "full"),
    "a round's checkpoint": ("mtl_bento_search.checkpoints:write_file~round.safetensors", 4, "full"),
    "a trial's weights": ("mtl_bento_search.checkpoints:write_file~trial-00002", 1, "full"),
    "the state": ("mtl_bento_search.run:write_file~state.json", 3, "full"),
    "the model": ("pathlib:Path.write_bytes~weights.safetensors", 1, "full"),
    "the result": ("mtl_bento_search.run:write_file~result.json", 1, "full"),
    "the report": ("mtl_bento.artifact:write_file~report.html", 1, "full"),
}


def refusal(out: Path, reason: str = "No space left on device") -> str:
    return (
        f"{out} cannot be written ({reason}). Make room there, or make it writable, and run the same search again: "
        "it goes on where it stopped; or choose another folder with --out."
    )


def mount(*options: str) -> bool:
    """Mount something; return whether that is allowed here."""
    try:
        return subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 60 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=60k", "none", str(path)):
        pytest.skip("only root may mount a small disk")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)  # this process may still hold a database open


@pytest.mark.parametrize("what", FULL)
def test_where_there_is_no_room_for(what: str, zygote: Zygote, whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = zygote.sit(out, n_trials=N_TRIALS, at=FULL[what])
    assert (answer["code"], answer["error"]) == (2, refusal(out))
    assert not list(out.rglob(".*.part"))
    assert zygote.sit(out, n_trials=N_TRIALS)["code"] == 0
    assert outcome(out) == whole.outcome


def test_where_there_is_no_room_for_a_new_run_nothing_is_left(zygote: Zygote, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = zygote.sit(out, n_trials=1, at=("mtl_bento_search.run:write_file~spec.yaml", 1, "full"))
    assert (answer["code"], answer["error"]) == (2, refusal(out))
    assert not out.exists()


def test_a_search_on_a_disk_that_is_full_goes_on_when_it_grows(zygote: Zygote, whole: Whole, disk: Path) -> None:
    out = disk / "run"
    full = 0
    for size in range(80, 2000, 80):
        answer = zygote.sit(out, n_trials=N_TRIALS)
        if answer["code"] == 0:
            break
        assert (answer["code"], answer["error"]) == (2, refusal(out))
        assert not list(out.rglob(".*.part"))
        full += 1
        assert mount("-o", f"remount,size={size}k", str(disk))
    assert full >= 5
    assert outcome(out) == whole.outcome


def test_a_storage_on_a_disk_that_is_full_goes_on_when_it_grows(zygote: Zygote, disk: Path, tmp_path: Path) -> None:
    url, whole, out = f"sqlite:///{disk}/study.db", tmp_path / "whole" / "run", tmp_path / "run"
    answers = []
    for size in range(80, 400, 20):
        answers.append(zygote.sit(out, n_trials=8, storage=url))
        if answers[-1]["code"] == 0:
            break
        assert mount("-o", f"remount,size={size}k", str(disk))
    assert len(answers) >= 5
    for answer in answers[:-1]:
        assert answer["code"] == 2
        assert re.fullmatch(
            rf"The storage {url} cannot be used \((database or disk is full|disk I/O error)\): check its address, "
            "password and driver, then run the same search again; without --storage the run keeps a journal file.",
            answer["error"],
        )
    assert mount("-o", "remount,size=2m", str(disk))
    assert zygote.sit(whole, n_trials=8, storage=f"sqlite:///{disk}/whole.db")["code"] == 0
    assert outcome(out) == outcome(whole)


def test_a_search_on_a_disk_that_became_read_only_goes_on_when_it_is_writable(
    zygote: Zygote, whole: Whole, disk: Path
) -> None:
    assert mount("-o", "remount,size=2m", str(disk))
    out = disk / "run"
    at = ("mtl_bento_search.study:save_round", 2, "before")
    assert zygote.sit(out, n_trials=N_TRIALS, at=at)["code"] == -9
    assert mount("-o", "remount,ro", str(disk))
    answer = zygote.sit(out, n_trials=N_TRIALS)
    assert (answer["code"], answer["error"]) == (2, refusal(out, "Read-only file system"))
    assert mount("-o", "remount,rw", str(disk))
    assert zygote.sit(out, n_trials=N_TRIALS)["code"] == 0
    assert outcome(out) == whole.outcome


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable_is_named(zygote: Zygote, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        answer = zygote.sit(tmp_path / "run", n_trials=1)
    finally:
        tmp_path.chmod(0o755)
    assert (answer["code"], answer["error"]) == (2, refusal(tmp_path / "run", "Permission denied"))


def test_a_report_that_cannot_be_written_is_one_line_and_exit_code_2(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtl_bento.artifact.write_file", full)
    answer = CliRunner().invoke(cli, ["report", str(whole.out)])
    assert (answer.exit_code, answer.output) == (2, f"Error: {refusal(whole.out)}\n")


def test_what_fails_elsewhere_keeps_its_own_error(tmp_path: Path) -> None:
    # A callback of the user's, for instance, that writes where it may not.
    error = PermissionError(13, "Permission denied", str(tmp_path / "elsewhere"))
    with pytest.raises(PermissionError), Folder(tmp_path / "run").writing():
        raise error
    with pytest.raises(RunError), Folder(tmp_path).writing():
        raise error
    with pytest.raises(ConnectionResetError), Folder(tmp_path).writing():
        raise ConnectionResetError(104, "Connection reset by peer")
