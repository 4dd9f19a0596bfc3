"""Small bars beside figures: the interval of a difference, importance of hyperparameters, where the time went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from mtl_bento_search.report.axes import Scale, picture
from mtl_bento_search.report.html import Html, el, join, name
from mtl_bento_search.report.reading import Against, Comparison, known
from mtl_bento_search.report.words import duration, percent, verdict
from mtl_bento_search.verdict import SAME

MOST_IMPORTANT = 15
"""Hyperparameters shown."""
PHASES = {
    "data": "reading the table, features of pictures and texts",
    "references": "each target alone and trial 0, the defaults",
    "search": "the trials",
    "trees": "boosted trees of each target",
    "finals": "the best configurations for each target alone and for groups; who serves",
    "student": "one network that learns from what is served",
    "test": "the locked rows, once",
    "refit": "what is served, again on all rows",
    "report": "writing the model, importance, this page",
}
"""What a phase of a run is for."""
FOREST_WIDTH, FOREST_HEIGHT = 150, 26
NOISIEST = 4.0
"""Intervals longer than so many times the median one are cut, so that one noisy target does not flatten the others."""


def forest_reach(tested: list[Comparison]) -> float:
    """Return the share of an opponent's error at either end of the interval bars; NaN where there is none."""
    held = [against.relative for task in tested for against in task.against.values()]
    reaches = [max(abs(v) for v in bounds) for relative in held if (bounds := known(relative))]
    reaches = [reach for reach in reaches if reach > 0]
    return min(max(reaches), NOISIEST * median(reaches)) * 1.05 if reaches else math.nan


def forest_bar(against: Against, reach: float) -> Html | None:
    """Return the interval of a difference around zero, better to the right; None where there is none."""
    low, middle, high = against.relative
    if against.verdict == SAME or not known([low + high]) or math.isnan(reach):
        return None
    across, y = Scale(-reach, reach, 4, FOREST_WIDTH - 4), FOREST_HEIGHT / 2
    zero = el("path", d=f"M{across(0)} 1V{FOREST_HEIGHT - 1}", class_="zero")
    bar = el("path", d=f"M{across.clamped(low)} {y}H{across.clamped(high)}", class_="bar")
    ends = [_end(across, value, reach, y) for value in (low, high)]
    dot = el("circle", cx=across.clamped(middle), cy=y, r=4, class_="mark")
    label = f"{percent(middle)} of the other's error, 95 % interval {percent(low)} to {percent(high)}"
    tone = f"plot forest {verdict(against.verdict).tone}"
    drawn = [zero, bar, *ends, dot] if low != high else [zero, dot]
    return picture(*drawn, label=label, width=FOREST_WIDTH, height=FOREST_HEIGHT, class_=tone)


def _end(across: Scale, value: float, reach: float, y: float) -> Html:
    at = across.clamped(value)
    if abs(value) <= reach:
        return el("path", d=f"M{at} {y - 4}v8", class_="bar")
    way = math.copysign(5, value)
    return el("path", d=f"M{at - way:g} {y - 4}l{way:g} 4l{-way:g} 4", class_="bar")


def ranked(records: Sequence[Mapping[str, Any]]) -> Html:
    """Return the hyperparameters by importance: each with a bar, its interval, and its ranks over the draws."""
    most = max((r["upper"] for r in records), default=1.0) or 1.0
    rows = [
        el("tr", el("th", name(r["name"]), scope="row"),
           el("td", interval_bar(r["importance"], r["lower"], r["upper"], most)),
           el("td", percent(max(0.0, r["importance"])).lstrip("+"), class_="num"),
           el("td", _rank(*r["rank"]), class_="num"))
        for r in records[:MOST_IMPORTANT]
    ]  # fmt: skip
    if rest := len(records) - MOST_IMPORTANT:
        rows += [el("tr", el("th", f"{rest} others matter less", scope="row"))] if rest > 0 else []
    return el("table", el("tbody", rows), class_="bars")


def _rank(low: int, high: int) -> str:
    return f"rank {low}" if low == high else f"rank {low} to {high}"


def interval_bar(value: float, low: float, high: float, most: float) -> Html:
    """Return a bar from 0 to a value of at most `most`, with a line over its interval; below 0 nothing is drawn."""
    across = Scale(0, most, 0, 200)
    ends = [across.clamped(v) for v in (low, high) if math.isfinite(v)]
    line = el("path", d=f"M{ends[0]} 7H{ends[1]}", class_="whisker") if len(ends) > 1 and ends[1] > 0 else None
    bar = el("rect", x=0, y=2, width=across.clamped(value), height=10, rx=2)
    return el("svg", bar, line, viewBox="0 0 200 14", aria_hidden="true", class_="share")


def phases(seconds: Mapping[str, float]) -> Html:
    """Return where the time went, each phase with a bar."""
    total = sum(seconds.values()) or 1.0
    rows = [
        _bar_row(
            join(phase, el("small", PHASES.get(phase))),
            spent / total,
            f"{duration(spent)}, {percent(spent / total).lstrip('+')}",
        )
        for phase, spent in seconds.items()
    ]
    return el("table", el("tbody", rows), class_="bars phases")


def _bar_row(label: Html | str, share: float, words: str) -> Html:
    width = round(200 * min(max(share, 0.0), 1.0), 1)
    bar = el(
        "svg",
        el("rect", x=0, y=2, width=width, height=10, rx=2),
        viewBox="0 0 200 14",
        aria_hidden="true",
        class_="share",
    )
    return el("tr", el("th", label, scope="row"), el("td", bar), el("td", words, class_="num"))
