"""Members of a model that are forests, and offset networks, which stand on what forests say."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from small import Stump, make_dataset, make_forest, make_table, network_spec
from test_model import edit, equal, untrained, write
from test_service import ROOT, SPREADS, Server, post
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mtl_bento import artifact, wire
from mtl_bento.dataset import Dataset
from mtl_bento.encoders._base import has_positions
from mtl_bento.errors import ArtifactError, SpecError
from mtl_bento.forest import Forest
from mtl_bento.model import CHUNK, Model
from mtl_bento.network import Network, NetworkSpec, Trained
from mtl_bento.service import Worker
from mtl_bento.testing import check_stack, sample_dataset, sample_members
from mtl_bento.training import Cohort, Member, MemberSpec, Stack, TrainingSpec
from mtl_bento.trunks.attention import AttentionSpec
from mtl_bento.trunks.mlp import MLPSpec
from mtl_bento.trunks.tabm import TabMSpec
from mtl_bento_search import select

AGE, WEIGHT = 0, 1
"""Places of two numbers among the features of the small table, whose block of numbers comes first."""
STUMPS: dict[str, list[list[list[Stump]]]] = {
    "income": [
        [[(AGE, 40.0, -1.0, 1.5)], [(WEIGHT, 80.0, 0.25, -0.5)], [(AGE, 50.0, 0.0, 1.0)]],
        [[(AGE, 44.0, -0.75, 1.25)]],
    ],
    "分类": [[[(AGE, 35.0, -1.0, 0.5), (WEIGHT, 60.0, 2.0, 0.0), (WEIGHT, 90.0, 0.0, 1.0)]]],
    "hours.per week": [[[(AGE, 45.0, -0.5, 0.75)]], [[(AGE, 45.0, 0.25, 0.25)]]],
}
"""Two forests of a yes or no, one of three levels, two of a number; "smoker" has none."""
FORESTS = tuple(make_forest(task, stumps) for task, forests in STUMPS.items() for stumps in forests)
BLEND = np.array(
    [
        # plain, offset, wide; income twice, 分类, hours twice
        [0.25, 0.25, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0],  # a forest without a share, on which an offset network stands
        [0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.75, 0.25],
        [0.5, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
    ]
)


def offset(spec: NetworkSpec) -> NetworkSpec:
    return spec.model_copy(update={"offset": True})


@pytest.fixture(scope="module")
def parts(table: pa.Table) -> tuple[Any, Dataset]:
    return make_dataset(table)


@pytest.fixture(scope="module")
def networks(parts: tuple[Any, Dataset]) -> tuple[Trained, ...]:
    """Return a network, and two that stand on trees, of which no two share a stack."""
    _, dataset = parts
    mlp, tabm = (network_spec(dataset, trunk) for trunk in (MLPSpec(width=9, dropout=0.0), TabMSpec(width=7, inner=3)))
    return untrained(dataset, mlp, offset(mlp), offset(tabm))


@pytest.fixture(scope="module")
def forested(parts: tuple[Any, Dataset], networks: tuple[Trained, ...]) -> Model:
    """Return a model of networks, of forests, and of networks on top of forests."""
    schema, dataset = parts
    return Model(schema, dataset.tasks, dataset.inputs, (*networks, *FORESTS), BLEND, {"name": "forested"})


@pytest.fixture(scope="module")
def forested_folder(forested: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "forested"
    forested.save(folder)
    return folder


def margins_by_hand(table: pa.Table) -> dict[str, list[np.ndarray]]:
    """Return the margins [B, O] of each forest: the sum of its stumps."""
    cells = {AGE: "age", WEIGHT: "вес, кг"}
    numbers = {place: table[name].to_numpy().astype(np.float32) for place, name in cells.items()}

    def said(stump: Stump) -> np.ndarray:
        feature, threshold, low, high = stump
        return np.where(numbers[feature] > threshold, high, low)  # what is missing is not beyond it

    return {
        task: [sum(np.stack([said(stump) for stump in row], 1) for row in stumps) for stumps in forests]
        for task, forests in STUMPS.items()
    }


def beneath_by_hand(table: pa.Table) -> np.ndarray:
    """Return what offset networks stand on [B, sum of O]: the mean of each task's forests, 0 where there is none."""
    held = margins_by_hand(table)
    means = [np.mean(held[task], axis=0) if task in held else None for task in ("income", "分类", "hours.per week", "")]
    return np.concatenate([np.zeros((len(table), 1)) if mean is None else mean for mean in means], 1)


# Offset networks


def on_trees(dataset: Dataset, members: list[Member]) -> tuple[Dataset, list[Member]]:
    """Return a dataset with random margins, and members that stand on them."""
    widths = sum(task.n_outputs for task in dataset.tasks)
    margins = np.random.default_rng(5).normal(size=(len(dataset.blocks[0]), widths))
    specs = [member.spec.model_copy(update={"network": offset(member.spec.network)}) for member in members]
    return dataset.with_margins(margins), [
        dataclasses.replace(member, spec=spec) for member, spec in zip(members, specs, strict=True)
    ]


