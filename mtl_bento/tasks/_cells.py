"""Labels that lie in an input: cells that are lists, however a file format kept them, and the picture spoken of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mtl_bento.columns._base import Column
from mtl_bento.errors import SchemaError, SpecError, listing
from mtl_bento.table import plain


def lists(values: pa.ChunkedArray) -> list[Any]:
    """Return the cells as Python holds them, None where missing; text such as "[0.5, 1]" as the list it spells.

    Text that spells no list stays text; an empty one is missing, as in inputs.
    """
    return [_spelled(cell) if isinstance(cell, str) else cell for cell in plain(values).to_pylist()]


def _spelled(cell: str) -> Any:
    if not cell.strip():
        return None
    if not cell.lstrip().startswith("["):
        return cell
    try:
        return json.loads(cell)  # NaN is read too: pandas and we write it
    except ValueError:
        return cell


def refusal(name: str, row: int, cell: Any, *, wrong: str, wanted: str) -> SchemaError:
    """Return the error for one bad label: what it is, what is expected, an example."""
    shown = repr(cell)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return SchemaError(f"Target {name!r}, row {row}: {shown} {wrong}; {wanted}.")


def all_missing(name: str) -> SchemaError:
    """Return the error for a target without a label."""
    return SchemaError(f"Target {name!r} is missing in every training row; label some rows or leave it out.")


def all_alike(name: str, what: str) -> SchemaError:
    """Return the error for a target whose labels teach nothing."""
    return SchemaError(f"Target {name!r} is {what} in every training row; there is nothing to learn, leave it out.")


def picture(target: str, named: str | None, columns: Sequence[Column]) -> str | None:
    """Return the picture that a target speaks of: the one named, else the only one; None where there are several.

    Raises SpecError where an input is named that is no picture.
    """
    pictures = [column.name for column in columns if "grid" in type(column).model_fields]
    if named is not None and named not in pictures:
        raise SpecError(
            f"Target {target!r} speaks of {named!r}, which is no picture; "
            f"allowed: {listing(map(repr, pictures)) or 'none, there is no picture'}."
        )
    return pictures[0] if named is None and len(pictures) == 1 else named
