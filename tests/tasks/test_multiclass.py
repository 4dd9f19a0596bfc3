"""One of several labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from mtl_bento.errors import MtlBentoError, SchemaError
from mtl_bento.tasks._base import FEW, shortest
from mtl_bento.tasks.multiclass import Multiclass, MulticlassSpec


def cells(labels: Any) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(labels)])


def fit(labels: Any, **fields: Any) -> Multiclass:
    spec = MulticlassSpec.model_validate({"name": "分类", **fields})
    return Multiclass(Multiclass.fit(spec, cells(labels)))


LABELS = ["低", "中", "高", None, "低"]


def test_labels_are_codes_in_their_natural_order() -> None:
    task = fit(LABELS)
    assert task.spec.levels == ("中", "低", "高")  # by code point
    assert task.encode(cells(LABELS)).tolist() == [1, 0, 2, -1, 1]
    assert task.n_outputs == 3


def test_labels_are_codes_in_the_order_given() -> None:
    assert fit(LABELS, levels=("低", "中", "高")).encode(cells(LABELS)).tolist() == [0, 1, 2, -1, 0]


def test_numbers_are_ordered_as_numbers() -> None:
    assert fit([10, 9, 100]).spec.levels == (9, 10, 100)


def test_a_given_level_may_be_without_a_row() -> None:
    task = fit(["a", "b"], levels=("a", "b", "c"))
    assert task.spec.frequencies == (0.5, 0.5, 0)
    assert task.n_outputs == 3


def test_loss_is_the_log_of_3_for_even_logits() -> None:
    loss = fit(LABELS).loss(torch.zeros(1, 1, 2, 3), torch.tensor([[0, 2]]))
    assert loss.tolist() == pytest.approx([math.log(3)])


def test_loss_equals_torchs() -> None:
    outputs = torch.randn(2, 3, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    targets = torch.tensor([[0, 1, 2, -1, 2, 2], [1, 1, -1, -1, 0, 2]])
    losses = fit(LABELS).loss(outputs, targets)
    for k in range(2):
        each = [cross_entropy(outputs[k, m], targets[k], ignore_index=-1) for m in range(3)]
        torch.testing.assert_close(losses[k], torch.stack(each).mean())


def test_class_weights_equal_torchs() -> None:
    task = fit(LABELS, class_weight={"低": 2.0, "高": 0.5})
    outputs = torch.randn(1, 1, 6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2, -1, 2, 2]])
    expected = cross_entropy(outputs[0, 0], targets[0], weight=torch.tensor([1.0, 2.0, 0.5]), ignore_index=-1)
    torch.testing.assert_close(task.loss(outputs, targets)[0], expected)


def test_answer_losses_are_minus_log_probability_of_the_label() -> None:
    answers = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    losses = fit(LABELS).answer_losses(answers, torch.tensor([1, 1, -1]))
    # A probability of 0 counts as 1e-7: one sure mistake does not make the mean infinite.
    assert losses[:2].tolist() == pytest.approx([math.log(4), 7 * math.log(10)])
    assert losses[2].isnan()


def test_trivial_loss_is_the_entropy_of_the_labels() -> None:
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert fit(LABELS).trivial_loss(torch.tensor([1, 0, 2, -1, 1])) == pytest.approx(expected)


def test_rows_answer_the_likeliest_label_and_all_probabilities_in_their_order() -> None:
    (row,) = fit(LABELS, levels=("低", "中", "高")).rows(np.array([[0.2, 0.3, 0.5]], np.float32))
    assert row == {"value": "高", "probability": 0.5, "probabilities": {"低": 0.2, "中": 0.3, "高": 0.5}}
    assert list(row["probabilities"]) == ["低", "中", "高"]


def test_rows_list_the_ten_likeliest_of_many_labels() -> None:
    task = fit([f"c{i:02}" for i in range(12)])
    shares = np.arange(1, 13, dtype=np.float32)[None] / 78
    (row,) = task.rows(shares)
    assert row["value"] == "c11"
    assert list(row["probabilities"]) == [f"c{i:02}" for i in range(11, 1, -1)]
    assert row["probability"] == row["probabilities"]["c11"] == float(str(np.float32(12 / 78)))


def test_columns_are_a_probability_a_label_also_of_many() -> None:
    task = fit([f"c{i:02}" for i in range(12)])
    assert list(task.columns(np.full((1, 12), 1 / 12, np.float32))) == [f"proba__c{i:02}" for i in range(12)]


def test_predicted_labels_are_the_targets_own() -> None:
    answers = np.eye(3, dtype=np.float32)
    assert fit(LABELS, levels=("低", "中", "高")).values(answers).to_pylist() == ["低", "中", "高"]
    assert fit([1.5, 2.5, 3.5]).values(answers).to_pylist() == [1.5, 2.5, 3.5]


def test_probabilities_have_the_fewest_digits_that_tell_float32_apart() -> None:
    third = np.float32(1 / 3)
    (row,) = fit(LABELS).rows(np.array([[third, third, third]]))
    assert list(row["probabilities"].values()) == [0.33333334] * 3


def test_one_label_is_nothing_to_learn() -> None:
    with pytest.raises(SchemaError, match="'分类' is 'a' in every training row; there is nothing to learn"):
        fit(["a", "a", None])
    with pytest.raises(SchemaError, match="'分类' is 'a' in every training row; there is nothing to learn"):
        fit(["a", "a"], levels=("a", "b"))


def test_levels_given_twice_are_refused() -> None:
    # "3" and 3 are one label; the second had an output of its own that no row could teach.
    with pytest.raises(MtlBentoError, match=r"'分类'.*3"):
        fit(["3", "1"], levels=("3", 3, "1"))


def test_a_label_that_training_did_not_have_is_refused_in_one_line() -> None:
    with pytest.raises(SchemaError, match=r"^Target '分类' holds 'x', which is not one of its levels") as error:
        fit(LABELS).encode(cells(["低", "x"]))
    assert "\n" not in str(error.value)


def test_the_card_names_the_classes_in_their_own_type() -> None:
    card = fit([3, 1, 2], metric="log_loss").card()
    assert card["classes"] == [1, 2, 3]
    assert card["kind"] == "multiclass"
    assert card["metric"] == "log_loss"


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=4))
def test_many_numbers_have_the_digits_that_a_few_have(numbers: list[float]) -> None:
    alone = shortest(np.array(numbers, np.float64))
    assert alone == [float(str(np.float32(number))) for number in numbers]
    assert shortest(np.array([*numbers, *range(FEW)], np.float64)) == [*alone, *range(FEW)]


def test_labels_are_said_in_the_type_of_the_answers() -> None:
    assert fit([3, 1, None, 3]).said(cells([3.0, None, 1.0])) == [3, None, 1]
