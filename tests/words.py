"""A text column for tests of tasks: its tokens are runs of letters and single signs, cut after `length`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Words:
    """What a task asks of a text column; `pattern` is a token."""

    name: str
    length: int = 12
    pattern: str = r"\w+|[^\w\s]"

    def spans(self, values: pa.ChunkedArray) -> list[list[tuple[int, int]]]:
        """Return the first and the last place of each token kept, the last not included."""
        texts: list[Any] = values.to_pylist()
        return [[m.span() for m in re.finditer(self.pattern, text or "")][: self.length] for text in texts]
