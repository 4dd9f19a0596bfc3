"""What benchmarks read off this process: seconds by part, processor time, memory."""

from __future__ import annotations

import functools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

TRAINING = "training"
"""The part in which a driver waits for its executor."""


class Timers:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._parts: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._parts:
            self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Count the time inside for a part, but for what parts inside of it take."""
        self._switch()
        self._parts.append(part)
        try:
            yield
        finally:
            self._switch()
            self._parts.pop()

    @contextmanager
    def wrapping(self, parts: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Time functions by owner and name."""
        with ExitStack() as undo:
            for owner, name, part in parts:
                function = getattr(owner, name)
                undo.callback(setattr, owner, name, function)
                setattr(owner, name, self._timed(function, part))
            yield

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.during(part):
                return function(*arguments, **options)

        return timed


class Clock:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self._since = time.perf_counter(), cpu_seconds()

    def read(self) -> tuple[float, float]:
        """Return seconds of wall time, and of processor time of this process and its children."""
        return time.perf_counter() - self._since[0], cpu_seconds() - self._since[1]


def resident_mb() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds() -> float:
    """Return the processor time of this process and its children so far.

    On a shared machine it tells more than a clock.
    """
    own = Path("/proc/self/task")
    children = [pid for task in own.iterdir() for pid in (task / "children").read_text(encoding="ascii").split()]
    ticks = 0
    for pid in ["self", *children]:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")
