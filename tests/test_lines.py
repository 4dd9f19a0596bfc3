"""Texts are as long as the longest of a batch: what lies beyond is computed for nobody."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtl_bento.columns.text import TextColumn
from mtl_bento.dataset import Dataset
from mtl_bento.network import Inputs
from mtl_bento.tasks._base import TASKS
from mtl_bento.training import Cohort, Member, MemberSpec, Stack, advance, restack

TEXTS = ["fly", "fly to rome", None, "from paris to rome today", "to", "rome rome", "", "paris to rome"] * 5
TAGS = {"rome": "B-city", "paris": "B-city"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    tags = [None if text is None else [TAGS.get(word, "O") for word in text.split()] for text in TEXTS]
    table = pa.table({"note": TEXTS, "names": tags, "far": ["yes" if len(text or "") > 6 else "no" for text in TEXTS]})
    column: Any = TextColumn.chosen("note", table["note"], {"backbone": "tokens", "length": 6})
    columns = {column.block: (column,)}
    tasks = []
    for name, kind in {"names": "tagging", "far": "binary"}.items():
        task_class = TASKS.class_of(TASKS.spec_class(kind))
        spec = task_class.fit(TASKS.parse({"kind": kind, "name": name}), table[name])
        tasks.append(task_class(spec).settled([column]).place(table, [column]))
    blocks = {column.block: column.encode(table["note"])}
    inputs = Inputs.fit(columns, {name: torch.from_numpy(held) for name, held in blocks.items()})
    rows = np.arange(len(TEXTS))
    splits = [(rows[:30], rows[30:])]
    return Dataset.build(
        tasks, inputs, blocks, [task.encode(table[task.name]) for task in tasks], splits, dtype=torch.float64
    )


def cohort(dataset: Dataset, trunk: str, head: str, *, until: int | None = None, **training: Any) -> Cohort:
    """Return two members in training, of unlike width; `training` are further fields of theirs."""
    return Cohort(Stack(members(trunk, head, until=until, **training), 0), dataset)


def members(trunk: str, head: str, *, until: int | None = None, **training: Any) -> tuple[Member, ...]:
    held = {"encoders": {"text:note": {"kind": "text", "embedding_width": 6}}, "heads": {"far": {"kind": "dense"}}}
    held["heads"]["names"] = {"kind": head}  # type: ignore[assignment]
    specs = [
        MemberSpec.model_validate({
            "network": {**held, "trunk": {"kind": trunk, "width": width, "dropout": 0}},
            "training": {"batch_size": 3, "steps": 32, **training},
        })
        for width in (8, 6)
    ]  # fmt: skip
    return tuple(Member(spec, seed=k, until=until) for k, spec in enumerate(specs))


def test_a_text_ends_behind_its_last_token(dataset: Dataset) -> None:
    (ends,) = dataset.ends
    assert ends is not None
    assert ends.tolist() == [1, 3, 0, 5, 1, 2, 0, 3] * 5


@pytest.mark.parametrize("head", ["conv", "dense"])
@pytest.mark.parametrize("trunk", ["attention", "conv"])
def test_networks_learn_from_texts_cut_to_the_longest_what_they_learn_from_whole_ones(
    dataset: Dataset, trunk: str, head: str
) -> None:
    cut, whole = cohort(dataset, trunk, head), cohort(dataset, trunk, head)
    assert {length for *_, length in cut._plan(dataset, 32)} == {1, 2, 3, 5}
    assert [length for *_, length in cut._looked] == [5]
    whole.ends = None
    whole._looked = [(rows, real, None) for rows, real, _ in whole._looked]
    for held in (cut, whole):
        held.advance(dataset, 32)
    torch.testing.assert_close(cut.flat.data, whole.flat.data, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cut.losses(dataset), whole.losses(dataset), rtol=1e-9, atol=1e-9)


def test_validation_rows_are_looked_at_by_length(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl_bento.network.rows_at_once", lambda _most, _positions: 4)
    held = cohort(dataset, "attention", "conv")
    assert [length for *_, length in held._looked] == [1, 3, 5]
    assert sorted(torch.cat([rows[0] for rows, *_ in held._looked]).tolist()) == list(range(30, 40))


@pytest.mark.parametrize("trunk", ["attention", "conv"])
def test_students_learn_from_texts_cut_to_the_longest_what_they_learn_from_whole_ones(
    dataset: Dataset, trunk: str
) -> None:
    rng = np.random.default_rng(0)
    taught = dataset.with_teacher([rng.dirichlet(np.ones(3), (40, 6)).reshape(40, 18), rng.random((40, 1))])
    cut, whole = (cohort(taught, trunk, "dense", label_weight=0.0) for _ in range(2))
    assert {length for *_, length in cut._plan(taught, 32)} == {1, 2, 3, 5}
    whole.ends = None
    for held in (cut, whole):
        held.advance(taught, 32)
    torch.testing.assert_close(cut.flat.data, whole.flat.data, rtol=1e-9, atol=1e-9)


def test_a_teacher_says_nothing_of_positions_that_a_text_does_not_have(dataset: Dataset) -> None:
    taught = dataset.with_teacher([np.ones((40, 18)), np.ones((40, 1))]).taught
    assert taught is not None
    assert (~taught[0].isnan()).sum(1).tolist() == [3 * n for n in [1, 3, 0, 5, 1, 2, 0, 3] * 5]
    assert taught[1].tolist() == [[1.0]] * 40


def test_texts_are_learned_in_two_sittings_as_in_one_and_alone_as_beside_another(dataset: Dataset) -> None:
    stack = Stack(members("attention", "conv"), 0)
    half, whole = advance(stack, dataset, 11), advance(stack, dataset, 32)
    again = advance(half, dataset, 32)
    alone = [advance(restack([half], [[k]], seed=0), dataset, 32) for k in range(2)]
    for k, state in enumerate(whole.states):
        for name, value in state.tensors["data"].items():
            assert torch.equal(again.states[k].tensors["data"][name], value)
            torch.testing.assert_close(alone[k].states[0].tensors["data"][name], value, rtol=1e-9, atol=1e-9)


def test_a_student_of_texts_learns_beside_another_what_it_learns_alone(dataset: Dataset) -> None:
    names = torch.where(torch.arange(len(TEXTS)).unsqueeze(1) % 3 == 0, -1, dataset.targets[0])  # some not labelled
    rng = np.random.default_rng(0)
    taught = [rng.dirichlet(np.ones(3), (len(TEXTS), 6)).reshape(-1, 18), rng.random((len(TEXTS), 1))]
    held = dataclasses.replace(dataset, targets=(names, dataset.targets[1])).with_teacher(taught)
    both = members("attention", "conv", label_weight=0.5)
    together = advance(Stack(both, 0), held, 32)
    for k, member in enumerate(both):
        alone = advance(Stack((member,), 0), held, 32)
        for name, value in alone.states[0].tensors["data"].items():
            torch.testing.assert_close(together.states[k].tensors["data"][name], value, rtol=1e-9, atol=1e-9)


def test_texts_are_learned_again_without_validation_rows(dataset: Dataset) -> None:
    judged = cohort(dataset, "attention", "conv")
    judged.advance(dataset, 8)
    split = dataset.splits[0]
    rows = dataset.with_splits([(split.train.numpy(), split.valid.numpy()[:0])])
    again = cohort(rows, "attention", "conv", until=8)
    again.advance(rows, 32)
    assert again.step == 8
    torch.testing.assert_close(again.best.data, judged.flat.data, rtol=0, atol=0)
