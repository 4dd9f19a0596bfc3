"""A model as a folder, safely: a manifest, weights without code, checksums; written beside and renamed.

    model.json            format version, schema, tasks, members (networks, trees), blend, card (provenance, metrics)
    weights.safetensors   what the members and the encoders learned
    samples.json          made-up rows and their answers, for the self-test of whoever serves the model
    MODEL_CARD.md         the card in words
    checksums.json        SHA-256 of each of the files above

No torch here: the service's parent process and the client's machine read manifests too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_bento.errors import ArtifactError

FORMAT_VERSION = 1
MANIFEST, WEIGHTS, SAMPLES, CARD, CHECKSUMS = (
    "model.json", "weights.safetensors", "samples.json", "MODEL_CARD.md", "checksums.json",
)  # fmt: skip
BESIDE = ".part"
"""The suffix of what is being written beside its place, hidden."""


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` and their checksums as `folder`, which appears whole or not at all; an older one is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=BESIDE, dir=folder.parent))
    try:
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        for name, content in {**files, CHECKSUMS: to_json(sums)}.items():
            (fresh / name).write_bytes(content)
        fresh.chmod(0o755)
        _replace(folder, fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _replace(folder: Path, fresh: Path) -> None:
    """Rename `fresh` to `folder`; the folder that was there goes, or stays where the renaming fails."""
    heal(folder)
    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        if folder.exists():
            folder.rename(aside)
        fresh.rename(folder)
    finally:
        heal(folder)
    shutil.rmtree(aside, ignore_errors=True)


def heal(folder: Path) -> None:
    """Bring back a folder whose writer was killed between the two renames of its replacement."""
    aside = _aside(folder)
    if not folder.exists() and aside.exists():
        with contextlib.suppress(OSError):  # nobody may write here
            aside.rename(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if there is one, whole or not at all: what a kill leaves of it `sweep` removes."""
    shutil.rmtree(_aside(folder), ignore_errors=True)
    if folder.exists():
        gone = folder.with_name(f".{folder.name}.gone{BESIDE}")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def write_file(path: Path, *content: bytes | memoryview) -> None:
    """Write a file, its parts one after another, beside and rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=BESIDE, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove what killed writers left beside the places of their files in a folder; only while nobody writes there."""
    for path in folder.glob(f".*{BESIDE}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return model.json of a model folder after checking its format and every file's checksum.

    Raises ArtifactError: no model folder, a file is missing or changed, or the format is newer than this version reads.
    """
    heal(folder)
    sums = _read_json(folder, CHECKSUMS)
    if not isinstance(sums, dict) or not {MANIFEST, WEIGHTS, SAMPLES, CARD} <= sums.keys():
        raise ArtifactError(
            f"Model {folder}: {CHECKSUMS} is damaged; copy the whole folder again or package the run anew."
        )
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(
                f"Model {folder}: {name} is missing; copy the whole folder again or package the run anew."
            )
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ArtifactError(
                f"Model {folder}: {name} is damaged; copy the whole folder again or package the run anew."
            )
    manifest: dict[str, Any] = _read_json(folder, MANIFEST)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"Model {folder} has format version {version}; this mtl-bento reads {FORMAT_VERSION}. "
            "Install a newer mtl-bento, or search again with this one."
        )
    return manifest


def read_samples(folder: Path) -> dict[str, Any]:
    """Return the made-up rows of a model folder and the answers that the model gave them, `{"rows", "answers"}`."""
    samples: dict[str, Any] = _read_json(folder, SAMPLES)
    return samples


def to_json(data: Any) -> bytes:
    """Return data as readable JSON bytes."""
    return (json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def _read_json(folder: Path, name: str) -> Any:
    path = folder / name
    if not path.is_file():
        what = "is missing" if (folder / MANIFEST).is_file() or (folder / CHECKSUMS).is_file() else "is not there"
        raise ArtifactError(
            f"{folder} is no whole model folder: {name} {what}; `mtl-bento search` makes one in RUN/model."
        )
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        raise ArtifactError(
            f"Model {folder}: {name} is damaged; copy the whole folder again or package the run anew."
        ) from None