@pytest.mark.parametrize(
    "trunks",
    [
        [MLPSpec(width=8, shared_depth=2), MLPSpec(width=5, shared_depth=1), MLPSpec(width=6)],
        [TabMSpec(width=6, inner=3), TabMSpec(width=4, inner=3)],
    ],
)
def test_an_offset_member_of_a_stack_is_that_member_alone(trunks: list[Any]) -> None:
    dataset = sample_dataset()  # float64, two folds: members of one stack read the margins of other rows
    trunks = [trunk.model_copy(update={"dropout": 0.0}) for trunk in trunks]
    placed, members = on_trees(dataset, sample_members(dataset, trunks=trunks))
    check_stack(members, placed)


def silenced(network: Network) -> Network:
    """Return a network whose heads answer 0."""
    with torch.no_grad():
        for parameter in network.heads.parameters():
            parameter.zero_()
    return network


@pytest.mark.parametrize("positions", [False, True])
def test_the_loss_of_an_offset_network_whose_heads_say_nothing_is_that_of_the_trees(positions: bool) -> None:
    dataset = sample_dataset(positions=positions)
    trunk = AttentionSpec(width=8, head_size=4, dropout=0.0) if positions else TabMSpec(width=6, inner=3)
    placed, members = on_trees(dataset, sample_members(dataset, trunks=[trunk]))
    cohort = Cohort(Stack(tuple(members), 0), placed)
    silenced(cohort.network)
    rows = placed.splits[0].valid
    assert placed.margins is not None
    own = placed.margins[rows].split([task.n_outputs for task in placed.tasks], 1)
    for task, margins, targets, loss, unit in zip(
        placed.tasks, own, placed.targets, cohort.losses(placed)[0], placed.trivial, strict=True
    ):
        labels = targets[rows]
        # Of a task that answers by position, every position has the margins of its row.
        outputs = margins[:, None].expand(-1, cohort.network.length, -1) if task.positional else margins
        losses = task.answer_losses(task.activate(outputs[None, None])[0, 0], labels)
        known = task.known(labels)
        weights = torch.ones(len(rows)).double() if placed.weights is None else placed.weights[rows]
        expected = (losses[known] * weights[known]).sum() / weights[known].sum()
        torch.testing.assert_close(loss * unit, expected)


def test_networks_on_trees_share_no_stack_with_others(dataset: Dataset, small_network: NetworkSpec) -> None:
    assert offset(small_network).stack_key() != small_network.stack_key()
    assert NetworkSpec.model_validate(json.loads(offset(small_network).model_dump_json())) == offset(small_network)
    before = small_network.model_dump(mode="json")
    del before["offset"]  # as specs were written when there was none
    assert NetworkSpec.model_validate(before) == small_network


def test_an_offset_network_trains_on_nothing_without_margins(dataset: Dataset, small_network: NetworkSpec) -> None:
    spec = MemberSpec(network=offset(small_network), training=TrainingSpec(batch_size=8, steps=1))
    cohort = Cohort(Stack((Member(spec, seed=0),), 0), dataset)
    with pytest.raises(ValueError, match="offset networks answer on top of the margins of trees; give them"):
        cohort.advance(dataset, 1)
    with pytest.raises(ValueError, match=r"margins of trees have shape \(600, 5\), not \(600, 6\)"):
        dataset.with_margins(np.zeros((600, 5)))


# What trees read


def test_trees_read_encoded_blocks_side_by_side_with_nan_where_a_cell_is_missing(table: pa.Table) -> None:
    schema, dataset = make_dataset(table)
    encoded = schema.encode(table)
    features = dataset.inputs.features({n: torch.from_numpy(b) for n, b in encoded.items()}, dataset.blocks).numpy()
    categories = dataset.inputs.categorical()
    assert features.dtype == np.float32
    assert [block.shape[1] for block in encoded.values()] == [
        features.shape[1] - 5,
        2,
        3,
    ]  # numbers, categories, vector
    assert categories == [features.shape[1] - 5, features.shape[1] - 4]
    codes = np.where(encoded["categorical"] < 0, np.nan, encoded["categorical"])
    np.testing.assert_array_equal(features, np.concatenate([encoded["numeric"], codes, encoded["vector"]], 1))
    assert np.isnan(features).any(0)[[AGE, categories[0]]].tolist() == [True, True]  # "age" and "state" have holes


