"""Specs and the marks on their fields."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from mtl_bento.spec import Finite, MustMatch, Searched, Spec


class Example(Spec):
    kind: Literal["example"] = "example"
    width: Annotated[int, Field(ge=1), Searched(32, 256, log=True, step=1)] = 128
    experts: Annotated[int, Searched(2, 16, differs=False)] = 8
    batch: Annotated[int, MustMatch] = 256
    steps: Annotated[int, MustMatch()] = 10
    note: str = ""
    rate: Finite = 0.0


class Derived(Example):
    kind: Literal["example"] = "example"
    own: Annotated[float, Searched(0, 1)] = 0.5


def test_searched_fields_are_those_with_the_mark_also_of_a_base_class() -> None:
    assert Example.searched() == {
        "width": Searched(32, 256, log=True, step=1),
        "experts": Searched(2, 16, differs=False),
    }
    assert list(Derived.searched()) == ["width", "experts", "own"]


def test_fields_must_match_by_either_mark_in_order_of_the_fields() -> None:
    assert Example.must_match() == ("experts", "batch", "steps")


def test_specs_share_a_stack_where_class_and_marked_fields_agree() -> None:
    assert Example().stack_key() == Example(width=32, note="x").stack_key()
    assert Example().stack_key() != Example(experts=4).stack_key()
    assert Example().stack_key() != Example(batch=128).stack_key()
    assert Example().stack_key() != Derived().stack_key()


def test_specs_are_frozen_and_equal_by_their_fields() -> None:
    assert Example(width=64) == Example(width=64)
    with pytest.raises(ValidationError, match="frozen"):
        Example().width = 3


@pytest.mark.parametrize("fields", [{"widht": 3}, {"width": 0}, {"rate": float("nan")}, {"rate": float("inf")}])
def test_unknown_keys_and_values_out_of_range_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Example.model_validate(fields)
