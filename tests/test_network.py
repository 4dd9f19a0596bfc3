"""Networks: encoders, trunk, heads; parts, members' states, and the flat view of the optimiser."""

from __future__ import annotations

import json
import pickle
from typing import Any, Literal

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from mtl_bento.columns.categorical import CategoricalColumn
from mtl_bento.columns.numeric import NumericColumn
from mtl_bento.columns.text import TextColumn
from mtl_bento.dataset import Dataset
from mtl_bento.heads.dense import DenseHeadSpec
from mtl_bento.network import Flat, Inputs, Network, NetworkSpec, Trained, stacks
from mtl_bento.samples import BLOCK, LENGTH, sample_rows
from mtl_bento.schema import Schema
from mtl_bento.testing import sample_dataset, sample_members
from mtl_bento.trunks._base import TRUNKS, Trunk, TrunkSpec
from mtl_bento.trunks.mlp import MLPSpec
from mtl_bento.trunks.tabm import TabMSpec


class HalvesSpec(TrunkSpec):
    kind: Literal["test_halves"] = "test_halves"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return sample_dataset(dtype=torch.float32)


def specs(dataset: Dataset, **given: Any) -> list[NetworkSpec]:
    return [member.spec.network for member in sample_members(dataset, **given)]


def build(dataset: Dataset, networks: list[NetworkSpec]) -> Network:
    return Network(networks, dataset.inputs, dataset.tasks, list(range(len(networks))))


MIXED = {
    "trunks": [MLPSpec(width=8, shared_depth=3), MLPSpec(width=5, shared_depth=1)],
    "heads": [DenseHeadSpec(width=w) for w in (0, 6)],
}


def test_outputs_are_a_tensor_a_task(dataset: Dataset) -> None:
    network = build(dataset, specs(dataset, trunks=[TabMSpec(width=8, inner=3)] * 2))
    outputs = network([block[None, :7] for block in dataset.blocks])
    assert [tuple(out.shape) for out in outputs] == [(2, 3, 7, 1), (2, 3, 7, 3), (2, 3, 7, 1)]


def test_answers_average_inner_networks_as_probabilities_and_numbers(dataset: Dataset) -> None:
    network = build(dataset, specs(dataset, trunks=[TabMSpec(width=8, inner=3)])).eval()
    blocks = [block[None, :7] for block in dataset.blocks]
    outputs, answers = network(blocks), network.answers(blocks)
    torch.testing.assert_close(answers[0], outputs[0].sigmoid().mean(1))
    torch.testing.assert_close(answers[1], outputs[1].softmax(-1).mean(1))
    torch.testing.assert_close(answers[2], outputs[2].mean(1))


def test_a_batch_of_no_rows_answers_no_rows(dataset: Dataset) -> None:
    network = build(dataset, specs(dataset, **MIXED)).eval()
    answers = network.answers([block[None, :0] for block in dataset.blocks])
    assert [tuple(answer.shape) for answer in answers] == [(2, 0, 1), (2, 0, 3), (2, 0, 1)]


def test_initial_weights_are_a_function_of_the_members_own_seed(dataset: Dataset) -> None:
    networks = specs(dataset, **MIXED)
    stack = Network(networks, dataset.inputs, dataset.tasks, [5, 6])
    for k, seed in enumerate((5, 6)):
        alone = Network([networks[k]], dataset.inputs, dataset.tasks, [seed]).member_state(0)
        state = stack.member_state(k)
        assert state.keys() == alone.keys()
        assert all(torch.equal(state[name], alone[name]) for name in state)


def test_states_name_the_same_whichever_stack_the_member_is_in(dataset: Dataset) -> None:
    networks = specs(dataset, **MIXED)
    state = build(dataset, networks).member_state(1)
    assert "trunk.layers.linears.0.weight" in state
    assert not any(name.startswith("trunk.layers.linears.1.") for name in state)  # the member is one layer deep
    assert "heads.0.first.weight" in state
    assert "heads.1.first.weight" not in state  # its head of that task is linear
    assert all(tensor.numel() for tensor in state.values())


def test_a_members_state_can_be_loaded_into_any_stack(dataset: Dataset) -> None:
    networks = specs(dataset, **MIXED)
    state = build(dataset, networks).member_state(1)
    other = Network([networks[0], networks[0], networks[1]], dataset.inputs, dataset.tasks, [7, 8, 9])
    untouched = other.member_state(0)
    other.load_member(2, state)
    assert all(torch.equal(value, state[name]) for name, value in other.member_state(2).items())
    assert all(torch.equal(value, untouched[name]) for name, value in other.member_state(0).items())


def test_a_state_of_another_size_is_refused_also_where_it_could_be_broadcast(dataset: Dataset) -> None:
    (network,) = specs(dataset, trunks=[MLPSpec(width=4, shared_depth=1)])
    built = build(dataset, [network])
    state = built.member_state(0)
    with pytest.raises((ValueError, RuntimeError), match=r"heads\.0\.linear\.weight|size"):
        built.load_member(0, state | {"heads.0.linear.weight": torch.zeros(1, 1, 1)})


