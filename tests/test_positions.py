"""Networks on inputs with positions: trunks that read them and others, tasks that answer by them and others."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from mtl_bento.dataset import PREPARED_ROWS, Dataset
from mtl_bento.encoders._base import mean_of_real
from mtl_bento.errors import SchemaError, SpecError
from mtl_bento.heads._base import Pooling
from mtl_bento.heads.conv import ConvHead, ConvHeadSpec
from mtl_bento.model import Model
from mtl_bento.network import Inputs, Network, NetworkSpec
from mtl_bento.samples import BLOCK, LENGTH, SampleCells, SamplePositionsSpec, SampleTrunkSpec, sample_rows
from mtl_bento.schema import Schema
from mtl_bento.tasks.regression import Regression, RegressionSpec
from mtl_bento.testing import check_encoder, check_stack, sample_dataset, sample_members
from mtl_bento.training import Cohort, Member, MemberSpec, Stack, TrainingSpec
from mtl_bento.trunks.mlp import MLPSpec

TRUNKS = [SampleTrunkSpec(width=w, shared_depth=d, dropout=0.0) for w, d in ((8, 3), (5, 2), (12, 1))]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """A number, categories and a vector beside positions; three tasks of a row and one by position."""
    return sample_dataset(positions=True)


def build(dataset: Dataset, trunks: Any = TRUNKS, **fields: Any) -> Network:
    networks = [member.spec.network for member in sample_members(dataset, trunks=trunks)]
    changed = {BLOCK: SamplePositionsSpec(**fields)}
    networks = [n.model_copy(update={"encoders": {**n.encoders, **changed}}) for n in networks]
    return Network(networks, dataset.inputs, dataset.tasks, list(range(len(networks)))).double().eval()


def without_cells(dataset: Dataset) -> Dataset:
    return dataclasses.replace(
        dataset, tasks=dataset.tasks[:3], targets=dataset.targets[:3], trivial=dataset.trivial[:3], _kept={}
    )


def rows(dataset: Dataset, index: Any = slice(0, 7)) -> list[Tensor]:
    return [block[index][None] for block in dataset.blocks]


def test_a_task_by_position_has_outputs_of_each_and_the_others_of_each_row(dataset: Dataset) -> None:
    outputs = build(dataset)(rows(dataset))
    assert [tuple(o.shape) for o in outputs] == [(3, 1, 7, 1), (3, 1, 7, 3), (3, 1, 7, 1), (3, 1, 7, 6, 1)]
    answers = build(dataset).answers(rows(dataset))
    assert [tuple(a.shape) for a in answers] == [(3, 7, 1), (3, 7, 3), (3, 7, 1), (3, 7, 6)]
    assert build(dataset).answer_sizes() == [1, 3, 1, 6]
    assert [len(a[0]) for a in build(dataset).answers(rows(dataset, slice(0, 0)))] == [0, 0, 0, 0]


@pytest.mark.parametrize("fields", [{}, {"learned": 3}])
def test_a_member_of_a_stack_by_position_equals_that_member_alone(dataset: Dataset, fields: dict[str, Any]) -> None:
    members = sample_members(dataset, trunks=TRUNKS)
    for k, member in enumerate(members):
        encoders = {**member.spec.network.encoders, BLOCK: SamplePositionsSpec(**fields)}
        network = member.spec.network.model_copy(update={"encoders": encoders})
        members[k] = dataclasses.replace(member, spec=member.spec.model_copy(update={"network": network}))
    check_stack(members, dataset)


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
@pytest.mark.parametrize("learned", [0, 3])
def test_encoders_keep_their_promises_pooled_and_by_position(pooling: Any, learned: int) -> None:
    check_encoder(SamplePositionsSpec(pooling=pooling, learned=learned))


def test_what_lies_where_there_is_no_position_does_not_matter(dataset: Dataset) -> None:
    network = build(dataset)
    unfolded = network.unfold(rows(dataset, slice(None)))
    main = network.blocks.index(BLOCK)
    features, mask = unfolded[main]
    assert not mask.all()
    unfolded[main] = (torch.where(mask.unsqueeze(-1), features, 7.0), mask)
    for one, other in zip(network.outputs(unfolded), network(rows(dataset, slice(None))), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fields", [{}, {"learned": 3}])
def test_a_row_without_any_position_still_sees_its_other_inputs(dataset: Dataset, fields: dict[str, Any]) -> None:
    network = build(dataset, **fields)
    empty = ~mask_of(dataset, slice(None)).any(-1)
    assert 0 < empty.sum() < len(empty)
    number = network.blocks.index("numeric")
    changed = rows(dataset, slice(None))
    changed[number] = changed[number] + 1
    before, after = network(rows(dataset, slice(None))), network(changed)
    for one, other in list(zip(before, after, strict=True))[:3]:
        assert bool((one != other).any(-1)[:, :, empty].all())


def test_the_other_inputs_stand_beside_every_position(dataset: Dataset) -> None:
    network = build(dataset)
    sizes = network.trunk.sizes
    assert (sizes.length, sizes.grid) == (6, (2, 3))
    assert sizes.n_features == sum(encoder.n_features for encoder in network.encoders)
    number = network.blocks.index("numeric")
    changed = rows(dataset)
    changed[number] = changed[number] + 1
    before, after = network(rows(dataset))[3], network(changed)[3]
    assert bool((before != after).all(-1)[mask_of(dataset, slice(0, 7)).expand(3, 1, 7, 6)].all())


def mask_of(dataset: Dataset, index: Any) -> Tensor:
    return ~dataset.blocks[list(dataset.inputs.columns).index(BLOCK)][index].isnan().any(-1)


def test_a_trunk_that_reads_no_positions_gets_them_pooled(dataset: Dataset) -> None:
    plain = without_cells(dataset)
    block = plain.blocks[-1][:7]
    mask = ~block.isnan().any(-1)
    features = block[..., 1:].nan_to_num(0.0)
    mean = build(plain, [MLPSpec(width=8)]).unfold(rows(plain))[-1]
    torch.testing.assert_close(mean[0][0], mean_of_real(features, mask))
    flat = build(plain, [MLPSpec(width=8)], pooling="flatten")
    torch.testing.assert_close(flat.unfold(rows(plain))[-1][0][0], features.flatten(1))
    assert flat.trunk.sizes.n_features == flat.encoders[-1].n_pooled + sum(e.n_features for e in flat.encoders[:-1])
    check_stack(sample_members(plain, trunks=[MLPSpec(width=w, dropout=0.0) for w in (8, 5)]), plain)


def test_pooled_features_of_all_rows_are_those_of_each_batch_by_either_trunk(dataset: Dataset) -> None:
    plain = without_cells(dataset)
    for trunk in (MLPSpec(width=8), SampleTrunkSpec(width=8)):
        network = build(plain, [trunk])
        whole = plain.unfolded(network)
        assert whole is not None
        assert plain.unfolded(network) is whole
        index = torch.tensor([[3, 0, 3]])
        for parts, expected in zip(whole, network.unfold(plain.inputs_of(index)), strict=True):
            for part, alone in zip(parts, expected, strict=True):
                torch.testing.assert_close(plain.take(part, index), alone, rtol=0, atol=1e-12)
    assert len(plain._kept) == 2  # one for each, so that stacks of both may take turns


def test_the_oldest_features_of_all_rows_make_room(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = without_cells(dataset)
    first = plain.unfolded(build(plain, [MLPSpec(width=8)]))
    assert first is not None
    (size,) = (held for held, _ in plain._kept.values())
    monkeypatch.setattr("mtl_bento.dataset.UNFOLDED_BYTES", size)
    second = build(plain, [MLPSpec(width=8)])
    assert plain.unfolded(second) is first
    numeric = second.specs[0].encoders["numeric"].model_copy(update={"n_bins": 3})
    spec = second.specs[0].model_copy(update={"encoders": {**second.specs[0].encoders, "numeric": numeric}})
    plain.unfolded(Network([spec], plain.inputs, plain.tasks, [0]).double())
    assert sum(held for held, _ in plain._kept.values()) <= size
    assert all(kept is not first for _, kept in plain._kept.values())


def test_training_by_position_learns_what_the_position_says() -> None:
    # The label of a position is the sine of its token, whose fixed features tell it from the eight others.
    dataset = dataset_of(200)
    trunk = SampleTrunkSpec(width=64, shared_depth=1, dropout=0.0)
    network = NetworkSpec.model_validate(
        {"encoders": {BLOCK: SamplePositionsSpec()}, "trunk": trunk, "heads": {"cells": {"kind": "dense"}}}
    )
    training = TrainingSpec(lr=1e-2, batch_size=50, steps=200)
    cohort = Cohort(Stack((Member(MemberSpec(network=network, training=training), seed=0),), 0), dataset)
    cohort.advance(dataset, 200)
    assert cohort.stack().losses[0][0] < 0.05  # of the variance


def test_a_head_that_reads_neighbours_is_told_how_positions_lie_where_a_task_answers_by_them(dataset: Dataset) -> None:
    heads = [ConvHeadSpec(width=w) for w in (8, 5, 6)]
    members = sample_members(dataset, trunks=TRUNKS, heads=heads)
    network = Network([m.spec.network for m in members], dataset.inputs, dataset.tasks, [0, 1, 2])
    lattices = [cast(ConvHead, head).lattice for head in network.heads]
    assert [(lattice.rows, lattice.columns) for lattice in lattices] == [(1, 1)] * 3 + [(2, 3)]
    check_stack(members, dataset)


# Pooling of states


def test_a_state_is_pooled_to_mean_largest_and_place() -> None:
    pooling = Pooling([1], (2, 3)).double()
    state = torch.tensor([0.0, 0.0, 99.0, 0.0, 0.0, 0.0]).double().view(1, 1, 1, 6, 1)
    mean, largest, row, column = pooling(state, torch.ones(1, 1, 6, dtype=torch.bool))[0, 0, 0].tolist()
    assert (mean, largest) == (16.5, 99)
    assert (row, column) == pytest.approx((-1, 1))  # the third of the first row
    masked = pooling(state, torch.tensor([[[True, True, False, True, True, True]]]))[0, 0, 0].tolist()
    assert masked == pytest.approx([0, 0, 0.2, -0.2])  # of five places, all alike


def test_a_pooled_state_is_zero_without_a_position_and_beyond_a_members_width() -> None:
    pooling = Pooling([3, 1], (2, 3)).double()
    state = torch.randn(2, 1, 4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state[1, ..., 1:] = 0
    mask = torch.ones(1, 4, 6, dtype=torch.bool)
    mask[0, 2] = False
    state.requires_grad_()
    pooled = pooling(state, mask)
    assert pooled.shape == (2, 1, 4, 12)
    assert not pooled[:, :, 2].any()
    assert not pooled[1, ..., 4:].any()
    (gradient,) = torch.autograd.grad(pooled.square().sum(), state)
    assert gradient.isfinite().all()
    assert not gradient[:, :, 2].any()


def test_positions_on_a_line_have_no_place() -> None:
    state = torch.tensor([1.0, 5.0, 3.0]).view(1, 1, 1, 3, 1)
    pooled = Pooling([1], None)(state, torch.tensor([[[True, False, True]]]))
    assert pooled.flatten().tolist() == [2, 3]


# What is refused


def test_a_trunk_that_reads_no_positions_cannot_serve_a_task_that_answers_by_them(dataset: Dataset) -> None:
    with pytest.raises(
        SpecError, match=r"Trunk 'mlp' reads no positions, by which target 'cells' answers; allowed: .*"
    ):
        build(dataset, [MLPSpec(width=8)])


def test_a_trunk_that_reads_positions_needs_an_input_with_some() -> None:
    plain = sample_dataset()
    networks = [m.spec.network for m in sample_members(plain, trunks=[SampleTrunkSpec()])]
    with pytest.raises(
        SpecError, match=r"Trunk 'sample_positional' reads positions, but no input is an image or a tex"
    ):
        Network(networks, plain.inputs, plain.tasks, [0])


class Named(SampleCells):
    """Cells of an input that it names."""

    input = "places"

    @property
    def reads(self) -> str | None:
        return self.input


def cells(name: str, reads: str) -> Named:
    task = Named(RegressionSpec(name=name))
    task.input = reads
    return task


def test_the_main_input_is_the_one_that_tasks_name_or_the_first() -> None:
    columns = {block: sample_rows(1)[0][BLOCK] for block in ("sample_positions:a", "sample_positions:b")}
    columns = {b: (c[0].model_copy(update={"name": b[-1]}),) for b, c in columns.items()}
    inputs, lengths = Inputs(columns, {}), dict.fromkeys(columns, 6)
    unnamed = SampleCells(RegressionSpec(name="x"))
    assert inputs.main(lengths, [unnamed]) == "sample_positions:a"
    assert inputs.main(lengths, [unnamed, cells("y", "b")]) == "sample_positions:b"
    assert inputs.main(dict.fromkeys(columns, 0), []) is None
    with pytest.raises(SpecError, match=r"'x' answers by the positions of 'a' and 'y' by those of 'b'; .* search them"):
        inputs.main(lengths, [cells("x", "a"), cells("y", "b")])
    with pytest.raises(
        SpecError, match=r"Target 'x' speaks of 'c', which is no input with positions; allowed: 'a', 'b"
    ):
        inputs.main(lengths, [cells("x", "c")])
    with pytest.raises(SpecError, match=r"Target 'x' answers by position, but no input is an image or a text"):
        inputs.main(dict.fromkeys(columns, 0), [unnamed])


# Preparing


def dataset_of(n: int, labels: np.ndarray | None = None, *, changed: int | None = None, **given: Any) -> Dataset:
    columns, blocks, task, own = sample_rows(n)
    inputs = Inputs.fit(columns, {BLOCK: torch.from_numpy(blocks[BLOCK])})
    if changed is not None:
        blocks[BLOCK][changed] = 0
    splits = [(np.arange(n // 2), np.arange(n // 2, n))]
    return Dataset.build([task], inputs, blocks, [own if labels is None else labels], splits, **given)


def test_labels_of_another_number_of_positions_are_refused() -> None:
    with pytest.raises(
        SchemaError, match=r"Target 'cells' has 4 cells a row, but its input 'places' has 6 positions; gi"
    ):
        dataset_of(8, np.zeros((8, 4), dtype=np.float32))


def test_rows_with_positions_are_prepared_some_at_a_time_and_told() -> None:
    told: list[tuple[str, int, int]] = []
    n = 2 * PREPARED_ROWS + 5
    dataset = dataset_of(n, progress=lambda *said: told.append(said))
    assert told == [(BLOCK, PREPARED_ROWS, n), (BLOCK, 2 * PREPARED_ROWS, n), (BLOCK, n, n)]
    columns, blocks, _, _ = sample_rows(n)
    whole = Inputs.fit(columns, {BLOCK: torch.from_numpy(blocks[BLOCK])}).encoder(BLOCK)
    torch.testing.assert_close(dataset.blocks[0], whole.prepare(torch.from_numpy(blocks[BLOCK])), equal_nan=True)


def test_prepared_rows_are_kept_and_found_again_while_nothing_changed() -> None:
    kept: dict[str, Tensor] = {}
    computed: list[str] = []

    def cache(key: str, compute: Any) -> Tensor:
        if key not in kept:
            computed.append(key)
            kept[key] = compute()
        return kept[key]

    n = PREPARED_ROWS + 3
    one = dataset_of(n, cache=cache)
    assert len(computed) == 2
    assert all(len(key) == 64 for key in computed)
    two = dataset_of(n, cache=cache)
    assert len(computed) == 2
    torch.testing.assert_close(one.blocks, two.blocks, equal_nan=True, rtol=0, atol=0)
    dataset_of(n, cache=cache, changed=n - 1)  # of the second part
    assert len(computed) == 3
    dataset_of(n, cache=cache, dtype=torch.float64)
    assert len(computed) == 5


def test_weights_of_a_backbone_are_kept_by_reference_and_are_no_buffers() -> None:
    columns, blocks, _, _ = sample_rows(5)
    inputs = Inputs.fit(columns, {BLOCK: torch.from_numpy(blocks[BLOCK])})
    weight = torch.ones(3)
    inputs.fitted[BLOCK]["backbone.layer.weight"] = weight
    encoder = inputs.encoder(BLOCK)
    assert encoder.frozen["layer.weight"] is weight
    assert [name for name, _ in encoder.named_buffers()] == ["vectors"]


# Models


class Telling(SampleCells):
    """Cells whose answers are put into words with the texts of their rows."""

    texts: tuple[str, ...] = ()

    def place(self, table: pa.Table, columns: Any) -> Telling:
        placed = Telling(self.spec)
        placed.texts = tuple(f"{column.name}: {cell}" for column in columns for cell in table[column.name].to_pylist())
        return placed

    def values(self, answers: np.ndarray) -> pa.Array:
        return pa.array(answers.round(3).tolist())

    def rows(self, answers: np.ndarray) -> list[dict[str, Any]]:
        return [{"value": row, "text": text} for row, text in zip(answers.round(3).tolist(), self.texts, strict=True)]


def test_a_model_answers_by_position_with_the_cells_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, blocks, _, labels = sample_rows(40)
    tasks = [Telling(RegressionSpec(name="cells")), Regression(RegressionSpec(name="size"))]
    inputs = Inputs.fit(columns, {BLOCK: torch.from_numpy(blocks[BLOCK])})
    targets = [labels, (blocks[BLOCK] >= 0).sum(1).astype(np.float32)]
    dataset = Dataset.build(tasks, inputs, blocks, targets, [(np.arange(30), np.arange(30, 40))])
    spec = NetworkSpec.model_validate({
        "encoders": {BLOCK: {"kind": "sample_positions"}},
        "trunk": SampleTrunkSpec(width=8, dropout=0.0),
        "heads": {"cells": {"kind": "dense"}, "size": {"kind": "dense"}},
    })  # fmt: skip
    training = TrainingSpec(batch_size=8, steps=8)
    cohort = Cohort(Stack((Member(MemberSpec(network=spec, training=training), seed=0),), 0), dataset)
    cohort.advance(dataset, 8)
    # The schema's own block is that of vectors: what it encodes stands in for tokens.
    schema = Schema(columns=columns[BLOCK], targets=("cells", "size"))
    monkeypatch.setattr(Schema, "encode", lambda _self, table: {BLOCK: np.array(table["places"].to_pylist())})
    trained = cohort.stack().trained(0)
    model = Model(schema, tuple(tasks), inputs, (trained,), np.ones((2, 1)))
    table = pa.table({"places": blocks[BLOCK].tolist()})
    answers = model.answers(table)
    assert {name: held.shape for name, held in answers.items()} == {"cells": (40, LENGTH), "size": (40, 1)}
    expected = cohort.network.eval().answers([dataset.blocks[0][None]])
    np.testing.assert_allclose(answers["cells"], expected[0][0].detach().numpy(), rtol=1e-5, atol=1e-6)
    first = model.rows(table.slice(0, 1))[0]["cells"]
    assert first["text"] == f"places: {blocks[BLOCK][0].tolist()}"
    assert first["value"] == answers["cells"][0].round(3).tolist()
    assert model.table(table)["cells"][0].as_py() == first["value"]
