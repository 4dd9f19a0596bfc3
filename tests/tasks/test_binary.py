"""Yes or no."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from mtl_bento.errors import SchemaError, SpecError
from mtl_bento.tasks._base import TASKS
from mtl_bento.tasks.binary import Binary, BinarySpec


def cells(labels: Any, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(labels, kind)])


def fit(labels: Any, kind: pa.DataType | None = None, **fields: Any) -> Binary:
    spec = BinarySpec.model_validate({"name": "y", **fields})
    return Binary(Binary.fit(spec, cells(labels, kind)))


INCOME = [">50K", "<=50K", "<=50K", None, "<=50K"]


def test_labels_are_codes_with_the_positive_1_and_missing_minus_1() -> None:
    task = fit(INCOME)
    assert task.spec.levels == ("<=50K", ">50K")
    assert task.encode(cells(INCOME)).tolist() == [1, 0, 0, -1, 0]
    assert task.spec.frequencies == (0.75, 0.25)


def test_the_positive_label_can_be_named() -> None:
    task = fit(INCOME, positive="<=50K")
    assert task.spec.levels == (">50K", "<=50K")
    assert task.encode(cells(INCOME)).tolist() == [0, 1, 1, -1, 1]


@pytest.mark.parametrize(
    ("labels", "kind", "levels", "back"),
    [
        ([">50K", "<=50K", None], pa.string(), ("<=50K", ">50K"), pa.string()),
        ([True, False, None], pa.bool_(), (False, True), pa.bool_()),
        ([3, 1, None], pa.int64(), (1, 3), pa.int64()),
        ([3, 1, 1], pa.int8(), (1, 3), pa.int8()),
        ([3.0, float("nan"), 1.0], pa.float64(), (1, 3), pa.int64()),
        ([0.5, 1.5, None], pa.float64(), (0.5, 1.5), pa.float64()),
        ([0.1, 1.5, None], pa.float32(), (0.1, 1.5), pa.float32()),
        (["否", "是", "是"], pa.string(), ("否", "是"), pa.string()),
        (["no", "yes"], pa.dictionary(pa.int8(), pa.string()), ("no", "yes"), pa.string()),
    ],
)
def test_labels_keep_their_own_values_and_types(labels: Any, kind: Any, levels: tuple[Any, ...], back: Any) -> None:
    task = fit(labels, kind)
    assert task.spec.levels == levels
    assert [type(level) for level in task.spec.levels] == [type(level) for level in levels]
    predicted = task.values(np.array([[0.1], [0.9]], np.float32))
    assert predicted.type == back
    assert predicted.to_pylist() == pa.array(levels, back).to_pylist()


@pytest.mark.parametrize("labels", [[True, False], [3, 1], [3.5, 1.25], ["b", "a"], ["3", "x"]])
def test_levels_keep_their_types_through_json(labels: list[Any]) -> None:
    spec = fit(labels).spec
    back = TASKS.parse(json.loads(json.dumps(spec.model_dump(mode="json"))))
    assert back == spec
    assert [type(level) for level in back.levels] == [type(level) for level in spec.levels]


def test_the_same_label_in_another_type_is_the_same_label() -> None:
    # What pandas and CSV make of True and 3.
    assert fit([True, False]).encode(cells(["True", "false", None])).tolist() == [1, 0, -1]
    assert fit([3, 1]).encode(cells([3.0, 1.0, float("nan")])).tolist() == [1, 0, -1]
    assert fit([3, 1]).encode(cells(["3", "1"])).tolist() == [1, 0]
    assert fit(pd.Series([True, None, False], dtype="object")).spec.levels == (False, True)


def test_loss_is_the_log_of_2_at_logit_0() -> None:
    task = fit(INCOME)
    loss = task.loss(torch.zeros(1, 1, 5, 1), torch.from_numpy(task.encode(cells(INCOME)))[None])
    assert loss.tolist() == pytest.approx([math.log(2)])


def test_loss_equals_torchs_and_is_averaged_over_inner_networks() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 3, 8, 1, generator=generator, dtype=torch.float64) * 5
    targets = torch.tensor([[0, 1, 1, 0, 1, 0, -1, 1], [1, 1, 0, 0, 0, 0, 1, 0]])
    losses = fit(INCOME).loss(outputs, targets)
    for k in range(2):
        known = targets[k] >= 0
        truth = targets[k][known].double().expand(3, -1)
        expected = binary_cross_entropy_with_logits(outputs[k, :, known, 0], truth)
        torch.testing.assert_close(losses[k], expected)


def test_loss_is_finite_at_extreme_logits() -> None:
    outputs = torch.tensor([1e4, -1e4]).view(1, 1, 2, 1)
    assert fit(INCOME).loss(outputs, torch.tensor([[0, 1]])).tolist() == [1e4]


def test_answers_are_probabilities_of_the_positive_label() -> None:
    outputs = torch.tensor([0.0, math.log(3)]).view(1, 1, 2, 1)
    assert fit(INCOME).activate(outputs).flatten().tolist() == pytest.approx([0.5, 0.75])


def test_answer_losses_are_minus_log_probability_of_the_label() -> None:
    answers = torch.tensor([[0.75], [0.75], [0.75]], dtype=torch.float64)
    losses = fit(INCOME).answer_losses(answers, torch.tensor([1, 0, -1]))
    assert losses[:2].tolist() == pytest.approx([-math.log(0.75), -math.log(0.25)])
    assert losses[2].isnan()


def test_trivial_loss_is_the_entropy_of_the_labels() -> None:
    # One of four is positive: -(1/4 log 1/4 + 3/4 log 3/4).
    task = fit(INCOME)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert task.trivial_loss(torch.from_numpy(task.encode(cells(INCOME)))) == pytest.approx(expected)


def test_rows_answer_value_its_probability_and_both_probabilities() -> None:
    rows = fit(INCOME).rows(np.array([[0.875], [0.25], [0.5]], np.float32))
    assert rows == [
        {"value": ">50K", "probability": 0.875, "probabilities": {"<=50K": 0.125, ">50K": 0.875}},
        {"value": "<=50K", "probability": 0.75, "probabilities": {"<=50K": 0.75, ">50K": 0.25}},
        {"value": "<=50K", "probability": 0.5, "probabilities": {"<=50K": 0.5, ">50K": 0.5}},
    ]


def test_rows_answer_labels_in_their_own_type() -> None:
    (row,) = fit([True, False]).rows(np.array([[0.75]], np.float32))
    assert row == {"value": True, "probability": 0.75, "probabilities": {"false": 0.25, "true": 0.75}}
    (row,) = fit([3, 1]).rows(np.array([[0.25]], np.float32))
    assert row == {"value": 1, "probability": 0.75, "probabilities": {"1": 0.75, "3": 0.25}}


def test_columns_are_a_probability_a_label() -> None:
    columns = fit(INCOME).columns(np.array([[0.75]], np.float32))
    assert {name: column.to_pylist() for name, column in columns.items()} == {
        "proba__<=50K": [0.25],
        "proba__>50K": [0.75],
    }
    assert {column.type for column in columns.values()} == {pa.float32()}


def test_class_weights_have_the_effect_of_repeating_rows() -> None:
    plain, weighed = fit(INCOME), fit(INCOME, class_weight={">50K": 3.0})
    outputs = torch.randn(1, 1, 4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[1, 0, 0, -1]])
    often = [0, 0, 0, 1, 2, 3]
    torch.testing.assert_close(weighed.loss(outputs, targets), plain.loss(outputs[:, :, often], targets[:, often]))


def test_balanced_class_weights_weigh_each_label_alike() -> None:
    task = fit(INCOME, class_weight="balanced")
    # 1 / (2 labels * share): 1 / (2 * 3/4) and 1 / (2 * 1/4).
    assert task.emphasis(torch.tensor([0, 1])).tolist() == pytest.approx([2 / 3, 2])


def test_class_weights_are_given_by_labels_of_any_type() -> None:
    assert fit([True, False], class_weight={"true": 5}).emphasis(torch.tensor([0, 1])).tolist() == [1, 5]
    assert fit([3, 1], class_weight={"3": 5}).emphasis(torch.tensor([0, 1])).tolist() == [1, 5]


@pytest.mark.parametrize("key", [True, "True"])
def test_class_weights_may_be_written_as_yaml_and_python_write_the_label(key: Any) -> None:
    # `class_weight: {true: 5}` in mtl.yaml is the key True, and pandas prints it as True.
    assert fit([True, False], class_weight={key: 5}).emphasis(torch.tensor([0, 1])).tolist() == [1, 5]


def test_a_class_weight_of_a_label_that_the_target_lacks_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"'y': class_weight names '>50k'; did you mean '>50K'\? Its labels: <=50K, >50K"
    ):
        fit(INCOME, class_weight={">50k": 2})


def test_three_labels_are_too_many() -> None:
    with pytest.raises(SchemaError, match=r"'y' has 3 different labels \('a', 'b', 'c'\).* Use 'y:multiclass'"):
        fit(["a", "b", "c"])


def test_one_label_is_nothing_to_learn() -> None:
    with pytest.raises(SchemaError, match="'y' is 'a' in every training row; there is nothing to learn, leave it out"):
        fit(["a", "a", None])


@pytest.mark.parametrize("kind", [pa.string(), pa.float64(), pa.null()])
def test_no_label_at_all_is_refused(kind: pa.DataType) -> None:
    with pytest.raises(SchemaError, match="'y' is missing in every training row; label some rows or leave it out"):
        fit([None, None], kind)


def test_a_positive_that_is_no_label_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"'y': positive '>50k' is not one of its labels \('<=50K', '>50K'\)"):
        fit(INCOME, positive=">50k")


def test_a_label_that_training_did_not_have_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"'y' holds 'maybe', which is not one of its levels \(<=50K, >50K\)"):
        fit(INCOME).encode(cells(["maybe", ">50K"]))


def test_a_label_outside_of_given_levels_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"'y' holds '>50K', which is not one of its levels \(no, yes\)"):
        fit(INCOME, levels=("no", "yes"))


def test_levels_given_in_another_type_than_the_column_are_taken() -> None:
    # It raised pyarrow's ArrowInvalid or TypeError.
    task = fit([0, 1], levels=("0", "1"))
    assert task.encode(cells([0, 1, None])).tolist() == [0, 1, -1]
    assert len(task.values(np.array([[0.9]], np.float32))) == 1
