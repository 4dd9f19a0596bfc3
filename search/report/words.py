"""How figures and verdicts are said: numbers, durations, and a sentence for each task."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtl_bento_search.report.html import Html, el, join, name, names, text
from mtl_bento_search.report.reading import Against, Comparison
from mtl_bento_search.verdict import BETTER, INCONCLUSIVE, NOUNS, OPPONENTS, SAME, TIED, UNKNOWN, WORSE
from mtl_bento_search.verdict import names as shares

NOTHING = "–"
"""What stands for a figure that could not be measured."""
MINUS = "\u2212"
MOST_SENTENCES = 6
"""Tasks up to which each gets a sentence of its own; beyond, they are listed by verdict."""


@dataclass(frozen=True)
class Verdict:
    """How a verdict is shown."""

    label: str
    tone: str
    """Class of the page's style sheet: the colour."""
    mark: str
    """A sign that says the same without colour."""


VERDICTS = {
    BETTER: Verdict("Better", "good", "▲"),
    WORSE: Verdict("Worse", "bad", "▼"),
    SAME: Verdict("Same", "kept", "◆"),
    TIED: Verdict("Tie", "even", "="),
    INCONCLUSIVE: Verdict("Inconclusive", "even", "~"),
    UNKNOWN: Verdict("Not measurable", "even", "?"),
}
"""By the word in result.json, in the order in which they are told."""


def verdict(word: str) -> Verdict:
    """Return how a verdict is shown; an unknown one shows its own word."""
    return VERDICTS.get(word, Verdict(word[:1].upper() + word[1:], "even", "·"))


def figure(value: float, *, digits: int = 4) -> str:
    """Return a number with so many significant digits: 0.9459, 0.7500, 1,234, 1.2e-07; a dash for NaN."""
    if not math.isfinite(value):
        return NOTHING
    size = abs(value)
    if size >= 10**digits:
        shown = f"{value:,.0f}" if size < 1e9 else f"{value:.{digits - 1}e}"
    elif size and size < 1e-4:
        shown = f"{value:.{max(0, digits - 3)}e}"
    else:
        places = digits - 1 - (math.floor(math.log10(size)) if size else 0)
        shown = f"{value:,.{max(0, places)}f}"
    return (shown if float(shown.replace(",", "")) else "0").replace("-", MINUS, int(value < 0))


def short(value: float) -> str:
    """Return a number without the zeros at its end, for settings and axes: 0.1, 205, 2.15e-04, 1,000."""
    if value.is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}".replace("-", MINUS)
    shown = figure(value, digits=3)
    return shown if "." not in shown or "e" in shown else shown.rstrip("0").rstrip(".")


def signed(value: float, *, digits: int = 2) -> str:
    """Return a difference with its sign: +0.0047, −1.2, 0."""
    shown = figure(value, digits=digits)
    return f"+{shown}" if value > 0 and shown != "0" else shown


def percent(value: float) -> str:
    """Return a gain: +8.7 %, −52 %."""
    if not math.isfinite(value):
        return NOTHING
    size = abs(value) * 100
    shown = f"{size:.0f}" if size >= 9.95 else f"{size:.1f}"
    return _percent(value, shown)


def percent_tick(value: float) -> str:
    """Return a round gain at an axis: +5 %, 0 %, −2.5 %."""
    return _percent(value, f"{abs(value) * 100:.4g}")


def _percent(value: float, shown: str) -> str:
    sign = "" if float(shown) == 0 else "+" if value > 0 else MINUS
    return f"{sign}{shown if sign else '0'}\u00a0%"


def between(low: float, high: float, *, difference: bool = False) -> str:
    """Return an interval, both ends to the same decimals: "0.926 to 0.966", "−0.007 to +0.020"."""
    if not math.isfinite(low) or not math.isfinite(high):
        return NOTHING
    first, last = (_rounded(v, like=max(abs(low), abs(high)), digits=2 if difference else 3) for v in (low, high))
    plus = ("+" if difference and v > 0 and shown != "0" else "" for v, shown in ((low, first), (high, last)))
    return f"{next(plus)}{first} to {next(plus)}{last}"


