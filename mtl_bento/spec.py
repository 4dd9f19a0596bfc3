"""Specs: frozen data that says what to build, and marks on their fields that say what a search may do with them.

`Searched` is our own mark, so that the served image needs no Optuna; `mtl_bento_search.space` turns marks into
`trial.suggest_*` calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Searched:
    """What a search may do with a field: a range `low` to `high`, or `choices`.

    Args:
        low, high: bounds of a range, both included; `log=True` searches the logarithm; `step` is for whole numbers.
        choices: the values to choose from, instead of a range.
        differs: False where all members of one stack must agree on the field, because zero padding cannot hide a
            difference (the number of experts of a softmax, TabM's M).
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: int | None = None
    choices: tuple[Any, ...] | None = None
    differs: bool = True


class MustMatch:
    """Marks a field that is not searched by default and on which all members of one stack must agree."""


class Spec(BaseModel):
    """Frozen data, unknown keys forbidden, equal when its fields are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some fields changed; what was computed from the old ones and kept stays behind."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @classmethod
    def searched(cls) -> dict[str, Searched]:
        """Return the marks of the fields that a search may set, by field name."""
        return {name: mark for name, field in cls.model_fields.items() if (mark := _mark(field)) is not None}

    @classmethod
    def must_match(cls) -> tuple[str, ...]:
        """Return the fields on which all members of one stack must agree: those marked so."""
        marks = cls.searched()
        unsearched = {
            name
            for name, field in cls.model_fields.items()
            if any(isinstance(item, MustMatch) or item is MustMatch for item in field.metadata)
        }
        return tuple(n for n in cls.model_fields if n in unsearched or (n in marks and not marks[n].differs))

    def stack_key(self) -> tuple[Any, ...]:
        """Return what two specs must have in common to share a stack: their class and the fields marked so."""
        return (type(self).__module__, type(self).__qualname__, *(getattr(self, name) for name in self.must_match()))


def _mark(field: FieldInfo) -> Searched | None:
    return next((item for item in field.metadata if isinstance(item, Searched)), None)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
