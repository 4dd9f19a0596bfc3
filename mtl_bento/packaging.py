"""Packaging: a model folder becomes a model and a Bento of one name and version in BentoML's stores.

The Bento holds this package, the model it is pinned to and the list of what to install; nothing of the search. Before
anything is stored, the model answers its own samples as a service would, and the answers are compared.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtl_bento
from mtl_bento import artifact, plugins
from mtl_bento.errors import MissingExtraError, SourceError, SpecError
from mtl_bento.sources import ALIAS, FRAMEWORK, STUDENT, VARIABLE, model_folder, own_name, valid_tag_part

LABEL = re.compile(r"[A-Za-z0-9](?:[-._A-Za-z0-9]{0,61}[A-Za-z0-9])?")
"""What Kubernetes takes as a label's key (without a prefix) or value."""


@dataclass(frozen=True)
class Packaged:
    """What `package` stored."""

    tag: str
    """The model's tag in BentoML's model store."""
    bento_tag: str
    """The Bento's, which is the same."""


def package(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    version: str | None = None,
    labels: Mapping[str, str] | None = None,
    trial: str | None = None,
    student: bool = False,
) -> Packaged:
    """Store a model and a Bento that serves it.

    Args:
        source: a run folder or a model folder.
        name: what model and Bento are called; the run's name where not given.
        version: their version; BentoML makes one up where not given.
        labels: further labels of both, beside framework, framework_version, run, spec_sha256 and data_sha256.
        trial: the number of a trial of the run, or "best", to package instead of the run's model.
        student: whether to package the run's student instead, which is called after the run, with `-student`.

    Raises:
        SourceError, ArtifactError: there is no whole model in the folder, or it answers otherwise than it should.
        SpecError: name, version or labels cannot be used, the version exists already, or both a trial and the student
            are asked for.
    """
    if student and trial is not None:
        raise SpecError("A trial and the student are two models; package one at a time: --trial or --student.")
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
    with _chosen(Path(source), trial, student=student) as folder:
        manifest = artifact.read_manifest(folder)
        called = store_name(name if name is not None else own_name(Path(source) if trial else folder))
        tag = called if version is None else f"{called}:{_version(version)}"
        every_label = {**_own_labels(manifest["card"]), **_checked_labels(labels or {})}
        _check_new(tag)
        _accept(folder)
        return _store(folder, tag, every_label)


def store_name(text: str) -> str:
    """Return a name that BentoML takes: lower case, accents dropped, anything but letters, digits, `.`, `_` as `-`.

    Raises SpecError where nothing is left of it, or it is the alias that Bentos call their model by.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9._]+", "-", plain)[:63].strip("-._")
    if not name:
        raise SpecError(f"No name for a Bento is left of {text!r}; choose one of a-z, 0-9, '.', '_' and '-' by --name.")
    if name == ALIAS:
        raise SpecError(f"{ALIAS!r} is how Bentos call the model that they are pinned to; choose another by --name.")
    return name


@contextmanager
def _chosen(source: Path, trial: str | None, *, student: bool) -> Iterator[Path]:
    """Yield the model folder to package; one made for a trial is gone afterwards."""
    if not source.is_dir():
        raise SourceError(f"There is no folder {str(source)!r}; give a run folder (RUN) or a model folder.")
    if student:
        artifact.heal(source / STUDENT)
        if not (source / STUDENT).is_dir():
            raise SourceError(f"{source} has no student; run its search again with --student, which trains one.")
        yield source / STUDENT
        return
    if trial is None:
        yield model_folder(source)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        _trial_model(source, trial).save(folder)
        yield folder


def _trial_model(run: Path, trial: str) -> Any:
    """Return the model of one trial of a run: what the search's `trial_model(run, trial)` makes of its checkpoint."""
    make = getattr(plugins.load("search"), "trial_model", None)
    if make is None:
        raise MissingExtraError("--trial needs a newer search: pip install --upgrade 'mtl-bento[search]'")
    return make(run, trial)


def _version(version: str) -> str:
    if not valid_tag_part(version):
        raise SpecError(
            f"Version {version!r} cannot be used; take a-z, 0-9, '.', '_' and '-', beginning and ending with a letter "
            "or digit, 63 characters at most."
        )
    return version


def _own_labels(card: Mapping[str, Any]) -> dict[str, str]:
    ours = {
        "framework": FRAMEWORK,
        "framework_version": str(card.get("framework_version", "")),
        "run": str(card.get("run", "")),
        "spec_sha256": str(card.get("spec_sha256", ""))[:12],
        "data_sha256": str(card.get("data_sha256", ""))[:12],
    }
    # A run may be called anything; Kubernetes and BentoCloud take only some characters in a label.
    safe = {key: re.sub(r"[^-._A-Za-z0-9]+", "-", value)[:63].strip("-._") for key, value in ours.items()}
    return {key: value for key, value in safe.items() if value}


def _checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if key == "framework" or not (LABEL.fullmatch(key) and LABEL.fullmatch(value)):
            raise SpecError(
                f"Label {key}={value} cannot be used; keys (but not 'framework') and values take letters, digits, "
                "'.', '_' and '-', 63 characters at most."
            )
    return dict(labels)


def _check_new(tag: str) -> None:
    import bentoml  # a second to import: not before the cheap checks
    from bentoml.exceptions import NotFound

    if ":" not in tag:
        return
    for get, command in ((bentoml.models.get, "models delete"), (bentoml.bentos.get, "delete")):
        try:
            get(tag)
        except NotFound:
            continue
        raise SpecError(f"{tag} exists already; choose another --version, or `bentoml {command} {tag}` first.")


def _accept(folder: Path) -> None:
    """Answer the model's samples the way the service does; raises ArtifactError where an answer differs."""
    from mtl_bento.service import Worker  # brings torch and BentoML

    Worker(folder).self_test()


def _store(folder: Path, tag: str, labels: dict[str, str]) -> Packaged:
    import bentoml

    with bentoml.models.create(tag, labels=labels) as stored:
        shutil.copytree(folder, stored.path, dirs_exist_ok=True)
    try:
        bento = _build(stored.tag)
    except BaseException:
        bentoml.models.delete(stored.tag)  # nothing written half
        raise
    return Packaged(str(stored.tag), str(bento.tag))


def _build(tag: Any) -> Any:
    """Return the Bento of a stored model, built from this package wherever it is installed."""
    import bentoml
    from bentoml._internal.configuration.containers import BentoMLContainer

    here = Path(mtl_bento.__file__).parent
    with tempfile.TemporaryDirectory() as context, _without_variable():
        shutil.copytree(here, Path(context) / here.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        try:
            return bentoml.bentos.build(
                "mtl_bento.service:MultiTaskService",
                name=tag.name,
                version=tag.version,
                build_ctx=context,
                include=[f"/{here.name}/"],
                models=[{"tag": str(tag), "alias": ALIAS}],
            )
        finally:
            BentoMLContainer.model_aliases.reset()  # BentoML leaves them set for the whole process


@contextmanager
def _without_variable() -> Iterator[None]:
    """Take MTL_BENTO_MODEL away meanwhile: it would name another model than the one being packaged."""
    held = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if held is not None:
            os.environ[VARIABLE] = held
