"""A class for each cell of a grid."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import cross_entropy

from mtl_bento.columns.numeric import NumericColumn
from mtl_bento.errors import SchemaError, SpecError
from mtl_bento.tasks.grid import Grid, GridSpec

CARS: list[Any] = [[[0, 1, 1], [0, -1, None]], None, [[0, 0, 0], [1, 1, 0]]]
FLAT: list[Any] = [[0, 1, 1, 0, -1, None], None, [0, 0, 0, 1, 1, 0]]
CODES = [[0, 1, 1, 0, -1, -1], [-1] * 6, [0, 0, 0, 1, 1, 0]]
SCENE: list[Any] = [[["road", "car"]], [["sky", None]], [["car", "car"]]]


def cells(labels: Any, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(labels, kind)])


def fit(labels: Any, **fields: Any) -> Grid:
    return Grid(Grid.fit(GridSpec.model_validate({"name": "cars", **fields}), cells(labels)))


def test_cells_are_codes_row_by_row_and_unknown_ones_minus_1() -> None:
    task = fit(CARS)
    assert task.spec.shape == (2, 3)
    assert task.spec.levels == (0, 1)
    assert task.n_outputs == 1
    assert task.spec.frequencies == (0.6, 0.4)
    assert task.encode(cells(CARS)).tolist() == CODES
    assert task.known(torch.tensor(CODES)).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(FLAT, pa.list_(pa.int8(), 6)),
        pa.array(FLAT, pa.list_(pa.float64())),
        pa.array(CARS),
        pa.array([json.dumps(cell) if cell else "" for cell in CARS]),
    ],
)
def test_grids_are_flat_or_nested_lists_or_text(labels: pa.Array) -> None:
    assert fit(labels, shape=[2, 3]).encode(cells(labels)).tolist() == CODES


def test_minus_1_is_a_label_where_the_levels_name_it() -> None:
    task = fit([[[0, -1]], [[-1, -1]]], levels=[-1, 0])
    assert task.encode(cells([[[0, -1]], [[None, -1]]])).tolist() == [[1, 0], [-1, 0]]


def test_labels_may_be_texts() -> None:
    task = fit(SCENE)
    assert task.spec.levels == ("car", "road", "sky")
    assert task.n_outputs == 3
    assert task.encode(cells(SCENE)).tolist() == [[1, 0], [2, -1], [0, 0]]


def test_loss_is_the_mean_of_a_pictures_known_cells_then_of_pictures() -> None:
    # Logits 0: log 2 a cell, however many are known; log 3 of the probability 1/3.
    task = fit(CARS)
    assert task.loss(torch.zeros(1, 1, 3, 6, 1), torch.tensor([CODES])).item() == pytest.approx(math.log(2))
    outputs = torch.zeros(1, 1, 2, 6, 1, dtype=torch.float64)
    outputs[0, 0, 0, 0] = math.log(2)  # the probability of 1 is 2/3: -log(1/3) at the first of four known cells
    expected = ((math.log(3) + 3 * math.log(2)) / 4 + math.log(2)) / 2
    assert task.loss(outputs, torch.tensor([[CODES[0], CODES[2]]])).item() == pytest.approx(expected)


def test_loss_of_several_labels_is_torchs_cross_entropy() -> None:
    outputs = torch.randn(2, 3, 2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[[1, 0], [2, -1]], [[0, -1], [-1, 2]]])
    losses = fit(SCENE).loss(outputs, targets)
    for k in range(2):
        rows = [cross_entropy(outputs[k, m, b], targets[k, b], ignore_index=-1) for m in range(3) for b in range(2)]
        torch.testing.assert_close(losses[k], torch.stack(rows).mean())


def test_trivial_loss_is_the_entropy_of_cells_each_picture_counting_once() -> None:
    # Shares of 1: 2/4 in the one picture, 2/6 in the other: 5/12 of all.
    share = 5 / 12
    expected = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert fit(CARS).trivial_loss(torch.tensor(CODES)) == pytest.approx(expected)


def test_answers_lie_side_by_side_those_of_a_cell_together() -> None:
    outputs = torch.tensor([0.0, math.log(3)]).view(1, 1, 1, 2, 1)
    assert fit([[[0, 1]], [[1, 1]]]).activate(outputs).tolist() == [[[pytest.approx([0.5, 0.75])]]]
    outputs = torch.tensor([[0.0, 0.0, math.log(2)], [0.0, 0.0, 0.0]]).view(1, 1, 1, 2, 3)
    assert fit(SCENE).activate(outputs).flatten().tolist() == pytest.approx([0.25, 0.25, 0.5, 1 / 3, 1 / 3, 1 / 3])


def test_rows_are_grids_of_labels_and_of_each_labels_probabilities() -> None:
    (row,) = fit([[[0, 1]], [[1, 1]]]).rows(np.array([[0.25, 0.75]], np.float32))
    assert row == {"value": [[0, 1]], "probabilities": {"0": [[0.75, 0.25]], "1": [[0.25, 0.75]]}}
    (row,) = fit(SCENE).rows(np.array([[0.5, 0.25, 0.25, 0.125, 0.25, 0.625]], np.float32))
    assert row["value"] == [["car", "sky"]]
    assert row["probabilities"] == {"car": [[0.5, 0.125]], "road": [[0.25, 0.25]], "sky": [[0.25, 0.625]]}


def test_values_and_columns_are_lists_of_rows() -> None:
    task = fit(CARS)
    answers = np.array([[0.25, 0.75, 1.0, 0.0, 0.5, 0.75]], np.float32)
    assert task.values(answers).to_pylist() == [[[0, 1, 1], [0, 0, 1]]]
    assert task.columns(answers)["proba__1"].to_pylist() == [[[0.25, 0.75, 1.0], [0.0, 0.5, 0.75]]]
    assert task.scored(answers).shape == (1, 6, 2)


class Picture(NumericColumn):
    """A column with a grid, as pictures have."""

    grid: tuple[int, int] = (8, 8)


def test_a_picture_gets_the_grid_of_its_labels() -> None:
    task = fit(CARS)
    nothing = pa.table({}), np.zeros(0, int)
    assert task.suited(Picture(name="photo"), *nothing) == Picture(name="photo", grid=(2, 3))
    assert task.suited(NumericColumn(name="age"), *nothing) == NumericColumn(name="age")


def test_flat_labels_without_a_shape_are_one_line_with_an_example() -> None:
    with pytest.raises(SpecError) as error:
        fit([[0, 1] * 150])
    assert str(error.value) == (
        "Target 'cars' holds flat lists of 300 cells; give the grid its shape in mtl.yaml, "
        "`cars: {kind: grid, shape: [rows, columns]}`, such as shape: [15, 20]."
    )


@pytest.mark.parametrize(
    ("cell", "wrong"),
    [
        ([0, 1, 1], r"row 1: \[0, 1, 1\] does not fit \(3 cells\); a grid here has 2 rows of 3 labels"),
        ([[0, 1], [1, 1], [0, 0]], r"row 1: .* does not fit \(3 cells\); a grid here has 2 rows of 3 labels"),
        ("car", r"row 1: 'car' does not fit \(no list\); a grid here has 2 rows of 3 labels, nested or as one flat"),
    ],
)
def test_another_shape_is_one_line(cell: Any, wrong: str) -> None:
    task = fit(CARS)
    labels = pa.array([json.dumps(CARS[0]), cell if isinstance(cell, str) else json.dumps(cell)])
    with pytest.raises(SchemaError, match=f"^Target 'cars', {wrong}"):
        task.encode(cells(labels))


def test_what_is_no_grid_is_one_line() -> None:
    with pytest.raises(SchemaError, match=r"'cars', row 0: 3 is no grid; a grid is a list of rows, such as \[\[0, 1\]"):
        fit([3, 4])


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"'cars' holds '2', which is not one of its levels \(0, 1\)"):
        fit(CARS).encode(cells([[[0, 1, 2], [0, 0, 0]]]))
    with pytest.raises(SchemaError, match=r"'cars' holds '1', which is not one of its levels \(0, 2\)"):
        fit(CARS, levels=[0, 2])


def test_labels_that_teach_nothing_are_refused() -> None:
    with pytest.raises(SchemaError, match="'cars' is 0 in every known cell in every training row"):
        fit([[[0, -1]], [[0, 0]]])
    with pytest.raises(SchemaError, match="'cars' is missing in every training row"):
        fit([[[-1, -1]], None])
    with pytest.raises(SchemaError, match="'cars' is missing in every training row"):
        fit([None, None])
    with pytest.raises(SchemaError, match="'cars' is the same grid in every training row"):
        fit([[[0, 1]], [[0, 1]]])


def test_labels_are_said_as_answers_are_and_unknown_cells_are_none() -> None:
    task = fit(CARS)
    assert task.said(cells(CARS)) == [[[0, 1, 1], [0, None, None]], None, [[0, 0, 0], [1, 1, 0]]]
    answered = task.said(cells(task.values(np.array([[0.1, 0.9, 0.9, 0.2, 0.6, 0.1]])).to_pylist()))
    assert answered == [task.rows(np.array([[0.1, 0.9, 0.9, 0.2, 0.6, 0.1]]))[0]["value"]]


def test_a_grid_of_the_first_label_alone_has_nothing_to_be_found() -> None:
    targets = torch.tensor([[0, 0, -1], [0, 1, 0], [-1, -1, -1]])
    assert fit(CARS).empty(targets).tolist() == [True, False, False]
