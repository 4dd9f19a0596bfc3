"""The test rows that a report shows, as they stand in result.json under "shown"; `media` draws them.

    {"cells": {"photo": {"17": {"jpeg": "base64", "size": [160, 120]}, "18": null},
               "note":  {"17": {"text": "the first 600 characters", "length": 4211}}},
     "tasks": [{"task": "car", "kind": "box", "input": "photo", "labels": [],
                "rows": [{"row": 17, "why": "best", "truth": {"x": .4, "y": .5, "w": .2, "h": .3},
                          "answer": {"value": {...}, "probability": .97}}]}]}

`cells` holds what a row's input was, by input and row (its number in the table, from 0), small, once however many tasks
show it; null where it was missing. `answer` is the object of POST /predict without its `probabilities`; `truth` has the
form of its "value": a box, null for no object; rows of a grid's labels, null in cells that are not known; spans with
label, start and end; a label.
`labels` are those of a grid's cells or of spans, in their order; empty for other kinds.

Only test rows may be given: a training row is never shown. All is plain data, so that a report can be drawn again
without the table.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

EACH = 4
"""Rows of each task that are shown as its best, its worst, and at random."""
SIDE = 160
"""Pixels of the longer side of a picture at most."""
QUALITY = 80
"""JPEG's, of 95: about 5 kB a picture."""
CHARACTERS = 600
"""Characters of a text that are shown."""
WHY = ("best", "random", "worst")
"""Why a row is shown, in the order in which the groups are."""


@dataclass(frozen=True)
class Panel:
    """What is shown of one task: rows with why they are, and for each its truth and its answer."""

    task: str
    kind: str
    input: str
    """The picture or text that its answers lie in; for other kinds the one shown beside them."""
    rows: Sequence[tuple[int, str]]
    """(row, why), as `pick` returns them."""
    truths: Mapping[int, Any]
    """By row."""
    answers: Mapping[int, Any]
    """By row."""
    labels: Sequence[Any] = field(default=())


def pick(
    rows: Sequence[int], losses: Sequence[float], *, empty: Sequence[bool] = (), each: int = EACH, seed: int = 0
) -> list[tuple[int, str]]:
    """Return (row, why) of the rows with the least and the highest loss, and of some others at random; no row twice.

    Args:
        rows: the numbers of the test rows [B].
        losses: what the served answers lose on each [B]; one that is not finite (no label) is not shown.
        empty: where nothing is there to be found [B] (no object, no span), which is never among the best: an easy
            task would show nothing else. None of them where it is left out.
        each: how many of each.
        seed: of those at random.
    """
    order = np.argsort(np.asarray(losses, dtype=np.float64), kind="stable").tolist()
    held = [i for i in order if math.isfinite(losses[i])]
    each = min(each, math.ceil(len(held) / 3))
    worst = held[::-1][:each]
    best = [i for i in held if i not in worst and not (len(empty) and empty[i])][:each]
    others = sorted({*held} - {*worst} - {*best})
    random = np.random.default_rng(seed).permutation(others)[:each].tolist()
    return [(int(rows[i]), why) for why, places in zip(WHY, (best, random, worst), strict=True) for i in places]


def gather(panels: Sequence[Panel], cells: Mapping[str, Mapping[int, bytes | str | None]]) -> dict[str, Any]:
    """Return what result.json holds under "shown".

    Args:
        panels: one a task.
        cells: for each picture and text input, the cells of the rows that are shown: pictures as bytes, texts as str.
    """
    needed = {(panel.input, row) for panel in panels for row, _ in panel.rows}
    return {
        "cells": {
            name: {str(row): small(cell) for row, cell in sorted(held.items()) if (name, row) in needed}
            for name, held in cells.items()
        },
        "tasks": [
            {
                "task": panel.task,
                "kind": panel.kind,
                "input": panel.input,
                "labels": list(panel.labels),
                "rows": [
                    {"row": row, "why": why, "truth": panel.truths[row], "answer": panel.answers[row]}
                    for row, why in panel.rows
                ],
            }
            for panel in panels
        ],
    }


def small(cell: bytes | str | None) -> dict[str, Any] | None:
    """Return a cell as a report holds it: a small JPEG, or the beginning of a text; None where it is missing."""
    if cell is None:
        return None
    if isinstance(cell, str):
        return {"text": cell[:CHARACTERS], "length": len(cell)}
    jpeg, size = thumbnail(cell)
    return {"jpeg": base64.b64encode(jpeg).decode(), "size": list(size)}


def thumbnail(picture: bytes, *, side: int = SIDE) -> tuple[bytes, tuple[int, int]]:
    """Return a picture as JPEG of at most `side` pixels in width and height, upright, on white; and (width, height)."""
    from PIL import Image, ImageOps  # not above: tables without pictures need no Pillow

    with Image.open(io.BytesIO(picture)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGBA")
    upright.thumbnail((side, side))
    flat = Image.new("RGB", upright.size, "white")
    flat.paste(upright, mask=upright.getchannel("A"))
    held = io.BytesIO()
    flat.save(held, format="JPEG", quality=QUALITY)
    return held.getvalue(), flat.size
