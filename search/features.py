"""Features of pictures and texts, kept on disk: a backbone says of a row what it said of it before.

    runs/features/ab/ab12...ef.safetensors      the prepared rows of one part of a table

Files are named by a hash of the rows, the column and the backbone's weights, so that a changed picture, size or
backbone has a file of its own and every run of the folder shares what is alike. They lie beside the runs; whoever
deletes them loses time only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from mtl_bento.artifact import write_file

FOLDER = "features"
"""The folder, beside those of the runs."""
NAME = "rows"
"""The tensor in a file."""


class FeatureCache:
    """Prepared rows by key (`mtl_bento.dataset.Cache`); an interrupted search goes on with what is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return the rows kept under a key; otherwise compute them and keep them, written beside and renamed."""
        path = self.folder / key[:2] / f"{key}.safetensors"
        # A file that is damaged is as good as none.
        with contextlib.suppress(OSError, KeyError, safetensors.SafetensorError):
            return safetensors.torch.load(path.read_bytes())[NAME]
        rows = compute()
        # On a full or read-only disk the search itself says so; without features kept it only takes longer.
        with contextlib.suppress(OSError):
            write_file(path, safetensors.torch.save({NAME: rows.contiguous()}))
        return rows
