"""What a search says while it works: nothing, or a live display in the terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table


class Progress:
    """Silence; subclasses show something."""

    def prepared(self, block: str, done: int, n: int) -> None:
        """A backbone has read `done` of `n` rows of a block of pictures or texts."""

    def phase(self, name: str, detail: str = "") -> None:
        """A phase begins."""

    def rung(self, n_asked: int, step: int, steps: int, n_living: int) -> None:
        """A round passed a rung."""

    def told(self, n_told: int, best: float | None) -> None:
        """A trial was told."""

    def say(self, line: str) -> None:
        """Something that stays on the screen."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Terminal(Progress):
    """A live line with phase, time, trials done and best gain so far; plain lines where there is no terminal."""

    def __init__(
        self, console: Console, *, timeout_s: float | None, n_trials: int | None, elapsed_s: float = 0.0
    ) -> None:
        self.console, self.timeout_s, self.n_trials = console, timeout_s, n_trials
        self._start = time.monotonic() - elapsed_s
        self._phase, self._detail, self._told, self._best = "reading", "", 0, None  # type: tuple[str, str, int, float | None]
        self._said: set[str] = set()
        self._live = Live(get_renderable=self._view, console=console, transient=True, refresh_per_second=2)

    def prepared(self, block: str, done: int, n: int) -> None:
        """Show how far the features are."""
        name = block.partition(":")[2] or block
        if self.console.is_terminal:
            self._phase, self._detail = "features", f"{name}: {bar_text(done / n)} {done:,} of {n:,} rows"
        elif name not in self._said:
            self._said.add(name)
            self.console.print(f"features {name}, {n:,} rows", highlight=False, markup=False)

    def phase(self, name: str, detail: str = "") -> None:
        """Show the phase."""
        self._phase, self._detail = name, detail
        if not self.console.is_terminal:
            self.console.print(f"{name} {detail}".rstrip(), highlight=False, markup=False)

    def rung(self, n_asked: int, step: int, steps: int, n_living: int) -> None:
        """Show how far the round is."""
        self._detail = f"round to trial {n_asked - 1}: {n_living} trained to step {step} of {steps}"

    def told(self, n_told: int, best: float | None) -> None:
        """Show the trials done and the best gain."""
        self._told, self._best = n_told, best

    def say(self, line: str) -> None:
        """Print a line above the display."""
        # Not as markup: a column may be called [x].
        self.console.print(line, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def _view(self) -> Table:
        spent = time.monotonic() - self._start
        clock = f"{clock_text(spent)}" + ("" if self.timeout_s is None else f" of {clock_text(self.timeout_s)}")
        trials = f"{self._told}" + ("" if self.n_trials is None else f" of {self.n_trials}")
        best = "-" if self._best is None else f"{self._best:+.1%}"
        grid = Table.grid(padding=(0, 2))
        grid.add_row(f"[bold]{self._phase}[/bold]", clock, f"trials {trials}", f"best gain over single-task {best}")
        if self._detail:
            grid.add_row(f"[dim]{escape(self._detail)}[/dim]")
        return grid


def wide_console() -> Console:
    """Return a console for tables: as wide as the terminal, 110 columns where the output goes elsewhere."""
    return Console() if Console().is_terminal else Console(width=110)


def bar_text(share: float, *, width: int = 24) -> str:
    """Return a bar of `width` characters, filled to a share."""
    filled = int(share * width)
    return "━" * filled + "─" * (width - filled)


def clock_text(seconds: float) -> str:
    """Return 75 as "1:15"."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
