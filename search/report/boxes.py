"""The marks of the network's picture: boxes, flows, layers and words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_bento_search.report.html import Html, el, join
from mtl_bento_search.report.words import clipped

LETTER = 7.4
"""Width of a Latin letter at 13 px, on the wide side."""
MOST_LAYERS = 12
"""Layers of a trunk that are drawn."""


def box(x: float, y: float, w: float, h: float, style: str, *lines: str) -> Html:
    """Return a box with lines of text in it, each cut to the box; the first stands out."""
    room, gap = int((w - 16) / LETTER), 17
    top = y + h / 2 - gap * (len(lines) - 1) / 2 + 4.5
    words = [
        el("text", clipped(line, room), x=x + 8, y=round(top + gap * i, 1), class_="first" if i == 0 else "more")
        for i, line in enumerate(lines)
    ]
    return join(el("rect", x=x, y=y, width=w, height=h, rx=6, class_=f"box {style}"), words)


def flow(start: tuple[float, float], end: tuple[float, float], *, arrow: bool = True) -> Html:
    """Return a smooth line across, from one point to another."""
    (x, y), (to_x, to_y) = start, end
    half = (x + to_x) / 2
    path = f"M{x:g} {y:g}C{half:g} {y:g} {half:g} {to_y:g} {to_x:g} {to_y:g}"
    tip = el("path", d=f"M{to_x - 5:g} {to_y - 4:g}l5 4-5 4", class_="flow") if arrow else None
    return join(el("path", d=path, class_="flow"), tip)


def layers(x: float, y: float, w: float, h: float, trunk: Mapping[str, Any]) -> Html:
    """Return a bar for each shared layer, taller where it is wider."""
    shown = min(int(trunk.get("shared_depth") or 1), MOST_LAYERS)
    tall = h * min(1.0, max(0.3, math.log2(max(2, trunk.get("width") or 64)) / 10))  # 1024 units fill the height
    step = min(22.0, w / shown)
    first = x + (w - step * (shown - 1)) / 2
    top, tall = round(y + (h - tall) / 2, 1), round(tall, 1)
    places = [round(first + step * i - 4, 1) for i in range(shown)]
    return join(*(el("rect", x=at, y=top, width=8, height=tall, rx=3, class_="layer") for at in places))


def output(x: float, y: float, w: float, task: str, kind: str) -> Html:
    """Return a target's name with its kind below."""
    tip = f"{task}, {kind}" if kind else task
    label = el("text", clipped(task, int(w / LETTER)), x=x, y=y - 1 if kind else y + 4.5, class_="first", data_tip=tip)
    return join(label, el("text", kind, x=x, y=y + 11, class_="small") if kind else None)


def lines(x: float, y: float, w: float, words: Sequence[str]) -> Html:
    """Return lines of text, each cut to a width; the first stands out."""
    room = int((w - 16) / LETTER)
    return join(
        [
            el("text", clipped(line, room), x=x, y=y + 17 * i, class_="first" if i == 0 else "more")
            for i, line in enumerate(words)
        ]
    )


def down(x: float, y: float, to_y: float) -> Html:
    """Return an arrow downwards."""
    return el("path", d=f"M{x:g} {y:g}V{to_y:g}M{x - 4:g} {to_y - 5:g}l4 5 4-5", class_="flow")
