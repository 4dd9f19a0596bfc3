"""Names, labels, the image's requirements, what lands in BentoML's stores, and where a SOURCE leads."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import bentoml
import pytest
import simple_di
import yaml
from bentoml._internal.configuration.containers import BentoMLContainer

from mtl_bento import artifact, sources
from mtl_bento.client import Client
from mtl_bento.errors import ArtifactError, MissingExtraError, SourceError, SpecError
from mtl_bento.image import requirements
from mtl_bento.model import Model
from mtl_bento.packaging import package, store_name

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """BentoML's stores in a folder of the test's own, also where an earlier test has opened others."""
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.delenv("MTL_BENTO_MODEL", raising=False)
    for name in ("bentoml_home", "bento_store_dir", "model_store_dir", "tmp_bento_store_dir"):
        monkeypatch.setattr(getattr(BentoMLContainer, name), "_cache", simple_di.sentinel)
    for name in ("bento_store", "model_store"):
        monkeypatch.setattr(getattr(BentoMLContainer, name), "_cache", simple_di.sentinel)
    return tmp_path / "bentoml"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("flights", "flights"),
        ("Flüge 2013", "fluge-2013"),
        ("census_v1.2", "census_v1.2"),
        ("--a  b--", "a-b"),
        ("分类 two", "two"),
        ("x" * 80, "x" * 63),
    ],
)
def test_a_name_becomes_one_that_bentoml_takes(given: str, name: str) -> None:
    assert store_name(given) == name
    assert bentoml.Tag(name).name == name


@pytest.mark.parametrize("given", ["分类", "", "---"])
def test_a_name_of_which_nothing_is_left_is_refused(given: str) -> None:
    with pytest.raises(SpecError, match=r"No name for a Bento is left of .* by --name"):
        store_name(given)


def test_the_name_of_the_alias_is_refused() -> None:
    with pytest.raises(SpecError, match="choose another by --name"):
        store_name("Model")


def test_model_and_bento_are_stored_under_one_name_and_version_with_their_labels(
    home: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTL_BENTO_MODEL", "another:model")  # must not be packaged instead
    packaged = package(model_folder, version="v1", labels={"team": "planning"})
    assert packaged.tag == packaged.bento_tag == "small:v1"
    labels = {
        "framework": "mtl-bento",
        "run": "small",
        "spec_sha256": "0" * 12,
        "data_sha256": "1" * 12,
        "team": "planning",
    }
    assert bentoml.models.get("small:v1").info.labels == labels
    bento = bentoml.bentos.get("small:v1")
    assert bento.info.labels == labels
    assert [(str(model.tag), model.alias) for model in bento.info.models] == [("small:v1", "model")]
    assert bento.info.envs[0].name == "BENTOML_DO_NOT_TRACK"
    assert "# small" in bento.doc

    source = Path(bento.path) / "src"
    assert {path.name for path in source.iterdir()} == {"mtl_bento", "bentofile.yaml"}
    assert not list(source.rglob("__pycache__"))
    pinned = (Path(bento.path) / "env/python/requirements.txt").read_text()
    assert set(requirements()) <= set(pinned.split())
    assert "index-url" not in pinned
    assert "find-links" not in pinned
    dockerfile = (Path(bento.path) / "env/docker/Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.\d+-slim ", dockerfile, re.MULTILINE)
    assert "build-essential" not in dockerfile
    # Nothing of the build is left in the process.
    assert BentoMLContainer.model_aliases.get() == {}


def test_a_packaged_model_is_found_by_its_tag_and_answers_as_its_folder(
    home: Path, model_folder: Path, table: Any
) -> None:
    tag = package(model_folder, name="found").tag
    assert sources.load(tag).predict(table).equals(Model.load(model_folder).predict(table))
    assert sources.model_folder("found") == sources.model_folder("found:latest")
    with pytest.raises(SourceError, match=r"no packaged model 'fount'; did you mean 'found'\?"):
        sources.load("fount")
    with bentoml.models.create("foreign"):
        pass
    with pytest.raises(SourceError, match="is not one of mtl-bento"):
        sources.load("foreign")


def test_the_served_model_is_the_most_explicitly_chosen(
    home: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match="run `make demo` for an example, or `mtl-bento package RUN`"):
        sources.served_model(None)
    for version in ("v2", "v1"):  # v1 is the newest
        with bentoml.models.create(f"small:{version}", labels={"framework": "mtl-bento"}) as stored:
            shutil.copytree(model_folder, stored.path, dirs_exist_ok=True)
    with bentoml.models.create("foreign:v1"):
        pass
    assert sources.served_model(None).name == "small:v1"

    # A Bento without the alias: the first model in its bento.yaml.
    (tmp_path / "bento/src").mkdir(parents=True)
    pinned = {"entry_service": "small", "models": [], "services": [{"name": "small", "models": [{"tag": "small:v2"}]}]}
    (tmp_path / "bento/bento.yaml").write_text(yaml.safe_dump(pinned))
    monkeypatch.chdir(tmp_path / "bento/src")
    assert sources.served_model(None).name == "small:v2"

    monkeypatch.setattr(BentoMLContainer.model_aliases, "_override", {"model": "small:v1"})
    assert sources.served_model(None).name == "small:v1"

    monkeypatch.setenv("MTL_BENTO_MODEL", str(model_folder))
    folder = sources.served_model(None)
    assert (folder.folder, folder.name, folder.chosen_by) == (model_folder, "small", "MTL_BENTO_MODEL")

    assert sources.served_model("small:v2").name == "small:v2"
    with pytest.raises(SourceError, match="no packaged model 'small:v3'"):
        sources.served_model("small:v3")


def test_a_run_folder_is_packaged_under_the_runs_name(home: Path, model_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "Flights 2013"
    shutil.copytree(model_folder, run / "model")
    assert package(run, version="1").tag == "flights-2013:1"
    assert package(run / "model", version="2").tag == "flights-2013:2"


def test_a_version_that_exists_is_refused_and_stays_as_it_is(home: Path, model_folder: Path) -> None:
    with bentoml.models.create("small:v1"):
        pass
    created = bentoml.models.get("small:v1").info.creation_time
    with pytest.raises(
        SpecError, match=r"small:v1 exists already; choose another --version, or `bentoml models delete"
    ):
        package(model_folder, version="v1")
    assert bentoml.models.get("small:v1").info.creation_time == created


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "V 1"}, "Version 'V 1' cannot be used"),
        ({"labels": {"a b": "c"}}, "Label a b=c cannot be used"),
        ({"labels": {"a": "x" * 64}}, "Label a=x* cannot be used"),
        ({"labels": {"framework": "mine"}}, "Label framework=mine cannot be used"),
    ],
)
def test_what_kubernetes_or_bentoml_do_not_take_is_refused(
    home: Path, model_folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        package(model_folder, **options)
    assert bentoml.models.list() == []


def test_a_trial_is_packaged_from_what_the_search_makes_of_it(
    home: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Search:
        @staticmethod
        def trial_model(run: Path, trial: str) -> Model:
            assert (run.name, trial) == ("run", "7")
            return Model.load(model_folder)

    (tmp_path / "run").mkdir()
    monkeypatch.setattr("mtl_bento.plugins.load", lambda _: Search)
    assert package(tmp_path / "run", trial="7", version="7").tag == "run:7"
    monkeypatch.setattr("mtl_bento.plugins.load", lambda _: object())
    with pytest.raises(MissingExtraError, match=r"pip install --upgrade 'mtl-bento\[search\]'"):
        package(tmp_path / "run", trial="best")


def test_a_damaged_model_is_not_packaged(home: Path, model_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights = bytearray((broken / artifact.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (broken / artifact.WEIGHTS).write_bytes(weights)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is damaged"):
        package(broken)
    assert bentoml.models.list() == []


def with_other_answers(folder: Path, to: Path) -> Path:
    """A model folder whose samples expect another number than the model answers; its checksums are right."""
    files = {name: (folder / name).read_bytes() for name in (artifact.MANIFEST, artifact.WEIGHTS, artifact.CARD)}
    samples = json.loads((folder / artifact.SAMPLES).read_bytes())
    samples["answers"][3]["hours.per week"]["value"] += 0.01
    artifact.write_folder(to, {**files, artifact.SAMPLES: artifact.to_json(samples)})
    return to


def test_a_model_that_answers_otherwise_than_when_it_was_made_is_not_packaged(
    home: Path, model_folder: Path, tmp_path: Path
) -> None:
    # The tolerance is 1e-5 of (about 40 + a spread of about 8): 0.01 is twenty times that.
    with pytest.raises(ArtifactError, match=r"self-test .*\(row 3, target 'hours\.per week': value is"):
        package(with_other_answers(model_folder, tmp_path / "other"))
    assert bentoml.models.list() == []


def test_a_failed_build_leaves_no_model_behind(home: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(bentoml.bentos, "build", fail)
    with pytest.raises(OSError, match="disk full"):
        package(model_folder)
    assert bentoml.models.list() == []


def test_a_source_is_a_folder_a_run_a_tag_or_an_address(home: Path, model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "runs/flights/model")
    assert sources.model_folder(tmp_path / "runs/flights") == tmp_path / "runs/flights/model"
    assert isinstance(sources.open_source("http://localhost:3000"), Client)
    assert isinstance(sources.open_source(model_folder), Model)
    with pytest.raises(SourceError, match=r"holds no model: .* It holds runs: flights\."):
        sources.open_source(tmp_path / "runs")
    with pytest.raises(SourceError, match=r"did you mean '.*/runs/flights'\?"):
        sources.open_source(tmp_path / "runs/flight")
    (tmp_path / "t.csv").write_text("a\n1\n")
    with pytest.raises(SourceError, match="is a file; give a model folder"):
        sources.open_source(tmp_path / "t.csv")
    with pytest.raises(SourceError, match=r"is a service, not a model; ask it by mtl_bento\.Client"):
        sources.load("http://localhost:3000")