def _rounded(value: float, *, like: float, digits: int) -> str:
    """Return a number to the decimals that another shows with so many significant digits."""
    shown = figure(like, digits=digits)
    if "e" in shown:
        return figure(value, digits=digits)
    places = len(shown.partition(".")[2])
    rounded = f"{value:,.{places}f}"
    return rounded.replace("-", MINUS) if float(rounded.replace(",", "")) else "0"


def duration(seconds: float) -> str:
    """Return seconds as one reads them: 0.4 s, 42 s, 2 min 5 s, 1 h 20 min."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def clipped(label: str, most: int) -> str:
    """Return a label cut to a width in Latin letters (of which a Chinese character takes two), with an ellipsis."""
    if text_width(label) <= most:
        return label
    kept, width = [], 1
    for character in label:
        width += text_width(character)
        if width > most:
            break
        kept.append(character)
    return "".join(kept).rstrip(" ,") + "…"


def wrapped(words: str, most: int) -> list[str]:
    """Return words in lines of at most so many Latin letters, broken between words."""
    lines: list[str] = []
    for word in words.split():
        if lines and text_width(lines[-1]) + 1 + text_width(word) <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def text_width(label: str) -> int:
    """Return how wide a label is, in Latin letters."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in label)


def count(n: int, noun: str, *, plural: str | None = None) -> str:
    """Return "1 trial", "2 trials", "1,000 trials"."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def spec(fields: Mapping[str, Any], *, skip: tuple[str, ...] = ("kind",)) -> str:
    """Return the fields of a spec in words: "inner 8, dropout 0.1"."""
    shown = {key.replace("_", " "): value for key, value in fields.items() if key not in skip and value is not None}
    return ", ".join(f"{key} {short(value) if isinstance(value, float) else value}" for key, value in shown.items())


def direction(*, higher_is_better: bool) -> str:
    """Return which way a metric points, in words."""
    return "higher is better" if higher_is_better else "lower is better"


def headline(tested: list[Comparison], opponent: str = "single_task") -> Html:
    """Return what the test says of all tasks together against an opponent."""
    groups = by_verdict(tested, opponent)
    total = len(tested)
    if total == 1 and opponent == "single_task":
        return join(*[text(_ALONE.get(word, f"{verdict(word).label}.")) for word in groups])
    sentences = []
    for word, held in groups.items():
        who = names([task.name for task in held]) if len(held) <= 3 and total <= 8 else _so_many(len(held), total)
        said = _SUMMARY.get(word, f"{verdict(word).label}: ").format(others=NOUNS[opponent])
        sentences.append(join(said[:1].upper() + said[1:], who, "."))
    return join(*sentences, by=" ")


def by_verdict(tested: list[Comparison], opponent: str) -> dict[str, list[Comparison]]:
    """Return the tasks by their verdict against an opponent, in the order in which verdicts are told."""
    held = [(task.against[opponent].verdict, task) for task in tested if opponent in task.against]
    words = [*VERDICTS, *dict.fromkeys(word for word, _ in held if word not in VERDICTS)]
    found = {word: [task for held_word, task in held if held_word == word] for word in words}
    return {word: tasks for word, tasks in found.items() if tasks}


_SUMMARY = {
    BETTER: "this model is better than {others} on ",
    WORSE: "{others} are better than this model on ",
    SAME: "{others} are kept for ",
    TIED: "a tie with {others} on ",
    INCONCLUSIVE: "the test rows are too few to tell this model from {others} on ",
    UNKNOWN: "the metric cannot be measured on these test rows for ",
}
"""Said of the tasks of a verdict together."""
_ALONE = {
    BETTER: "The search helped: the chosen network is better than the network at the defaults.",
    WORSE: "The network at the defaults is better on the test rows than the chosen one.",
    SAME: "The network at the defaults is kept.",
    TIED: "A tie: the chosen network is as good as the network at the defaults.",
    INCONCLUSIVE: "The test rows are too few to tell the chosen network from the one at the defaults.",
    UNKNOWN: "The metric cannot be measured on these test rows.",
}
"""The same of one task, which has nothing to share: its network is compared with the one at the defaults."""


def _so_many(n: int, total: int) -> str:
    return f"all {total} targets" if n == total else f"{n} of {total} targets"


def sentence(task: Comparison, *, alone: bool = False) -> Html:
    """Return what the test says of one task."""
    if math.isnan(task.ours):
        body = f"{task.metric} is not defined on its {count(task.n_test, 'test row')}."
    else:
        brief = len(task.against) > 1
        said = [_compared(held, opponent, alone=alone, brief=brief) for opponent, held in task.against.items()]
        body = "; ".join([f"{task.metric} {figure(task.ours)} on {count(task.n_test, 'test row')}", *said]) + "."
    return join(el("strong", name(task.name)), " – ", body)


def _compared(against: Against, opponent: str, *, alone: bool, brief: bool) -> str:
    """Return "tuned trees are better by 0.0053 (95 % interval +0.0010 to +0.0090), 0.9512", or who else is ahead.

    `brief` leaves the figures of what was not decided to the table.
    """
    other, are = _THE[opponent]
    if alone and opponent == "single_task":
        other = "the network at the defaults"
    if against.verdict == SAME:
        return f"answered by {other} {'themselves' if are == 'are' else 'itself'}"
    size = figure(abs(against.difference), digits=2)
    low, high = against.lower, against.upper
    if against.verdict == WORSE:
        return f"{other} {are} better by {size} ({_interval(-high, -low)}), {figure(against.value)}"
    if against.verdict == BETTER:
        return f"better than {other} {figure(against.value)} by {size} ({_interval(low, high)})"
    if brief and against.verdict in (TIED, INCONCLUSIVE):
        return f"{'a tie with' if against.verdict == TIED else 'not told from'} {other} {figure(against.value)}"
    way = "level with" if size == "0" else f"{size} {'better' if against.difference > 0 else 'worse'} than"
    said = f"{way} {other} {figure(against.value)} ({_interval(low, high)})"
    return f"{said}, {_undecided(against)}"


def _interval(low: float, high: float) -> str:
    bounds = between(low, high, difference=True)
    return "no interval from so few rows" if bounds == NOTHING else f"95 % interval {bounds}"


def _undecided(against: Against) -> str:
    if against.verdict == TIED:
        return "a tie"
    if against.verdict != INCONCLUSIVE:
        return against.verdict
    return f"which may be chance: {least(against)}"


def least(against: Against) -> str:
    """Return what an inconclusive comparison could have shown."""
    if math.isnan(against.smallest):
        return "so few rows can show no difference"
    return f"these rows could have shown {figure(against.smallest, digits=2)}"


_THE = {
    "single_task": ("its single-task network", "is"),
    "ensemble": ("its single-task ensemble", "is"),
    "trees": ("tuned trees", "are"),
    "student": ("its student", "is"),
}
"""An opponent of one task, and its verb."""


def heading(opponent: str, *, alone: bool = False) -> str:
    """Return the heading of an opponent's column."""
    return "Against the defaults" if alone and opponent == "single_task" else f"Against {OPPONENTS[opponent]}"


def who_serves(task: Comparison) -> str:
    """Return who answers a task, in words."""
    return shares(task.served_by)


def where(task: Comparison, against: Against) -> str:
    """Return at which configuration an opponent stands: "at trial 8" out of "single-task NAME at trial 8"."""
    networks = rf"single-task {re.escape(task.name)}(?: (at trial \d+))?(?:, (seed \d+))?"
    return re.sub(networks, lambda found: found[1] or found[2] or "at the defaults", against.name)
