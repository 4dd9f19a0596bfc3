"""Model folders: whole or not at all, and never believed without their checksums."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_bento import artifact
from mtl_bento.errors import ArtifactError
from mtl_bento.sources import model_folder

NAMES = (artifact.MANIFEST, artifact.WEIGHTS, artifact.SAMPLES, artifact.CARD)
FILES = {
    artifact.MANIFEST: artifact.to_json({"format_version": 1, "card": {"name": "模型"}}),
    artifact.WEIGHTS: bytes(range(256)),
    artifact.SAMPLES: artifact.to_json({"rows": [{}], "answers": [{"y": {"value": 1}}]}),
    artifact.CARD: "# 模型\n".encode(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    artifact.write_folder(tmp_path / "m" / "model", FILES)
    return tmp_path / "m" / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def resign(folder: Path) -> None:
    """Write checksums that fit the files as they are."""
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in NAMES}
    (folder / artifact.CHECKSUMS).write_text(json.dumps(sums))


def test_a_folder_holds_its_files_and_their_checksums_and_nothing_lies_beside_it(folder: Path) -> None:
    assert set(contents(folder)) == {*FILES, artifact.CHECKSUMS}
    sums = json.loads((folder / artifact.CHECKSUMS).read_text())
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_what_was_written_is_read(folder: Path) -> None:
    assert artifact.read_manifest(folder) == {"format_version": 1, "card": {"name": "模型"}}
    assert artifact.read_samples(folder) == {"rows": [{}], "answers": [{"y": {"value": 1}}]}


def test_others_may_read_the_folder(folder: Path) -> None:
    # A service in a container runs as another user.
    assert folder.stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())


@pytest.mark.parametrize("name", [*NAMES])
def test_a_flipped_byte_is_found(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[place] ^= 1
        (folder / name).write_bytes(flipped)
        with pytest.raises(ArtifactError, match=f"^Model .*: {name} is damaged; copy the whole folder again"):
            artifact.read_manifest(folder)


def test_a_flipped_byte_of_the_checksums_is_found(folder: Path) -> None:
    path = folder / artifact.CHECKSUMS
    content = path.read_bytes()
    for place in range(len(content)):
        if not content[place : place + 1].isspace():
            flipped = bytearray(content)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(ArtifactError, match=r"is damaged|is missing"):
                artifact.read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"model.json": 1}'])
def test_checksums_that_say_nothing_are_damaged(folder: Path, content: bytes) -> None:
    # Without an entry a file went unchecked, and missing weights raised FileNotFoundError.
    (folder / artifact.CHECKSUMS).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is damaged"):
        artifact.read_manifest(folder)


@pytest.mark.parametrize("name", [*NAMES, artifact.CHECKSUMS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing; "):
        artifact.read_manifest(folder)


def test_a_folder_that_is_no_model_says_where_one_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is no whole model folder: .*`mtl-bento search` makes one in RUN/model"):
        artifact.read_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="is no whole model folder"):
        artifact.read_manifest(tmp_path / "not there")


def test_a_newer_format_says_what_to_install(folder: Path) -> None:
    (folder / artifact.MANIFEST).write_bytes(artifact.to_json({"format_version": 2}))
    resign(folder)
    with pytest.raises(ArtifactError, match=r"has format version 2; this mtl-bento reads 1\. Install a newer"):
        artifact.read_manifest(folder)


def test_an_older_folder_is_replaced(folder: Path) -> None:
    artifact.write_folder(folder, FILES | {artifact.CARD: b"new"})
    assert (folder / artifact.CARD).read_bytes() == b"new"
    assert artifact.read_manifest(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_write_that_fails_leaves_the_old_folder_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    original = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == artifact.SAMPLES:
            raise OSError(28, "No space left on device")
        return original(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        artifact.write_folder(folder, FILES | {artifact.CARD: b"new"})
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_rename_that_fails_leaves_the_old_folder_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
) -> None:
    # The old folder had been moved aside and stayed there, hidden.
    before, calls = contents(folder), []
    original = Path.rename

    def rename(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == failing:
            raise error
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(error)):
        artifact.write_folder(folder, FILES | {artifact.CARD: b"new"})
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def cut_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a folder as a writer does that is killed between the two renames: nothing is tidied up."""
    killed, original = [], Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path == folder:
            killed.append(original(path, target))
        raise OSError(5, "killed")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        patched.setattr(artifact.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(OSError, match="killed"):
            artifact.write_folder(folder, FILES | {artifact.CARD: b"new"})
    assert killed
    assert not folder.exists()


def test_a_folder_whose_replacement_was_killed_between_its_renames_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The old folder stayed beside, hidden, and the model was gone.
    before = contents(folder)
    cut_short(folder, monkeypatch)
    assert artifact.read_manifest(folder)
    assert contents(folder) == before


def test_a_folder_whose_replacement_was_killed_between_its_renames_is_a_model_of_its_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(folder, monkeypatch)
    assert model_folder(folder.parent) == folder
    assert folder.is_dir()


def test_a_folder_whose_replacement_was_killed_between_its_renames_is_replaced_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(folder, monkeypatch)
    artifact.write_folder(folder, FILES | {artifact.CARD: b"newer"})
    assert (folder / artifact.CARD).read_bytes() == b"newer"
    assert not folder.with_name(".model.old").exists()


def test_a_first_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(path: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        artifact.write_folder(tmp_path / "model", FILES)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_beside_and_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new folder" / "file"
    artifact.write_file(path, b"one")
    artifact.write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644

    def replace(beside: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="Input/output"):
        artifact.write_file(path, b"three")
    assert path.read_bytes() == b"two"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_json_holds_any_script_as_it_is_and_no_nan() -> None:
    assert "模型" in artifact.to_json({"name": "模型"}).decode()
    with pytest.raises(ValueError, match="JSON"):
        artifact.to_json({"value": float("nan")})


def test_manifests_are_read_without_torch() -> None:
    code = "import sys, mtl_bento.artifact; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
