"""What the examples share: the rows of a shorter table, how rows fall into parts, and files of packages."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np

from mtl_bento.errors import MissingExtraError, SpecError

PARTS = ("train", "val", "test")


def asked(rows: int | None) -> int | None:
    """Return how many rows are asked for, None for all; raises SpecError where it is under 1."""
    if rows is not None and rows < 1:
        raise SpecError(f"--rows is {rows}; give 1 or more.")
    return rows


def spaced(total: int, rows: int | None) -> np.ndarray:
    """Return the numbers of all rows, or of `rows` of them, evenly spaced."""
    if rows is None or rows >= total:
        return np.arange(total)
    return np.linspace(0, total - 1, rows).astype(np.int64)


def parts(total: int, rng: np.random.Generator) -> np.ndarray:
    """Return a part for each of so many things [total], at random: 70 % train, 10 % val, 20 % test."""
    bounds = (np.array([0.7, 0.8]) * total).round().astype(np.int64)
    held = np.array(PARTS)[np.searchsorted(bounds, np.arange(total), side="right")]
    return np.asarray(rng.permutation(held))


def locate(name: str, *, package: str, example: str, extra: str) -> Path:
    """Return a file of an installed package, which is not imported; raises MissingExtraError where it is not there."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = next((Path(str(file.locate())) for file in files if file.name == name), None)
    if found is None or not found.is_file():
        raise missing(package, example=example, extra=extra)
    return found


def missing(package: str, *, example: str, extra: str) -> MissingExtraError:
    """Return what to say where the package of an example is not installed."""
    return MissingExtraError(
        f"The example {example!r} needs the package {package}; install it with `pip install 'mtl-bento[{extra}]'`."
    )
