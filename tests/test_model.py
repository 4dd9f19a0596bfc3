"""Models: prediction in the caller's kind of frame, the blend, saving and loading."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from small import make_dataset, make_table, network_spec

from mtl_bento import artifact, wire
from mtl_bento.columns.vector import VectorColumn
from mtl_bento.dataset import Dataset
from mtl_bento.errors import ArtifactError, SchemaError, SpecError, TableError, UnknownKindError
from mtl_bento.heads.dense import DenseHeadSpec
from mtl_bento.model import CHUNK, Model
from mtl_bento.network import Network, NetworkSpec, Trained
from mtl_bento.trunks.mlp import MLPSpec
from mtl_bento.trunks.tabm import TabMSpec

TARGETS = ["income", "分类", "hours.per week", "smoker"]


def untrained(dataset: Dataset, *networks: NetworkSpec) -> tuple[Trained, ...]:
    """Return members with their initial weights."""
    return tuple(
        Trained(spec, Network([spec], dataset.inputs, dataset.tasks, [seed]).member_state(0))
        for seed, spec in enumerate(networks)
    )


@pytest.fixture(scope="module")
def parts(table: pa.Table) -> tuple[Any, Dataset]:
    return make_dataset(table)


@pytest.fixture(scope="module")
def mixed(parts: tuple[Any, Dataset]) -> Model:
    """Return a model of members that cannot share one stack, and of one that nobody needs."""
    schema, dataset = parts
    deep = network_spec(dataset, MLPSpec(width=9, shared_depth=3))
    heads = {task.name: DenseHeadSpec(width=w) for task, w in zip(dataset.tasks, (0, 5, 0, 3), strict=True)}
    tabm = network_spec(dataset, TabMSpec(width=7, inner=3)).model_copy(update={"heads": heads})
    hidden = network_spec(dataset, MLPSpec(width=4, shared_depth=1), head1=6)
    members = untrained(dataset, deep, tabm, hidden, deep)
    blend = np.array([[0.5, 0.25, 0, 0.25], [0, 1, 0, 0], [0.2, 0.3, 0, 0.5], [0, 0, 0, 1.0]])
    return Model(schema, dataset.tasks, dataset.inputs, members, blend, {"name": "mixed"})


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(value, other[name]) for name, value in one.items())


# Prediction


def test_a_pandas_frame_comes_back_with_its_index_and_exactly_the_targets(model: Model, table: pa.Table) -> None:
    frame = table.to_pandas()
    frame.index = pd.Index([f"row {i}" for i in range(len(frame))], name="id")
    predicted = model.predict(frame)
    assert isinstance(predicted, pd.DataFrame)
    assert list(predicted.columns) == TARGETS
    assert predicted.index.equals(frame.index)
    assert predicted["smoker"].dtype == bool
    assert predicted["hours.per week"].dtype == np.float64
    assert set(predicted["income"]) == {">50K", "<=50K"}
    assert set(predicted["分类"]) <= {"低", "中", "高"}
    # Comparable with df[targets], and better than the commonest label (it was trained on these rows).
    assert (predicted["income"] == frame["income"]).mean() > 0.8


def test_polars_and_arrow_come_back_as_they_came(model: Model, table: pa.Table) -> None:
    arrow = model.predict(table)
    assert isinstance(arrow, pa.Table)
    assert arrow.column_names == TARGETS
    assert [str(kind) for kind in arrow.schema.types] == ["string", "string", "double", "bool"]
    polars = model.predict(pl.from_arrow(table))
    assert isinstance(polars, pl.DataFrame)
    assert polars.to_dict(as_series=False) == arrow.to_pydict()


def test_files_of_columns_travel_in_the_model_folder(
    model: Model, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bytes] = []
    monkeypatch.setattr(VectorColumn, "files", lambda self: {f"{self.name}.bin": b"words"})
    monkeypatch.setattr(
        VectorColumn, "find_files", lambda self, at: found.append((at / f"{self.name}.bin").read_bytes())
    )
    model.save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / artifact.CHECKSUMS).read_text()).keys() >= {"embedding.bin", artifact.MANIFEST}
    Model.load(tmp_path / "m")
    assert found == [b"words"]
    (tmp_path / "m" / "embedding.bin").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"embedding\.bin is damaged"):
        Model.load(tmp_path / "m")


def test_a_file_is_read(model: Model, table: pa.Table, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    predicted = model.predict(tmp_path / "rows.parquet")
    assert predicted.to_dict("list") == model.predict(table).to_pydict()


def test_full_output_adds_probabilities_beside_the_values(model: Model, table: pa.Table) -> None:
    full = model.predict(table.slice(0, 5), output="full")
    assert full.column_names == [
        "income", "income__proba__<=50K", "income__proba__>50K",
        "分类", "分类__proba__中", "分类__proba__低", "分类__proba__高",
        "hours.per week",
        "smoker", "smoker__proba__false", "smoker__proba__true",
    ]  # fmt: skip
    assert full.select(TARGETS) == model.predict(table.slice(0, 5))
    shares = np.stack([full[f"分类__proba__{level}"].to_numpy() for level in "中低高"])
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-6)


def test_an_unknown_output_is_refused(model: Model, table: pa.Table) -> None:
    with pytest.raises(SpecError, match=r"output 'all' is not known; allowed: 'labels', 'full'"):
        model.predict(table, output="all")


def test_probabilities_are_a_frame_a_task_with_a_column_per_class(model: Model, table: pa.Table) -> None:
    frame = table.to_pandas().iloc[10:20]
    probabilities = model.predict_proba(frame)
    assert {name: list(held.columns) for name, held in probabilities.items()} == {
        "income": ["<=50K", ">50K"],
        "分类": ["中", "低", "高"],
        "smoker": ["false", "true"],
    }
    assert all(held.index.equals(frame.index) for held in probabilities.values())
    likeliest = probabilities["income"].idxmax(axis=1)
    assert likeliest.tolist() == model.predict(frame)["income"].tolist()


def test_rows_are_what_the_service_answers(model: Model, table: pa.Table) -> None:
    rows = model.rows(table.slice(0, 3))
    full = model.predict(table.slice(0, 3), output="full").to_pylist()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    for row, flat in zip(rows, full, strict=True):
        assert list(row) == TARGETS
        assert row["income"]["value"] == flat["income"]
        assert row["income"]["probability"] == max(row["income"]["probabilities"].values())
        assert row["income"]["probabilities"][">50K"] == pytest.approx(flat["income__proba__>50K"], abs=1e-7)
        assert row["hours.per week"] == {"value": pytest.approx(flat["hours.per week"], rel=1e-6)}
        assert isinstance(row["smoker"]["value"], bool)


def test_targets_and_other_columns_are_ignored(model: Model, table: pa.Table) -> None:
    inputs = table.select(list(model.schema.names))
    extra = inputs.append_column("note", pa.array(["x"] * len(table)))
    assert equal(model.answers(extra), model.answers(table))
    assert equal(model.answers(inputs.select(inputs.column_names[::-1])), model.answers(table))


def test_a_missing_column_counts_as_missing_cells(model: Model, table: pa.Table) -> None:
    emptied = table.set_column(0, "age", pa.nulls(len(table), pa.float64()))
    assert equal(model.answers(table.drop_columns(["age"])), model.answers(emptied))
    assert not equal(model.answers(emptied), model.answers(table))


def test_missing_and_unseen_values_are_answered(model: Model, table: pa.Table) -> None:
    odd = {
        "age": pa.array([None, 1e30, -1e30, float("nan")], pa.float64()),
        "вес, кг": pa.array([None, 0.0, 1e-30, 5.0]),
        "state": pa.array([None, "", "ZZ", "São Paulo"]),
        "children": pa.array([None, 99, -1, 2]),
        "when": pa.array([None, "1900-01-01", "2100-12-31T23:59:59", "2024-02-29"]),
        "embedding": pa.array([None, [1e30, -1e30, 0.0], [None, None, None], [0.0, 0.0, 0.0]], pa.list_(pa.float64())),
    }
    answers = model.answers(pa.table(odd))
    assert all(np.isfinite(answer).all() for answer in answers.values())
    assert len(model.rows(pa.table(odd))) == 4


def test_a_table_without_any_input_is_refused(model: Model, table: pa.Table) -> None:
    with pytest.raises(SchemaError, match="The table has none of the model's inputs"):
        model.predict(table.select(TARGETS))


def test_a_cell_of_another_kind_is_named(model: Model, table: pa.Table) -> None:
    old = table.set_column(0, "age", pa.array(["old"] + ["30"] * (len(table) - 1)))
    with pytest.raises(SchemaError, match="Column 'age', row 0: 'old' is not a number"):
        model.predict(old)


def test_no_rows_give_no_rows(model: Model, table: pa.Table) -> None:
    empty = table.slice(0, 0)
    assert {name: answer.shape for name, answer in model.answers(empty).items()} == {
        "income": (0, 1), "分类": (0, 3), "hours.per week": (0, 1), "smoker": (0, 1),
    }  # fmt: skip
    assert model.rows(empty) == []
    assert model.table(empty, output="full").schema == model.table(table, output="full").schema
    with pytest.raises(TableError, match="there is no row in it"):
        model.predict(empty)


def test_ten_thousand_rows_answer_as_each_row_alone(model: Model) -> None:
    many = make_table(10_000, seed=4)
    whole = model.answers(many)
    places = [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, 9_999, *range(17, 10_000, 101)]
    for place in places:
        for name, answer in model.answers(many.slice(place, 1)).items():
            np.testing.assert_allclose(answer[0], whole[name][place], atol=1e-5)
    cut = [model.answers(many.slice(start, 1_237)) for start in range(0, 10_000, 1_237)]
    for name, answer in whole.items():
        np.testing.assert_allclose(np.concatenate([part[name] for part in cut]), answer, atol=1e-5)


# The blend


def test_answers_are_each_tasks_own_blend_of_the_members(mixed: Model, table: pa.Table) -> None:
    answers = mixed.answers(table)
    alone = [
        dataclasses.replace(mixed, members=(member,), blend=np.ones((4, 1))).answers(table) for member in mixed.members
    ]
    for shares, (name, answer) in zip(mixed.blend, answers.items(), strict=True):
        expected = sum(share * held[name] for share, held in zip(shares, alone, strict=True))
        np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_a_task_of_one_member_is_answered_by_it_alone(model: Model, table: pa.Table) -> None:
    for task, k in (("income", 0), ("hours.per week", 1)):  # the fixture's rows [1, 0] and [0, 1]
        alone = dataclasses.replace(model, members=(model.members[k],), blend=np.ones((4, 1)))
        np.testing.assert_allclose(model.answers(table)[task], alone.answers(table)[task], atol=1e-6)


def test_a_member_that_no_task_needs_is_neither_run_nor_saved(mixed: Model, tmp_path: Path) -> None:
    mixed.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    assert len(loaded.members) == 3
    assert loaded.n_parameters == mixed.n_parameters == sum(mixed.members[k].n_parameters for k in (0, 1, 3))
    np.testing.assert_allclose(loaded.blend.sum(1), 1)


# Saving and loading


@pytest.mark.parametrize("name", ["model", "mixed"])
def test_a_loaded_model_is_the_same_model(
    name: str, request: pytest.FixtureRequest, table: pa.Table, tmp_path: Path
) -> None:
    saved: Model = request.getfixturevalue(name)
    saved.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    assert loaded.schema == saved.schema
    assert [task.spec for task in loaded.tasks] == [task.spec for task in saved.tasks]
    assert loaded.card == saved.card
    assert equal(loaded.answers(table), saved.answers(table))
    assert loaded.predict(table, output="full") == saved.predict(table, output="full")


def test_a_model_of_folders_given_as_text_is_saved_and_loaded(model: Model, tmp_path: Path) -> None:
    model.save(str(tmp_path / "m"))  # type: ignore[arg-type]
    assert Model.load(str(tmp_path / "m")).targets == TARGETS  # type: ignore[arg-type]


def test_the_same_model_is_saved_as_the_same_bytes(model: Model, model_folder: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "a")
    Model.load(tmp_path / "a").save(tmp_path / "b")
    for path in model_folder.iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_samples_are_made_up_rows_and_what_the_model_answers(model: Model, model_folder: Path) -> None:
    samples = artifact.read_samples(model_folder)
    assert samples["rows"][-1] == {}
    assert len(samples["rows"]) == len(samples["answers"]) == 16
    assert set(samples["rows"][0]) == set(model.schema.names)
    answers = Model.load(model_folder).rows(wire.rows_to_table(samples["rows"], model.schema))
    assert answers == samples["answers"]


def test_no_sample_is_a_training_row(model_folder: Path, table: pa.Table) -> None:
    names = ["age", "вес, кг", "embedding"]
    real = {json.dumps([row[name] for name in names]) for row in table.to_pylist()}
    drawn = {json.dumps([row.get(name) for name in names]) for row in artifact.read_samples(model_folder)["rows"]}
    assert not real & drawn


def test_the_card_says_what_is_predicted_how_well_and_from_what(model: Model) -> None:
    scored = dataclasses.replace(model, card={**model.card, "metrics": {"income": {"roc_auc": 0.91234}}})
    text = scored.card_text()
    assert text.startswith("# small\n")
    assert "| income | binary | roc_auc | 0.9123 |" in text
    assert "| 分类 | multiclass | accuracy | - |" in text
    assert "2 networks, " in text
    assert "trained on 480 rows" in text
    assert "age (numeric)" in text


def test_the_card_says_what_the_test_said_against_each_opponent(model: Model) -> None:
    held = {"value": 0.9, "difference": 0.012, "lower": 0.004, "upper": 0.02, "verdict": "better"}
    trees = {
        "value": 0.95,
        "difference": -0.038,
        "lower": None,
        "upper": None,
        "verdict": "inconclusive",
        "smallest": 0.04,
    }
    verdicts = {
        "income": {"single_task": held, "trees": trees},
        "分类": {"single_task": held | {"verdict": "same"}},
        "smoker": {"single_task": held | {"difference": None, "verdict": "not measurable"}},
    }
    card = {**model.card, "metrics": {"income": {"roc_auc": 0.912}}, "verdicts": verdicts}
    text = dataclasses.replace(model, card=card).card_text()
    assert "| target | kind | metric | test | against single-task | against trees |\n|---|---|---|---|---|---|" in text
    assert (
        "| income | binary | roc_auc | 0.9120 | better: +0.0120 (+0.0040 to +0.0200) to its 0.9000 "
        "| inconclusive, could show 0.0400: -0.0380 to its 0.9500 |"
    ) in text
    assert "| 分类 | multiclass | accuracy | - | same | - |" in text
    assert "| hours.per week | regression | r2 | - | - | - |" in text
    assert "| smoker | binary | roc_auc | - | not measurable | - |" in text
    assert "against" not in model.card_text()


def test_nothing_in_the_folder_is_or_needs_a_pickle(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, table: pa.Table
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was read")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    Model.load(model_folder).answers(table)
    names = {"model.json", "weights.safetensors", "samples.json", "MODEL_CARD.md", "checksums.json"}
    assert {path.name for path in model_folder.iterdir()} == names
    weights = (model_folder / "weights.safetensors").read_bytes()
    json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])  # safetensors: a length, then JSON


# Damage


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    model.save(tmp_path / "m")
    return tmp_path / "m"


def edit(folder: Path, change: Any) -> None:
    """Change the manifest with `change(manifest)` and sign it anew."""
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    change(manifest)
    write(folder, artifact.MANIFEST, json.dumps(manifest).encode())


def write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    sums = json.loads((folder / artifact.CHECKSUMS).read_text())
    (folder / artifact.CHECKSUMS).write_text(json.dumps(sums | {name: hashlib.sha256(content).hexdigest()}))


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "samples.json", "MODEL_CARD.md"])
def test_a_flipped_byte_is_an_artifact_error(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 0x10
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is damaged; copy the whole folder again or package the run anew"):
        Model.load(folder)


def test_weights_that_lack_a_tensor_are_an_artifact_error(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / artifact.WEIGHTS)
    del tensors["members.0.heads.0.linear.weight"]
    write(folder, artifact.WEIGHTS, safetensors.torch.save(tensors))
    with pytest.raises(ArtifactError, match=r"does not fit this version of mtl-bento .*package the run anew"):
        Model.load(folder)


def test_weights_of_another_size_are_an_artifact_error(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / artifact.WEIGHTS)
    tensors["members.0.heads.0.linear.weight"] = torch.zeros(2, 3)
    write(folder, artifact.WEIGHTS, safetensors.torch.save(tensors))
    with pytest.raises(ArtifactError, match=r"does not fit this version of mtl-bento"):
        Model.load(folder)


def test_a_manifest_without_a_part_is_an_artifact_error(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.pop("members"))
    with pytest.raises(ArtifactError, match=r"does not fit this version of mtl-bento \('members'\)"):
        Model.load(folder)


def test_a_kind_from_a_package_that_is_not_installed_is_named(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["members"][0]["trunk"].update(kind="gated"))
    with pytest.raises(UnknownKindError, match="There is no trunk 'gated'"):
        Model.load(folder)


def test_the_package_that_brings_a_missing_kind_is_named(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["members"][0]["trunk"].update(kind="gated")
        manifest["card"]["requires"] = ["my-trunks==0.1", "torch==2"]

    edit(folder, change)
    with pytest.raises(
        ArtifactError, match=r"needs my-trunks==0\.1, not installed here; install it \(There is no trunk 'gated'\)\.$"
    ):
        Model.load(folder)


def test_a_newer_format_is_an_artifact_error(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(format_version=2))
    with pytest.raises(ArtifactError, match="has format version 2; this mtl-bento reads 1"):
        Model.load(folder)


def test_a_save_that_fails_leaves_the_old_model(
    folder: Path, mixed: Model, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Model.load(folder).answers(table)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        mixed.save(folder)
    monkeypatch.undo()
    assert equal(Model.load(folder).answers(table), before)
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
