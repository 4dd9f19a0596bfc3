"""The place of one object in a picture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtl_bento.columns.image import ImageColumn
from mtl_bento.columns.numeric import NumericColumn
from mtl_bento.errors import SchemaError, SpecError
from mtl_bento.tasks.box import Box, BoxSpec, overlap

NAN = float("nan")
BOX = [0.5, 0.4, 0.2, 0.3]
BOXES: list[Any] = [BOX, None, [NAN] * 4, [0.25, 0.25, 0.5, 0.5]]


def cells(labels: Any, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(labels, kind)])


def fit(labels: Any = BOXES, **fields: Any) -> Box:
    return Box(Box.fit(BoxSpec.model_validate({"name": "car", **fields}), cells(labels)))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_no_object_is_known_and_four_nan_are_not() -> None:
    task = fit()
    expected = [[1, *BOX], [0] + [NAN] * 4, [NAN] * 5, [1, 0.25, 0.25, 0.5, 0.5]]
    np.testing.assert_array_equal(task.encode(cells(BOXES)), np.array(expected, np.float32))
    assert task.known(torch.from_numpy(task.encode(cells(BOXES)))).tolist() == [True, True, False, True]
    assert task.spec.share == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([BOX, None, [NAN] * 4], pa.list_(pa.float32(), 4)),
        pa.array([dict(zip("xywh", BOX, strict=True)), None, dict.fromkeys("xywh", NAN)]),
        pa.array([str(BOX), "", "[NaN, NaN, NaN, NaN]"]),
        pa.array([BOX, None, [None] * 4]),
    ],
)
def test_boxes_are_lists_structs_or_text(labels: pa.Array) -> None:
    encoded = fit().encode(cells(labels))
    np.testing.assert_allclose(encoded, [[1, *BOX], [0] + [NAN] * 4, [NAN] * 5])


def test_loss_is_the_objects_and_the_boxs_by_hand() -> None:
    # The answer is the truth moved by half its width: IoU 1/3, the box around both is 1.5 wide: GIoU = 1/3 - 0.
    outputs = torch.tensor([0.0, *map(logit, (0.5, 0.5, 0.2, 0.2))], dtype=torch.float64).view(1, 1, 1, 5)
    targets = torch.tensor([[[1, 0.6, 0.5, 0.2, 0.2]]], dtype=torch.float64)
    expected = math.log(2) + 0.1 / 4 + 2 / 3
    assert fit().loss(outputs, targets).item() == pytest.approx(expected, abs=1e-6)
    weights = torch.tensor([[0.5, 3.0]], dtype=torch.float64)
    weighed = fit().mean_loss(outputs, targets, None, weights)
    assert weighed.item() == pytest.approx(0.5 * math.log(2) + 3 * (0.025 + 2 / 3), abs=1e-6)
    nothing = torch.tensor([[[0] + [NAN] * 4]], dtype=torch.float64)
    assert fit().loss(outputs, nothing).item() == pytest.approx(math.log(2))


def test_boxes_that_lie_apart_draw_each_other_near() -> None:
    # IoU is 0 there and has no gradient; the generalised one has: 4 squares of which 2 are empty, GIoU = -1/2.
    outputs = torch.tensor([9.0, *map(logit, (0.125, 0.5, 0.25, 0.25))]).view(1, 1, 1, 5).requires_grad_()
    targets = torch.tensor([[[1, 0.875, 0.5, 0.25, 0.25]]])
    loss = fit().loss(outputs, targets)
    assert loss.item() == pytest.approx(0.75 / 4 + 1.5, abs=1e-3)
    (gradient,) = torch.autograd.grad(loss.sum(), outputs)
    assert gradient[0, 0, 0, 1] < -0.05


def test_coordinates_of_no_object_get_no_gradient() -> None:
    outputs = torch.randn(1, 1, 2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = fit().loss(outputs, torch.from_numpy(fit().encode(cells([None, BOX])))[None])
    (gradient,) = torch.autograd.grad(loss.sum(), outputs)
    assert gradient[0, 0, 0, 0] != 0
    assert not gradient[0, 0, 0, 1:].any()
    assert gradient[0, 0, 1].all()


def test_trivial_loss_is_that_of_the_mean_box_and_the_share_of_objects() -> None:
    task = fit()
    labels = [[0.4, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2], None, None]
    # The mean lies half a width from either: IoU 1/3, as above; there is an object in half of the rows.
    expected = math.log(2) + (0.025 + 2 / 3) / 2
    assert task.trivial_loss(torch.from_numpy(task.encode(cells(labels)))) == pytest.approx(expected, abs=1e-5)


def test_overlap_by_hand() -> None:
    one = np.array([[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]])
    other = np.array([[0.5, 0.5, 0.4, 0.4], [0.3, 0.2, 0.2, 0.2], [0.5, 0.5, 0.4, 0.2], [0.9, 0.9, 0.1, 0.1]])
    assert overlap(one, other).tolist() == pytest.approx([1, 1 / 3, 0.04 / 0.12, 0])


ANSWERS = np.array([[0.75, 0.5, 0.5, 0.5, 0.25], [0.25, 0.5, 0.5, 0.5, 0.25]], np.float32)


def test_rows_are_the_box_or_null_and_the_probability_of_the_object() -> None:
    assert fit().rows(ANSWERS) == [
        {"value": {"x": 0.5, "y": 0.5, "w": 0.5, "h": 0.25}, "probability": 0.75},
        {"value": None, "probability": 0.25, "box": {"x": 0.5, "y": 0.5, "w": 0.5, "h": 0.25}},
    ]


def test_values_are_lists_of_four_or_null_and_columns_hold_the_box_that_there_would_be() -> None:
    task = fit()
    assert task.values(ANSWERS).to_pylist() == [[0.5, 0.5, 0.5, 0.25], None]
    assert task.values(ANSWERS).type == pa.list_(pa.float32())
    columns = {name: column.to_pylist() for name, column in task.columns(ANSWERS).items()}
    half = [0.5, 0.5]
    assert columns == {"probability": [0.75, 0.25], "x": half, "y": half, "w": half, "h": [0.25, 0.25]}


def test_answers_do_not_reach_beyond_the_picture() -> None:
    # From -.125 to .375 across, from .75 to 1.25 down: what is inside is 0 to .375 and .75 to 1.
    (row,) = fit().rows(np.array([[0.75, 0.125, 1.0, 0.5, 0.5]], np.float32))
    assert row["value"] == {"x": 0.1875, "y": 0.875, "w": 0.375, "h": 0.25}


@pytest.mark.parametrize(
    ("cell", "wrong"),
    [
        ([120.0, 80.0, 40.0, 30.0], r"\[120\.0, 80\.0, 40\.0, 30\.0\] is in pixels, it seems \(a number is above 1\)"),
        ([0.6, 0.6, 0.9, 0.9], r"\[0\.6, 0\.6, 0\.9, 0\.9\] reaches beyond the picture: two corners, it seems"),
        ([0.1, 0.1, 0.4, 0.2], "reaches beyond the picture: two corners, it seems"),
        ([-0.5, 0.5, 0.1, 0.1], "has a number below 0"),
        ([0.5, 0.5, 0.0, 0.1], "has no size"),
        ([0.5, NAN, 0.1, 0.1], "is partly missing"),
        ([0.5, 0.5, 0.1], "is no box"),
        ("0.5 0.5 0.1 0.1", "is no box"),
        ({"left": 0.1, "top": 0.2, "right": 0.3, "bottom": 0.4}, "is no box"),
    ],
)
def test_another_format_is_one_line_that_says_which_is_expected(cell: Any, wrong: str) -> None:
    with pytest.raises(SchemaError, match=wrong) as error:
        fit([cell, None])
    message = str(error.value)
    assert message.startswith("Target 'car', row 0: ")
    assert (
        "a box is [centre x, centre y, width, height] as shares of the picture, such as [0.5, 0.4, 0.2, 0.3]" in message
    )
    assert "null where there is no object, four NaN where the box is not known" in message
    assert "\n" not in message


def test_the_row_of_a_bad_box_is_named() -> None:
    with pytest.raises(SchemaError, match="Target 'car', row 2: "):
        fit([BOX, None, [1.0, 2.0, 3.0, 4.0]])


def test_labels_that_teach_nothing_are_refused() -> None:
    with pytest.raises(SchemaError, match=r"'car' has no box in any training row \(null is no object\)"):
        fit([None, None, [NAN] * 4])
    with pytest.raises(SchemaError, match="'car' is not known in any training row"):
        fit([[NAN] * 4] * 2)
    with pytest.raises(SchemaError, match=r"'car' is \[0\.5, 0\.4, 0\.2, 0\.3\] in every training row"):
        fit([BOX, BOX])
    assert fit([BOX, None]).spec.share == 0.5


def test_labels_are_said_as_answers_are_and_no_object_is_nothing_to_be_found() -> None:
    task = fit()
    there = dict(zip("xywh", BOX, strict=True))
    assert task.said(cells(BOXES)) == [there, None, None, {"x": 0.25, "y": 0.25, "w": 0.5, "h": 0.5}]
    assert set(task.rows(np.array([[0.9, *BOX]], np.float32))[0]["value"]) == set(there)
    assert task.empty(torch.from_numpy(task.encode(cells(BOXES)))).tolist() == [False, True, False, False]


def test_the_only_picture_is_the_one_that_it_speaks_of_and_what_is_none_is_refused() -> None:
    photo, other = (ImageColumn(name=name, size=(32, 32), grid=(1, 1)) for name in ("photo", "other"))
    size = NumericColumn(name="size")
    assert fit().settled([size, photo]).reads == "photo"
    assert fit().settled([other, photo]).reads is None
    assert fit(image="photo").settled([other, photo]).reads == "photo"
    with pytest.raises(SpecError, match=r"Target 'car' speaks of 'size', which is no picture; allowed: 'photo'\."):
        fit(image="size").settled([size, photo])
