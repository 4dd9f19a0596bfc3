"""What a table and a config make a search of."""

from __future__ import annotations

import pyarrow as pa
import pytest

from mtl_bento.errors import SpecError
from mtl_bento_search.problem import make_task


def test_a_target_of_lists_asks_what_they_are() -> None:
    # It raised ArrowNotImplementedError.
    with pytest.raises(SpecError) as error:
        make_task("car", {}, pa.chunked_array([[[0.5, 0.5, 0.1, 0.1], None]]))
    assert str(error.value).startswith("Target 'car' holds lists; say what they are, `car: {kind: KIND}`; kinds: ")
    assert "box" in str(error.value)


def test_a_target_of_lists_is_what_the_user_says() -> None:
    task = make_task("car", {"kind": "box"}, pa.chunked_array([[[0.5, 0.5, 0.1, 0.1], None]]))
    assert task.spec.kind == "box"
    grid = make_task("road", {"kind": "grid", "shape": [1, 2]}, pa.chunked_array([[[0, 1], [1, 1]]]))
    assert grid.spec.shape == (1, 2)
