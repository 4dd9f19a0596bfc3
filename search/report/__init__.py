"""The HTML report of a run: one file, readable offline, on a phone and on paper.

`reading` takes the figures out of result.json and the study, `words` says them, `results`, `trials` and `provenance`
lay them out, `curves`, `hyperparameters`, `tradeoffs`, `errors`, `inputs`, `sure`, `bars` and `network` draw them as
SVG, `panels` holds the test rows whose pictures and texts `media` draws, `page` puts it together. Whatever is not
markup of ours passes through `html`, which escapes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna


def write_report(folder: Path, result: dict[str, Any], study: optuna.Study) -> Path:
    """Write report.html of a run and return its path.

    Args:
        folder: the run folder; the page's commands name it as it is given.
        result: every figure, as result.json holds it or before NaN became null.
        study: the run's study, for rungs, attributes and hashes that the result does not repeat.
    """
    from mtl_bento.artifact import write_file
    from mtl_bento_search.report.page import page
    from mtl_bento_search.report.reading import Facts

    path = folder / "report.html"
    write_file(path, page(Facts(result, study), folder).encode("utf-8", "replace"))
    return path