def test_parameters_are_counted_without_padding(dataset: Dataset) -> None:
    networks = specs(dataset, **MIXED)
    stack = build(dataset, networks)
    for k, network in enumerate(networks):
        alone = build(dataset, [network])
        n = sum(parameter.numel() for parameter in alone.parameters())
        assert stack.n_parameters(k) == alone.n_parameters(0) == n
        assert Trained(network, stack.member_state(k)).n_parameters == n


def test_matrices_are_decayed_and_biases_embeddings_scalings_are_not(dataset: Dataset) -> None:
    (network,) = specs(dataset, trunks=[TabMSpec(width=8, inner=3, shared_depth=1)], heads=[DenseHeadSpec(width=4)])
    parts = list(build(dataset, [network]).parts())
    block = list(dataset.inputs.columns).index("categorical")
    decayed = [part.name for part in parts if part.decay]
    heads = [f"heads.{t}.{layer}.weight" for t in range(3) for layer in ("linear", "first", "second")]
    assert decayed == ["trunk.layers.linears.0.weight", *heads]
    assert {f"encoders.{block}.table", "trunk.scaling"} <= {part.name for part in parts if not part.decay}
    assert [part.decay for part in parts] == sorted((part.decay for part in parts), reverse=True)


def test_the_flat_view_shares_memory_with_the_network(dataset: Dataset) -> None:
    network = build(dataset, specs(dataset, **MIXED))
    states = [network.member_state(k) for k in range(2)]
    flat = Flat.of(network)
    assert flat.data.shape[0] == 2
    for k in range(2):
        read = flat.read(flat.data, k)
        assert read.keys() == states[k].keys()
        assert all(torch.equal(value, states[k][name]) for name, value in read.items())
        assert int((flat.data[k] != 0).sum()) <= network.n_parameters(k)
    flat.data.mul_(2)
    assert torch.equal(network.member_state(0)["heads.0.linear.weight"], states[0]["heads.0.linear.weight"] * 2)


def test_the_first_columns_of_the_flat_view_are_those_under_weight_decay(dataset: Dataset) -> None:
    network = build(dataset, specs(dataset, **MIXED))
    flat = Flat.of(network)
    for part in flat.parts:
        start, end = flat.places[part.name]
        assert (end <= flat.n_decayed) == part.decay
        assert (start < flat.n_decayed) == part.decay


def test_writing_a_member_leaves_its_padding_and_its_neighbours_alone(dataset: Dataset) -> None:
    network = build(dataset, specs(dataset, **MIXED))
    flat = Flat.of(network)
    matrix = torch.zeros_like(flat.data)
    flat.write(matrix, 1, {name: torch.ones_like(value) for name, value in flat.read(matrix, 1).items()})
    assert not matrix[0].any()
    assert int(matrix[1].sum()) == network.n_parameters(1)


class Halves(Trunk[HalvesSpec]):
    """A trunk whose states are one tensor [T, K, M, B, D], and another one for each task."""

    def forward(self, features: Tensor) -> Tensor:
        state = features[..., : self.widths[0]].unsqueeze(1)
        return torch.stack([state * t for t in range(self.sizes.n_tasks)])


def test_a_trunk_may_give_its_states_as_one_tensor(dataset: Dataset) -> None:
    # Heads of one state are computed together, told apart by identity: these states are views, each its own.
    TRUNKS.kinds()
    TRUNKS.register(HalvesSpec)(Halves)
    try:
        (network,) = specs(dataset, trunks=[HalvesSpec(width=4)])
        built = build(dataset, [network]).eval()
        blocks = [block[None] for block in dataset.blocks]
        joined = torch.cat([encoder.features(block) for encoder, block in zip(built.encoders, blocks, strict=True)], -1)
        expected = [head(state) for head, state in zip(built.heads, list(built.trunk(joined)), strict=True)]
        for output, alone in zip(built(blocks), expected, strict=True):
            torch.testing.assert_close(output, alone)
    finally:
        del TRUNKS._specs["test_halves"], TRUNKS._classes[HalvesSpec]


def test_networks_share_a_stack_where_their_parts_agree(dataset: Dataset) -> None:
    base, other = specs(dataset, trunks=[MLPSpec(width=4), MLPSpec(width=9, shared_depth=3)])
    assert base.stack_key() == other.stack_key()
    (tabm,) = specs(dataset, trunks=[TabMSpec(width=4)])
    (silu,) = specs(dataset, trunks=[MLPSpec(activation="silu")])
    assert len({base.stack_key(), tabm.stack_key(), silu.stack_key()}) == 3


