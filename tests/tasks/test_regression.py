"""Numbers."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import mse_loss

from mtl_bento.errors import SchemaError
from mtl_bento.tasks.regression import Regression, RegressionSpec


def cells(labels: Any, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(labels, kind)])


def fit(labels: Any, kind: pa.DataType | None = None) -> Regression:
    return Regression(Regression.fit(RegressionSpec(name="hours"), cells(labels, kind)))


def test_labels_are_standardised_by_the_training_labels() -> None:
    # Mean of 1, 2, 3 and 6 is 3, their variance (4 + 1 + 0 + 9) / 4 = 3.5.
    task = fit([1.0, 2.0, None, 3.0, 6.0])
    assert task.spec.mean == 3
    assert task.spec.spread == pytest.approx(3.5**0.5)
    encoded = task.encode(cells([3.0, 3 + 3.5**0.5, None, float("nan")]))
    assert encoded.dtype == np.float32
    assert encoded[:2].tolist() == pytest.approx([0, 1])
    assert np.isnan(encoded[2:]).all()


def test_loss_is_the_mean_squared_error_of_labelled_rows() -> None:
    outputs = torch.tensor([1.0, 2.0, 5.0]).view(1, 1, 3, 1)
    # ((1 - 0)^2 + (2 - 4)^2) / 2; the third row has no label.
    assert fit([1.0, 2.0]).loss(outputs, torch.tensor([[0.0, 4.0, float("nan")]])).tolist() == [2.5]


def test_loss_equals_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 3, 6, 1, generator=generator, dtype=torch.float64)
    targets = torch.randn(2, 6, generator=generator)
    losses = fit([1.0, 2.0]).loss(outputs, targets)
    for k in range(2):
        torch.testing.assert_close(losses[k], mse_loss(outputs[k, ..., 0], targets[k].double().expand(3, -1)))


def test_trivial_loss_is_1_on_the_training_labels() -> None:
    task = fit([1.0, 2.0, None, 3.0, 6.0])
    assert task.trivial_loss(torch.from_numpy(task.encode(cells([1.0, 2.0, None, 3.0, 6.0])))) == pytest.approx(1)


def test_answer_losses_are_squared_errors() -> None:
    losses = fit([1.0, 2.0]).answer_losses(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, float("nan")]))
    assert losses[0] == 4
    assert losses[1].isnan()


def test_predictions_are_in_the_targets_own_unit_and_float_type() -> None:
    answers = np.array([[0.0], [1.0]], np.float32)
    assert fit([10.0, 30.0]).values(answers).to_pylist() == [20, 30]
    assert fit([10.0, 30.0]).values(answers).type == pa.float64()
    assert fit([10.0, 30.0], pa.float32()).values(answers).type == pa.float32()
    assert fit([10, 30], pa.int16()).values(answers).type == pa.float64()  # an hour and a half is no whole number


def test_rows_answer_the_shortest_number() -> None:
    task = Regression(RegressionSpec(name="hours", mean=41.2, spread=1.0))
    assert task.rows(np.array([[0.0]], np.float32)) == [{"value": 41.2}]


def test_there_is_no_column_beside_the_value() -> None:
    assert fit([1.0, 2.0]).columns(np.zeros((2, 1), np.float32)) == {}


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([1, 3, None], pa.int32()),
        ([1.0, 3.0, None], pa.float16()),
        (["1", "3.0", None], pa.string()),
        (["1", "3.0", None], pa.string_view()),
        ([Decimal("1.0"), Decimal("3.0"), None], pa.decimal128(5, 1)),
        ([1, 3, None], pa.dictionary(pa.int8(), pa.int64())),
        (["1", "3", ""], pa.string()),
    ],
)
def test_numbers_of_every_arrow_type_are_taken(labels: Any, kind: pa.DataType) -> None:
    task = fit(labels, kind)
    assert (task.spec.mean, task.spec.spread) == (2, 1)
    np.testing.assert_array_equal(task.encode(cells(labels, kind)), np.array([-1, 1, np.nan], np.float32))


def test_true_and_false_are_1_and_0() -> None:
    assert fit([True, False, None]).spec.mean == 0.5


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([1.0, float("inf")], None, "'hours', row 1: infinity is not a label; clear the cell or correct it"),
        (["1", "old"], None, r"'hours', row 1: 'old' is not a number; .* Use 'hours:multiclass' for labels"),
        ([[1.0], [2.0]], None, r"'hours', row 0: \[1.0\] is not a number"),
        ([dt.date(2020, 1, 1), None], None, "'hours', row 0: .*is not a number"),
        ([5.0, 5.0, None], None, "'hours' is 5 in every training row; there is nothing to learn, leave it out"),
        ([None, None], pa.float64(), "'hours' is missing in every training row; label some rows or leave it out"),
        ([None, None], pa.null(), "'hours' is missing in every training row; label some rows or leave it out"),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels: Any, kind: pa.DataType | None, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        fit(labels, kind)


def test_numbers_far_from_zero_keep_their_differences() -> None:
    labels = [1e9, 1e9 + 1, 1e9 + 2]
    assert fit(labels).encode(cells(labels)).tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5], abs=1e-6)


def test_labels_beyond_what_squares_hold_are_refused() -> None:
    # Their spread was infinite, and every label 0.
    with pytest.raises(SchemaError, match="hours"):
        fit([-1e200, 1e200])


def test_labels_are_said_in_their_own_unit_and_missing_ones_are_none() -> None:
    assert fit([1.0, 2.0, None, 6.0]).said(cells([2.5, None, float("nan")])) == [2.5, None, None]
