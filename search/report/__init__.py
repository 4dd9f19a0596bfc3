"""The HTML report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna


def write_report(folder: Path, result: dict[str, Any], study: optuna.Study) -> Path:
    """Write report.html of a run and return its path."""
    from mtl_bento.artifact import write_file

    del study
    path = folder / "report.html"
    write_file(path, f"<pre>{result}</pre>".encode())
    return path
