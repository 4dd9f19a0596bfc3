"""A table of pictures and sentences made here, and a search of it in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mtl_bento as mb
from mtl_bento_search import api, metrics
from mtl_bento_search.executors.local import InProcess
from mtl_bento_search.run import Run

N, SIDE = 120, 16
OPTIONS: dict[str, Any] = {
    "targets": {"colour": "multiclass", "place": "box", "names": "tagging", "amount": "regression"},
    "inputs": {
        "photo": {"kind": "image", "backbone": "pixels", "size": [SIDE, SIDE], "grid": [2, 2]},
        "note": {"kind": "text", "backbone": "tokens"},
    },
    "split": {"folds": 0},
}


def make_table(folder: Path) -> pa.Table:
    """Return a table of paths of pictures, each of one colour with a bright square in three of four, and sentences."""
    rng = np.random.default_rng(0)
    photos, notes, boxes, names, colours = [], [], [], [], rng.integers(0, 3, N)
    for row, colour in enumerate(colours):
        pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        pixels[..., colour] = 150
        pixels[0, 0] = (row, row, row)  # no two pictures are alike
        x, y = rng.integers(0, SIDE - 6, 2)
        if row % 4:
            pixels[y : y + 6, x : x + 6] = 255
        boxes.append([(x + 3) / SIDE, (y + 3) / SIDE, 6 / SIDE, 6 / SIDE] if row % 4 else None)
        path = folder / f"{row}.png"
        Image.fromarray(pixels).save(path)
        photos.append(path.name)
        where = ["Lima", "Oslo", "work", "rest"][rng.integers(4)]
        notes.append(f"row {row} goes to {where} today" if row % 3 else None)
        names.append(["O"] * 4 + ["B-city" if where.istitle() else "O", "O"] if row % 3 else None)
    photos[7] = None
    return pa.table(
        {
            "photo": photos, "note": notes, "size": rng.normal(size=N),
            "colour": np.array(["red", "green", "blue"])[colours],
            "place": pa.array(boxes, pa.list_(pa.float64())), "names": names, "amount": rng.normal(size=N),
        }
    )  # fmt: skip


def searched(folder: Path, *, steps: int) -> Run:
    """Return a finished run of one trial in `folder / "run"`, the pictures lying beside its table `t.parquet`."""
    pq.write_table(make_table(folder), folder / "t.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "make_executor", InProcess)
        patch.setattr(metrics, "RESAMPLES", 20)
        search = {"trunk": ["conv"], "space": {"steps": steps, "width": 8, "batch_size": 32}}
        return mb.search(folder / "t.parquet", out=folder / "run", n_trials=1, search=search, **OPTIONS)