def test_a_network_spec_survives_json_with_names_of_any_script() -> None:
    spec = NetworkSpec.model_validate(
        {
            "encoders": {"numeric": {"kind": "numeric", "n_bins": 3}},
            "trunk": {"kind": "tabm", "inner": 4},
            "heads": {"分类": {"kind": "dense", "width": 8}, "a.b c": {"kind": "dense"}},
        }
    )
    assert NetworkSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_trained_members_are_stacked_by_what_fits_together(dataset: Dataset) -> None:
    members = specs(
        dataset, trunks=[MLPSpec(width=4, shared_depth=1), TabMSpec(width=4), MLPSpec(width=6, shared_depth=2)]
    )
    trained = [Trained(s, build(dataset, [s]).member_state(0)) for s in members]
    built = stacks(trained, dataset.inputs, dataset.tasks)
    assert [places for places, _ in built] == [[2, 0], [1]]  # by kind, the deepest first
    for places, network in built:
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        for row, k in enumerate(places):
            state = network.member_state(row)
            assert all(torch.equal(state[name], value) for name, value in trained[k].state.items())


def test_inputs_learn_each_block_by_the_encoder_of_its_name(dataset: Dataset) -> None:
    assert list(dataset.inputs.columns) == ["numeric", "categorical", "vector"]
    assert set(dataset.inputs.fitted["numeric"]) == {"quantiles", "had_missing"}
    refit = Inputs.fit({"vector": dataset.inputs.columns["vector"]}, {"vector": torch.tensor([[1.0, 2.0], [3.0, 6.0]])})
    assert refit.fitted["vector"]["mean"].tolist() == [2, 4]


def test_settled_networks_answer_as_others_do_also_after_a_move_and_from_a_copy(dataset: Dataset) -> None:
    network = build(dataset, specs(dataset, **MIXED)).eval()
    blocks = [block[None, :7] for block in dataset.blocks]
    expected = network.answers(blocks)
    settled = network.settle()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(settled.answers(blocks), expected, strict=True))
    copied = pickle.loads(pickle.dumps(settled))
    assert all(torch.equal(a, b) for a, b in zip(copied.answers(blocks), expected, strict=True))
    wide = [block.double() if block.is_floating_point() else block for block in blocks]
    for answer, wanted in zip(settled.double().answers(wide), expected, strict=True):
        assert answer.dtype == torch.float64
        torch.testing.assert_close(answer, wanted.double(), atol=1e-5, rtol=0)


# What trees read


def test_trees_read_encoded_blocks_as_they_are_with_missing_cells_as_nan() -> None:
    table = pa.table({"n": [1.5, None, -2.0], "c": ["b", None, "a"], "m": [7.0, 8.0, 9.0], "d": ["x", "y", "x"]})
    columns = (
        NumericColumn(name="n"), CategoricalColumn(name="c", levels=("a", "b")), NumericColumn(name="m"),
        CategoricalColumn(name="d", levels=("y",)),
    )  # fmt: skip
    schema = Schema(columns=columns)
    blocks = {block: torch.from_numpy(values) for block, values in schema.encode(table).items()}
    inputs = Inputs.fit(schema.blocks, blocks)
    prepared = [inputs.encoder(block).prepare(values) for block, values in blocks.items()]
    features = inputs.features(blocks, prepared)
    nan = float("nan")
    by_block = {"numeric": [[1.5, 7], [nan, 8], [-2, 9]], "categorical": [[1, 1], [nan, 0], [0, 1]]}
    expected = torch.cat([torch.tensor(by_block[block], dtype=torch.float32) for block in blocks], 1)
    torch.testing.assert_close(features, expected, equal_nan=True, rtol=0, atol=0)
    start = 0 if next(iter(blocks)) == "categorical" else 2
    assert inputs.categorical() == [start, start + 1]


def test_trees_read_the_mean_over_real_positions() -> None:
    columns, blocks, _, _ = sample_rows(40)
    inputs = Inputs.fit(columns, {BLOCK: torch.from_numpy(blocks[BLOCK])})
    width = inputs.encoder(BLOCK).n_features
    prepared = torch.randn(3, LENGTH, width, generator=torch.Generator().manual_seed(0))
    prepared[1, 1:] = torch.nan  # one position only
    prepared[2] = torch.nan  # none
    features = inputs.features({}, [prepared])
    assert features.shape == (3, width)
    torch.testing.assert_close(features[0], prepared[0].mean(0))
    torch.testing.assert_close(features[1], prepared[1, 0])
    assert features[2].isnan().all()
    assert inputs.categorical() == []


def test_trees_read_nothing_of_tokens_that_each_network_learns() -> None:
    columns = {
        "text:note": (TextColumn(name="note", backbone="tokens", length=3, vocabulary=("take", "me")),),
        "categorical": (CategoricalColumn(name="c", levels=("a",)),),
    }
    blocks = {"text:note": torch.tensor([[0, 1, -1]]), "categorical": torch.tensor([[0]])}
    inputs = Inputs.fit(columns, blocks)
    prepared = [inputs.encoder(block).prepare(values) for block, values in blocks.items()]
    assert inputs.features(blocks, prepared).tolist() == [[0.0]]
    assert inputs.categorical() == [0]
