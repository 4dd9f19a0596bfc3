"""What a table and a config make a search of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtl_bento.columns.image import ImageColumn
from mtl_bento.errors import SpecError
from mtl_bento.schema import Schema
from mtl_bento_search.config import parse_config
from mtl_bento_search.problem import make_problem, make_task, suited


def test_a_target_called_as_an_answer_of_another_is_refused() -> None:
    table = pa.table({"a": [0.5, 1.0] * 20, "x": ["p", "q"] * 20, "x__set": ["r", "s"] * 20})
    with pytest.raises(SpecError, match=r"^Target 'x__set' is called as .* \(x__\.\.\.\); rename one of the two\.$"):
        make_problem(parse_config({"targets": {"x": {}, "x__set": {}}}), data=table)


def test_a_target_of_lists_asks_what_they_are() -> None:
    # It raised ArrowNotImplementedError.
    with pytest.raises(SpecError) as error:
        make_task("car", {}, pa.chunked_array([[[0.5, 0.5, 0.1], None]]))
    assert str(error.value).startswith("Target 'car' holds lists; say what they are, `car: {kind: KIND}`; kinds: ")
    assert "box" in str(error.value)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([[0.5, 0.5, 0.1, 0.1], None, [0.4, 0.5, 0.1, 0.1]], "box"),
        ([dict(zip("xywh", [0.5, 0.5, 0.1, 0.1], strict=True)), dict.fromkeys("xywh", 0.25)], "box"),
        (["[0.5, 0.5, 0.1, 0.1]", "[0.4, 0.5, 0.1, 0.1]"], "box"),
        ([[["sky", "car"]], [["car", "car"]]], "grid"),
        ([[[0, 1], [1, -1]], [[1, 1], None]], None),
        ([[[0, 1], [1, -1]], [[1, 1], [0, 0]]], "grid"),
        (["O B-city I-city", None, "O"], "tagging"),
        ([["O", "B-city"], ["O"]], "tagging"),
        ([[{"start": 0, "end": 4, "label": "city"}], []], "tagging"),
        (["O", "B-city", "O"], "binary"),
        (["good", "bad", "fair"], "multiclass"),
        ([0.5, 0.25, 0.125], "regression"),
    ],
)
def test_boxes_grids_and_tags_are_recognised(labels: list[Any], kind: str | None) -> None:
    values = pa.chunked_array([pa.array(labels)])
    if kind is None:
        with pytest.raises(SpecError, match="holds lists; say what they are"):
            make_task("y", {}, values)
    else:
        assert make_task("y", {}, values).spec.kind == kind


def test_flat_lists_of_whole_numbers_are_a_grid_whose_shape_is_asked_for() -> None:
    with pytest.raises(SpecError, match=r"give the grid its shape in mtl.yaml, .* such as shape: \[2, 3\]\."):
        make_task("road", {}, pa.chunked_array([[[0, 1, 1, 0, 0, 1], [1] * 6]]))


GRIDS = pa.table({"photo": ["a", "b"], "car": [[0, 1], [1, 1]], "road": [[0, 1, 1], [1, 1, 0]]})
PHOTO = ImageColumn(name="photo", backbone="pixels", size=(32, 64), grid=(1, 2))


def grids(shape: tuple[int, int]) -> list[Any]:
    given = {"car": {"kind": "grid", "shape": (1, 2)}, "road": {"kind": "grid", "shape": shape}}
    table = GRIDS.set_column(2, "road", pa.array([[0, 1, 1][: shape[1]], [1, 1, 0][: shape[1]]]))
    return [make_task(name, options, table[name]) for name, options in given.items()]


def schema_for(tasks: list[Any], chosen: Any) -> Schema:
    return suited(Schema(columns=(PHOTO,)), tasks, GRIDS, rows=np.arange(2), chosen=chosen)


def test_grids_of_two_shapes_on_one_picture_are_refused() -> None:
    # The last one won, and the first was read at the wrong places.
    with pytest.raises(SpecError) as error:
        schema_for(grids((1, 3)), {})
    assert str(error.value) == (
        "Target 'road' needs input 'photo' as 32 x 64 pixels, 1 x 3 cells, for pixels; target 'car' as 32 x 64 "
        "pixels, 1 x 2 cells, for pixels. Give both one shape, or search them apart."
    )
    assert schema_for(grids((1, 2)), {}).columns == (PHOTO,)


def test_what_the_user_chose_of_an_input_is_not_changed_by_its_tasks() -> None:
    other = PHOTO.model_copy(update={"grid": (2, 2)})
    held = suited(Schema(columns=(other,)), grids((1, 2)), GRIDS, rows=np.arange(2), chosen={})
    assert held.columns == (PHOTO,)
    kept = {"photo": {"kind": "image", "grid": [2, 2]}}
    assert suited(Schema(columns=(other,)), grids((1, 2)), GRIDS, rows=np.arange(2), chosen=kept).columns == (other,)


def test_a_target_of_lists_is_what_the_user_says() -> None:
    task = make_task("car", {"kind": "box"}, pa.chunked_array([[[0.5, 0.5, 0.1, 0.1], None]]))
    assert task.spec.kind == "box"
    grid = make_task("road", {"kind": "grid", "shape": [1, 2]}, pa.chunked_array([[[0, 1], [1, 1]]]))
    assert grid.spec.shape == (1, 2)