def test_trees_read_the_mean_of_real_positions() -> None:
    dataset = sample_dataset(positions=True)
    blocks = dict(zip(dataset.inputs.columns, dataset.blocks, strict=True))
    features = dataset.inputs.features(blocks, dataset.blocks)
    (name,) = [block for block in blocks if has_positions(block)]
    start = sum(block.shape[1] for block in list(blocks.values())[: list(blocks).index(name)])
    means = blocks[name].nanmean(1)
    assert means.isnan().any()  # some rows have no position
    torch.testing.assert_close(features[:, start : start + means.shape[1]], means.float(), equal_nan=True)


# What a model of them answers


def test_answers_blend_what_forests_networks_and_networks_on_forests_say(
    forested: Model, networks: tuple[Trained, ...], parts: tuple[Any, Dataset], table: pa.Table
) -> None:
    _, dataset = parts
    margins = margins_by_hand(table)
    # Another way to the same: the search's, where margins are a column of the dataset.
    placed = dataset.with_margins(beneath_by_hand(table))
    said = select.answers_by_member(networks, placed, np.arange(len(table)))
    for t, (task, answer) in enumerate(forested.answers(table).items()):
        expected = np.einsum("k,kbo->bo", BLEND[t, :3], said[t])
        own = [forest.task for forest in FORESTS]
        for k, held in zip([k for k, name in enumerate(own) if name == task], margins.get(task, []), strict=True):
            activated = dataset.tasks[t].activate(torch.from_numpy(held)[None, None])[0, 0].numpy()
            expected = expected + BLEND[t, 3 + k] * activated
        np.testing.assert_allclose(answer, expected, atol=2e-6, err_msg=task)


def test_a_model_of_forests_alone_answers_what_they_say(parts: tuple[Any, Dataset], table: pa.Table) -> None:
    schema, dataset = parts
    smoker = make_forest("smoker", [[(AGE, 40.0, -2.0, 2.0)]])
    chosen = (FORESTS[0], FORESTS[2], FORESTS[3], smoker)
    model = Model(schema, dataset.tasks, dataset.inputs, chosen, np.eye(4), {})
    answers = model.answers(table)
    logit = margins_by_hand(table)["income"][0][:, 0]
    np.testing.assert_allclose(answers["income"][:, 0], 1 / (1 + np.exp(-logit)), atol=1e-6)
    np.testing.assert_allclose(answers["hours.per week"], margins_by_hand(table)["hours.per week"][0], atol=1e-6)
    np.testing.assert_allclose(answers["分类"].sum(1), 1, atol=1e-6)
    assert model.n_parameters == 0
    assert "\n4 forests of 8 trees, trained on ? rows.\n" in model.card_text()  # 3 + 3 (one a level) + 1 + 1
    assert model.answers(table.slice(0, 0))["分类"].shape == (0, 3)


def test_a_forest_has_no_share_in_another_task(parts: tuple[Any, Dataset]) -> None:
    schema, dataset = parts
    blend = np.array([[1.0], [1.0], [0.0], [0.0]])
    with pytest.raises(
        SpecError,
        match=r"^The blend gives trees of target 'income' a share of 1 in target '分类', which they do not answer; "
        r"set it to 0\.$",
    ):
        Model(schema, dataset.tasks, dataset.inputs, (FORESTS[0],), blend)


