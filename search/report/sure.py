"""How sure the answers are: whether intervals and prediction sets held the truth as often as promised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mtl_bento_search.report.axes import Scale, picture, share_tick
from mtl_bento_search.report.html import Html, el, join, name
from mtl_bento_search.report.reading import number
from mtl_bento_search.report.words import figure, percent

BAR, HEIGHT = 220, 26
"""Size of a bar."""
HEADS = ("Target", "Promised", "Held", "Against the promise", "Test rows", "Mean size")
READING = (
    "The dot is the share of test rows whose true value lies in the interval, or whose true label is in the set, that "
    "is answered with each row; the line around it is what chance alone leaves open (95 %). The upright mark is what "
    "was promised: where the line reaches it, the promise held as far as these rows can tell. Intervals are as wide as "
    "shown in the target's own unit; sets have so many labels."
)


def section(result: Mapping[str, Any]) -> Html | None:
    """Return a row for each target, or why there are none; None where nothing was tested."""
    if not result["tasks"]:
        return None
    held = [(task, c) for task in result["tasks"] if (c := task.get("coverage"))]
    if not held:
        return el(
            "p",
            "No target has intervals or prediction sets: too few rows were left to set them by, or answers are of "
            "kinds that have none.",
        )
    low = min(0.5, *(number(c["lower"]) for _, c in held))
    across = Scale(math.floor(low * 10) / 10, 1.0, 6, BAR - 6)
    head = el("tr", [el("th", label, scope="col") for label in HEADS])
    table = el(
        "table",
        el("thead", head),
        el("tbody", [_row(task, c, across) for task, c in held]),
        class_="cards plain sure",
    )
    missing = [name(task["task"]) for task in result["tasks"] if not task.get("coverage")]
    none = el("p", "Without intervals or sets: ", join(*missing, by=", "), ".", class_="caption") if missing else None
    return join(table, el("p", READING, class_="caption"), none)


def _row(task: Mapping[str, Any], held: Mapping[str, Any], across: Scale) -> Html:
    value, low, high, level = (number(held[key]) for key in ("value", "lower", "upper", "level"))
    verdict, tone = (
        ("less often than promised", "bad") if high < level
        else ("more often than promised", "kept") if low > level
        else ("as promised", "good")
    )  # fmt: skip
    spread = f"{_share(low)} to {_share(high)}"
    label = f"{_share(value)} of {held['n']:,} rows, 95 % interval {spread}; promised {share_tick(level)}"
    y, first, last = HEIGHT / 2, across(low), across(high)
    drawn = picture(
        el("path", d=f"M{across.start:g} {y}H{across.end:g}", class_="grid"),
        el("path", d=f"M{across(level)} 1V{HEIGHT - 1}", class_="promise"),
        el("path", d=f"M{first} {y}H{last}M{first} {y - 4}v8M{last} {y - 4}v8", class_="bar"),
        el("circle", cx=across(value), cy=y, r=4.5, class_="mark"),
        label=label, width=BAR, height=HEIGHT, class_=f"plot forest wide {tone}",
    )  # fmt: skip
    size = f"{figure(number(held['size']), digits=3)} {held.get('measure', '')}"
    held_words = join(el("b", _share(value)), el("small", spread))
    mark = el("div", drawn, el("small", el("span", verdict, class_=tone)))
    cells = [share_tick(level), held_words, mark, f"{held['n']:,}", size]
    return el(
        "tr",
        el("th", name(task["task"]), scope="row"),
        [
            el("td", el("div", value), data_label=label, class_="num")
            for label, value in zip(HEADS[1:], cells, strict=True)
        ],
    )


def _share(value: float) -> str:
    return percent(value).lstrip("+")
