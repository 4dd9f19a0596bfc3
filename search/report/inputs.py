"""What the answers rest on: how much worse each target is answered where an input is shuffled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_bento_search.report.bars import interval_bar
from mtl_bento_search.report.html import Html, el, join, name, prose
from mtl_bento_search.report.reading import number
from mtl_bento_search.report.words import count, percent

MOST_INPUTS = 8
"""Inputs shown of each target."""
MOST_PANELS = 8
"""Targets that are drawn at once; the rest are behind a fold."""
READING = (
    "How much the loss on validation rows rises when the cells of one input are shuffled among the rows, as a share of "
    "the loss of the best constant answer: a long bar is an input that the answers rest on; the thin line is its 95 % "
    "interval. Inputs that say the same stand in for one another, and look unimportant alone."
)


def section(result: Mapping[str, Any]) -> Html:
    """Return a small chart for each target, or why there is none."""
    records = result.get("input_importance")
    if not records:
        return el("p", prose("Not measured: no time was left. On a labelled table: `run.importance(table)`."))
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_task.setdefault(record["task"], []).append(record)
    panels = [_panel(task, held) for task, held in by_task.items()]
    shown = el("div", panels[:MOST_PANELS], class_="two")
    if rest := panels[MOST_PANELS:]:
        more = el("summary", f"{count(len(rest), 'more target')}")
        shown = join(shown, el("details", more, el("div", rest, class_="two")))
    return join(el("p", READING, class_="caption"), shown)


def _panel(task: str, records: Sequence[Mapping[str, Any]]) -> Html:
    held = [(number(r["importance"]), number(r["lower"]), number(r["upper"])) for r in records[:MOST_INPUTS]]
    # An input that makes answers worse has no bar: it is of no use, and how far below 0 it is, is chance.
    most = max([v for figures in held for v in figures if v > 0], default=1.0)
    rows = [
        el("tr", el("th", name(r["input"]), scope="row", title=r["input"]), el("td", interval_bar(*figures, most)),
           el("td", percent(figures[0]).lstrip("+"), class_="num"))
        for r, figures in zip(records[:MOST_INPUTS], held, strict=True)
    ]  # fmt: skip
    if rest := len(records) - MOST_INPUTS:
        rows += [el("tr", el("th", f"{count(rest, 'other')} less", class_="quiet"))] if rest > 0 else []
    return el("figure", el("h3", name(task)), el("table", el("tbody", rows), class_="bars"))