def test_ten_thousand_rows_are_given_to_forests_in_chunks_and_answer_as_alone(
    forested: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    margins = Forest.margins

    def counted(self: Forest, features: Tensor) -> Tensor:
        sizes.append(len(features))
        return margins(self, features)

    many = make_table(10_000, seed=4)
    with monkeypatch.context() as patch:
        patch.setattr(Forest, "margins", counted)
        whole = forested.answers(many)
    assert max(sizes) == CHUNK
    assert sum(sizes) == len(FORESTS) * 10_000  # each forest once a row, though two networks stand on it
    for place in (0, CHUNK - 1, CHUNK, 9_999):
        for name, answer in forested.answers(many.slice(place, 1)).items():
            np.testing.assert_allclose(answer[0], whole[name][place], atol=1e-5)


class Recorder(TorchDispatchMode):
    """Notes the operations of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_model_without_forests_takes_no_operation_more(model: Model, table: pa.Table) -> None:
    blocks = {name: torch.from_numpy(block) for name, block in model.schema.encode(table.slice(0, 5)).items()}

    def as_before() -> Tensor:
        prepared = [block.unsqueeze(0) for block in model._networks[0].prepare(blocks)]
        answers = torch.cat([torch.cat(network.answers(prepared), -1) for network in model._networks])
        return (answers * model._shares).sum(0)

    model.answers(table.slice(0, 5))  # heads that answer together are laid out when they are first asked
    with torch.inference_mode(), Recorder() as expected:
        before = as_before()
    with torch.inference_mode(), Recorder() as found:
        now = model._blended(blocks)
    assert len(expected.names) > 10
    assert found.names == expected.names
    assert torch.equal(now, before)


# Saved and loaded


def test_a_model_with_forests_is_loaded_as_it_was_saved(
    forested: Model, forested_folder: Path, table: pa.Table, tmp_path: Path
) -> None:
    loaded = Model.load(forested_folder)
    assert equal(loaded.answers(table), forested.answers(table))
    assert [m.task for m in loaded.members if isinstance(m, Forest)] == [forest.task for forest in FORESTS]
    assert loaded.n_parameters == sum(m.n_parameters for m in forested.members if isinstance(m, Trained))
    manifest = artifact.read_manifest(forested_folder)
    assert manifest["members"][3] == {"forest": "income"}
    assert [m.get("offset") for m in manifest["members"][:3]] == [False, True, True]
    assert "\n3 networks, " in loaded.card_text()
    assert " parameters, 5 forests of 9 trees, trained on ? rows.\n" in loaded.card_text()  # 3 + 1 + 3 + 1 + 1
    loaded.save(tmp_path / "again")
    for path in forested_folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_forest_that_neither_the_blend_nor_an_offset_network_needs_is_not_saved(
    forested: Model, table: pa.Table, tmp_path: Path
) -> None:
    # The offset networks answer 分类 alone: what forests say of other tasks does not reach that.
    blend = np.zeros((4, 8))
    blend[0, 3] = blend[1, 1] = blend[2, 0] = blend[3, 0] = 1.0
    fewer = dataclasses.replace(forested, blend=blend)
    fewer.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    kept = [m.task if isinstance(m, Forest) else m.spec.offset for m in loaded.members]
    assert kept == [False, True, "income", "分类"]
    assert equal(loaded.answers(table), fewer.answers(table))
    every = np.array(blend)
    every[0, [1, 3]] = 0.5  # now one stands on the forests of income, of which one has no share
    more = dataclasses.replace(forested, blend=every)
    assert more.card_text().count("3 forests of 7 trees") == 1
    np.testing.assert_allclose(more.answers(table)["分类"], fewer.answers(table)["分类"], atol=1e-6)


def test_a_model_folder_from_before_there_were_forests_is_loaded(model: Model, table: pa.Table, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    edit(tmp_path / "m", lambda manifest: [member.pop("offset") for member in manifest["members"]])
    assert equal(Model.load(tmp_path / "m").answers(table), model.answers(table))


@pytest.mark.parametrize("bias", [None, torch.zeros(2)])
def test_a_forest_that_lacks_a_tensor_or_answers_another_task_is_an_artifact_error(
    forested_folder: Path, tmp_path: Path, bias: Tensor | None
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(forested_folder, folder)
    tensors = safetensors.torch.load_file(folder / artifact.WEIGHTS)
    del tensors["members.3.bias"]
    given = {} if bias is None else {"members.3.bias": bias}
    write(folder, artifact.WEIGHTS, safetensors.torch.save(tensors | given))
    with pytest.raises(ArtifactError, match=r"does not fit this version of mtl-bento .*package the run anew"):
        Model.load(folder)


# Served


def test_the_worker_answers_with_forests_what_the_model_does(
    forested: Model, forested_folder: Path, table: pa.Table
) -> None:
    worker = Worker(forested_folder)
    worker.self_test()
    rows = [{"age": 39.5, "вес, кг": 71.0, "state": "CA"}, {}, {"age": None, "embedding": [0.1, 0.2, 0.3]}]
    answers = worker.answers(wire.Reader(worker.schema).cells({"rows": rows}))
    assert json.loads(json.dumps(answers)) == forested.rows(wire.rows_to_table(rows, forested.schema))


WITHOUT_LIGHTGBM = """
import sys
from pathlib import Path
sys.modules["lightgbm"] = None  # importing it raises ImportError
from mtl_bento.service import Worker
worker = Worker(Path(sys.argv[1]))
worker.self_test()
print("answered", "mtl_bento_search" in sys.modules)
"""


def test_a_model_with_forests_answers_where_lightgbm_is_not_installed(forested_folder: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_LIGHTGBM, str(forested_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("answered False\n", 0), done.stderr


@pytest.mark.service
def test_bentoml_serves_a_model_with_forests_without_lightgbm(
    forested: Model, forested_folder: Path, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "lightgbm.py").write_text("raise ImportError('not installed')")
    path = os.pathsep.join([str(tmp_path / "absent"), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    rows = wire.table_to_rows(table.slice(0, 40), forested.schema)
    server = Server("--arg", f"model={forested_folder}", home=tmp_path, cwd=ROOT)
    try:
        server.wait(200)
        answers = post(server, json.dumps({"rows": rows}).encode()).json()
    finally:
        server.stop()
    expected = forested.rows(wire.rows_to_table(rows, forested.schema))
    assert wire.disagreement(answers, expected, SPREADS) is None
