"""Where a model comes from: a model folder, a run folder, a tag of BentoML's model store, or the address of a service.

Commands and Python functions that take a SOURCE come here, and so does the service for the model that it serves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from mtl_bento import artifact
from mtl_bento.errors import SourceError, listing, nearest

if TYPE_CHECKING:
    from mtl_bento.model import Model

FRAMEWORK = "mtl-bento"
"""The value of the label `framework` on our models in BentoML's store."""
ALIAS = "model"
"""BentoML's alias for the model that a Bento is pinned to."""
VARIABLE = "MTL_BENTO_MODEL"
"""The environment variable that names the model to serve: a tag or a folder."""
STUDENT = "student"
"""The folder of a run that holds its student."""
ALLOWED = "a model folder, a run folder, a tag such as flights:latest, or the http address of a service"


class Predictor(Protocol):
    """Whatever answers tables: a model of this process or a service far away."""

    def predict(self, data: Any, *, output: str = "labels") -> Any:
        """Return predictions in the caller's kind of frame."""


@dataclass(frozen=True)
class Served:
    """The model that a service serves, and why this one."""

    folder: Path
    name: str
    """Its tag in BentoML's store, or the name of its folder."""
    labels: Mapping[str, str]
    chosen_by: str
    """What chose it, in words for the log."""


def open_source(source: str | os.PathLike[str]) -> Predictor:
    """Return what answers tables for a SOURCE; raises SourceError for none, ArtifactError for a damaged one."""
    if is_address(source):
        from mtl_bento.client import Client  # not before it is needed: a client's machine may lack torch and BentoML

        return Client(str(source))
    return load(source)


def load(source: str | os.PathLike[str]) -> Model:
    """Return the model of a model folder, a run folder or a tag.

    Raises SourceError where there is none, ArtifactError where it is damaged or too new.
    """
    if is_address(source):
        raise SourceError(f"{source} is a service, not a model; ask it by mtl_bento.Client({str(source)!r}).")
    from mtl_bento.model import Model  # torch takes seconds

    return Model.load(model_folder(source))


def is_address(source: str | os.PathLike[str]) -> bool:
    """Return whether the source is the address of a service."""
    return str(source).startswith(("http://", "https://"))


def model_folder(source: str | os.PathLike[str]) -> Path:
    """Return the model folder of a model folder, a run folder or a tag; raises SourceError where there is none."""
    path = Path(source)
    for folder in (path, path / "model"):
        artifact.heal(folder)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        raise SourceError(f"{str(source)!r} is a file; give {ALLOWED}.")
    return Path(stored_model(str(source)).path)


def own_name(folder: Path) -> str:
    """Return what a model folder is called: by its run where it is the `model` or the `student` of one."""
    absolute = folder.resolve()
    run = absolute.parent.name
    return {"model": run, STUDENT: f"{run}-{STUDENT}"}.get(absolute.name, absolute.name)


def stored_model(tag: str) -> Any:
    """Return the model of BentoML's store with this tag; raises SourceError naming the nearest where there is none."""
    import bentoml  # a second to import; folders do without
    from bentoml.exceptions import BentoMLException

    try:
        stored = bentoml.models.get(tag)
    except (BentoMLException, ValueError):
        raise SourceError(
            f"There is no folder and no packaged model {tag!r}{_close(tag) or '.'} Give {ALLOWED}."
        ) from None
    if stored.info.labels.get("framework") != FRAMEWORK:
        raise SourceError(f"Model {stored.tag} is not one of mtl-bento; package one by `mtl-bento package RUN`.")
    return stored


def _close(source: str) -> str:
    """Return the nearest of the folders beside and of the packaged models, as `nearest` says it."""
    path = Path(source)
    folders = [str(item) for item in path.parent.iterdir() if item.is_dir()] if path.parent.is_dir() else []
    tags = [str(model.tag) for model in our_models()]
    return nearest(source, [*folders, *tags]) or nearest(source, sorted({tag.partition(":")[0] for tag in tags}))


def our_models() -> list[Any]:
    """Return our models of BentoML's store, the newest first."""
    import bentoml

    ours = [model for model in bentoml.models.list() if model.info.labels.get("framework") == FRAMEWORK]
    return sorted(ours, key=lambda model: model.info.creation_time, reverse=True)


def served_model(argument: str | None) -> Served:
    """Return the model to serve, the more explicit choice first.

    `argument` is the value of `--arg model=...`; then the variable MTL_BENTO_MODEL; then what the Bento that is being
    served is pinned to; then the newest packaged model. Raises SourceError where there is none.
    """
    if argument:
        return _explicit(argument, "--arg model")
    if variable := os.environ.get(VARIABLE):
        return _explicit(variable, VARIABLE)
    if pinned := _pinned():
        return _from_store(stored_model(pinned), "the one that this Bento is pinned to")
    if ours := our_models():
        return _from_store(ours[0], "the newest packaged one")
    raise SourceError(
        "There is no packaged model to serve; run `make demo` for an example, or `mtl-bento package RUN` for your own."
    )


def bento_manifest() -> dict[str, Any]:
    """Return bento.yaml of the Bento that is being loaded, empty where none is."""
    # BentoML makes the Bento's source folder the current one while it imports the service.
    here = Path.cwd()
    manifest = here.parent / "bento.yaml"
    if here.name != "src" or not manifest.is_file():
        return {}
    data: dict[str, Any] = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    return data


def _in_folder(path: Path) -> Path:
    for folder in (path, path / "model"):
        if (folder / artifact.MANIFEST).is_file() or (folder / artifact.CHECKSUMS).is_file():
            return folder
    inside = sorted(item.name for item in path.iterdir() if (item / "model" / artifact.MANIFEST).is_file())
    more = f" It holds runs: {listing(inside)}." if inside else ""
    raise SourceError(f"Folder {str(path)!r} holds no model: no model.json, no model/model.json.{more} Give {ALLOWED}.")


def _explicit(source: str, chosen_by: str) -> Served:
    if Path(source).is_dir():
        folder = _in_folder(Path(source)).resolve()
        return Served(folder, own_name(folder), {"framework": FRAMEWORK}, chosen_by)
    return _from_store(stored_model(source), chosen_by)


def _from_store(stored: Any, chosen_by: str) -> Served:
    return Served(Path(stored.path), str(stored.tag), dict(stored.info.labels), chosen_by)


def _pinned() -> str | None:
    """Return the tag that a Bento pins: by the alias, else the first of ours in its bento.yaml."""
    import bentoml
    from bentoml.exceptions import NotFound

    try:
        return str(bentoml.models.get(ALIAS).tag)
    except NotFound:
        pass
    manifest = bento_manifest()
    services = manifest.get("services", [])
    pinned = [*manifest.get("models", []), *(model for service in services for model in service.get("models", []))]
    return str(pinned[0]["tag"]) if pinned else None


def valid_tag_part(text: str) -> bool:
    """Return whether BentoML takes the text as a name or version: letters, digits, `.`, `_`, `-`, 63 at most."""
    return len(text) <= 63 and re.fullmatch(r"[a-z0-9](?:[-._a-z0-9]*[a-z0-9])?", text) is not None
