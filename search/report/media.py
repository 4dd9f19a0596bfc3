"""Test rows with pictures and texts: what was there and what was answered, of the best, the worst and some others.

`panels` says what is drawn here. A kind of task that lies in its input, a box or spans, has a `View`; any other is said
in words beside its picture or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mtl_bento_search.report.html import Child, Html, el, join, name, text
from mtl_bento_search.report.panels import WHY
from mtl_bento_search.report.reading import number
from mtl_bento_search.report.words import count, figure

MOST_OPEN = 4
"""Tasks up to which all are unfolded."""
COLOURS = 7
"""Colours of labels in the style sheet; an eighth label has the first one's again."""
GROUPS = {"best": "Best", "random": "At random", "worst": "Worst"}
"""What the groups of rows are called, by their word in result.json."""
NOTE = (
    "Of each target the test rows on which what is served loses least (of those where there is something to find) and "
    "most, and some at random; no training row is shown. These pictures and texts are in this file, which is yours: "
    "look through them before you pass it on."
)

Cell = dict[str, Any] | None
"""A small picture or a text, None where it was missing."""
Box = dict[str, float]


def section(shown: dict[str, Any] | None) -> Html | None:
    """Return the section of a result's "shown"; None where it shows no row."""
    tasks = [task for task in (shown or {}).get("tasks", ()) if task["rows"]]
    if shown is None or not tasks:
        return None
    panels = [_panel(task, shown["cells"].get(task["input"], {})) for task in tasks]
    rest = panels[MOST_OPEN:]
    more = el("details", el("summary", f"Rows of {count(len(rest), 'more target')}"), rest) if rest else None
    return join(el("p", NOTE), panels[:MOST_OPEN], more)


def _panel(task: dict[str, Any], cells: dict[str, Cell]) -> Html:
    view = VIEWS.get(task["kind"], View)(task["labels"])
    wide = any(cell is not None and "text" in cell for cell in cells.values())
    layout = "wide" if wide else view.layout
    drawn = [(why, [row for row in task["rows"] if row["why"] == why]) for why in WHY]
    groups = [
        el(
            "div",
            el("h4", GROUPS[why]),
            el("div", [_row(view, row, cells.get(str(row["row"]))) for row in rows], class_=f"shots {layout}"),
        )
        for why, rows in drawn
        if rows
    ]
    title = join(name(task["task"]), el("span", " in ", name(task["input"]), class_="quiet"))
    return el("div", el("h3", title), view.legend(), groups)


def _row(view: View, row: dict[str, Any], cell: Cell) -> Html:
    truth, answer = row["truth"], row["answer"] or {}
    label = f"row {row['row']:,}"
    caption = el("figcaption", el("b", label), ": ", view.said(truth, answer))
    return el("figure", view.drawn(cell, truth, answer, label), caption, class_="shot")


# -- how the answers of a kind are shown --------------------------------------------------------------------------


class View:
    """A label or a number: nothing is drawn over its input."""

    layout = ""
    """Class of the page's style sheet: how much room a picture has."""

    def __init__(self, labels: Sequence[Any]) -> None:
        self.labels = [str(label) for label in labels]

    def legend(self) -> Html | None:
        """Return what the marks mean."""
        return None

    def drawn(self, cell: Cell, truth: Any, answer: dict[str, Any], label: str) -> Html:
        """Return the input with what was there and what was answered."""
        del truth, answer
        return _media(cell, label)

    def said(self, truth: Any, answer: dict[str, Any]) -> Child:
        """Return in a few words how good the answer is."""
        value = answer.get("value")
        shown = join(_value(value), _sure(answer))
        return join(shown, ", which is right") if value == truth else join(shown, ", true: ", _value(truth))

    def colour(self, label: Any) -> str:
        """Return the class of a label's colour."""
        return f"k{self.labels.index(str(label)) % COLOURS}" if str(label) in self.labels else "k0"


class BoxView(View):
    """One object's box in a picture."""

    def legend(self) -> Html:
        """Return the two frames."""
        return _legend([("true box", "true"), ("answered box", "answered")])

    def drawn(self, cell: Cell, truth: Box | None, answer: dict[str, Any], label: str) -> Html:
        """Return the picture with both boxes."""
        boxes = [("true", truth), ("answered", answer.get("value"))]
        return _media(cell, label, *(_frame(cell, box, style) for style, box in boxes if box is not None and cell))

    def said(self, truth: Box | None, answer: dict[str, Any]) -> str:
        """Return how far the boxes overlap, or which of them is missing."""
        value = answer.get("value")
        if truth is None:
            what = "nothing there, nothing answered" if value is None else "nothing there, but answered"
        else:
            what = "missed" if value is None else f"IoU {figure(overlap(truth, value), digits=2)}"
        return what + _sure(answer, of="object ")


class GridView(View):
    """Labels of cells: the picture twice, with the true ones and with those answered."""

    layout = "double"

    def legend(self) -> Html:
        """Return the colours of the labels."""
        return _legend([*((label, self.colour(label)) for label in self._coloured()), ("not known", "unknown")])

    def drawn(self, cell: Cell, truth: Any, answer: dict[str, Any], label: str) -> Html:
        """Return both pictures."""
        grids = [("true", truth), ("answered", answer.get("value"))]
        pictures = [_media(cell, f"{label}, {said}", self._cells(cell, grid)) for said, grid in grids]
        both = [el("div", picture, el("small", said)) for picture, (said, _) in zip(pictures, grids, strict=True)]
        return el("div", both, class_="pair-of")

    def said(self, truth: Any, answer: dict[str, Any]) -> str:
        """Return how many of the cells that are known are right."""
        answered = [label for row in answer.get("value") or () for label in row]
        both = [
            (t, a) for t, a in zip([t for row in truth or () for t in row], answered, strict=False) if t is not None
        ]
        right = sum(str(t) == str(a) for t, a in both)
        return f"{right:,} of {count(len(both), 'cell')} right"

    def _coloured(self) -> list[str]:
        """Return the labels that have a colour: of two, the first is the absence of the second."""
        return self.labels[1:] if len(self.labels) == 2 else self.labels

    def _cells(self, cell: Cell, grid: list[list[Any]] | None) -> Html | None:
        if not grid or not cell:
            return None
        width, height = cell["size"]
        styles = {**{label: f"cells {self.colour(label)}" for label in self._coloured()}, "None": "cells unknown"}
        paths = {label: runs(grid, label) for label in styles}
        drawn = [el("path", d=path, class_=styles[label]) for label, path in paths.items() if path]
        return el("g", drawn, transform=f"scale({width / len(grid[0]):g} {height / len(grid):g})")


class SpansView(View):
    """Labelled spans of a text: the text with the true ones and, where they differ, with those answered."""

    def legend(self) -> Html:
        """Return the colours of the labels."""
        return _legend([*((label, self.colour(label)) for label in self.labels), ("only in one of the two", "lone")])

    def drawn(self, cell: Cell, truth: Any, answer: dict[str, Any], label: str) -> Html:
        """Return the text once or twice."""
        if cell is None:
            return _media(cell, label)
        spans = [truth or [], answer.get("value") or []]
        shared = {_key(span) for span in spans[0]} & {_key(span) for span in spans[1]}
        same = all(_key(span) in shared for held in spans for span in held)
        named = [("true and answered", spans[1])] if same else list(zip(("true", "answered"), spans, strict=True))
        return join(*(el("div", el("small", said), self._marked(cell, held, shared)) for said, held in named))

    def said(self, truth: Any, answer: dict[str, Any]) -> str:
        """Return how many spans are right, and how many were answered that are not there."""
        there, answered = ({_key(span) for span in spans or ()} for spans in (truth, answer.get("value")))
        wrong = len(answered - there)
        return f"{len(there & answered)} of {count(len(there), 'span')} right" + (f", {wrong} wrong" if wrong else "")

    def _marked(self, cell: dict[str, Any], spans: list[dict[str, Any]], shared: set[tuple[Any, ...]]) -> Html:
        held, at, pieces = cell["text"], 0, []
        inside = sorted((span for span in spans if span["end"] <= len(held)), key=lambda span: span["start"])
        for span in inside:
            if span["start"] < at:
                continue  # a second label of the same words
            pieces += [text(held[at : span["start"]]), self._mark(held, span, lone=_key(span) not in shared)]
            at = span["end"]
        return _written(cell, [*pieces, text(held[at:])], beyond=len(spans) - len(inside))

    def _mark(self, held: str, span: dict[str, Any], *, lone: bool) -> Html:
        words = held[span["start"] : span["end"]]
        style = f"{self.colour(span['label'])}{' lone' if lone else ''}"
        return el("mark", words, el("span", span["label"]), class_=style, data_tip=f"{span['label']}{_sure(span)}")


VIEWS: dict[str, type[View]] = {"box": BoxView, "grid": GridView, "tagging": SpansView}
"""By the kind of task."""


# -- arithmetic ---------------------------------------------------------------------------------------------------


def overlap(first: Box, second: Box) -> float:
    """Return the intersection of two boxes as a share of their union; 0 where neither has an area."""
    inside = 1.0
    for centre, size in (("x", "w"), ("y", "h")):
        ends = [(box[centre] - box[size] / 2, box[centre] + box[size] / 2) for box in (first, second)]
        inside *= max(0.0, min(high for _, high in ends) - max(low for low, _ in ends))
    union = first["w"] * first["h"] + second["w"] * second["h"] - inside
    return inside / union if union > 0 else 0.0


def runs(grid: Sequence[Sequence[Any]], label: str) -> str:
    """Return the cells of a label as the path of an SVG whose unit is a cell: a rectangle for cells in a row."""
    path = []
    for y, row in enumerate(grid):
        start = None
        for x, held in enumerate([*row, object()]):
            here = x < len(row) and str(held) == label
            if here and start is None:
                start = x
            elif not here and start is not None:
                path.append(f"M{start} {y}h{x - start}v1h{start - x}z")
                start = None
    return "".join(path)


def _key(span: dict[str, Any]) -> tuple[Any, ...]:
    return str(span["label"]), span["start"], span["end"]


# -- marks --------------------------------------------------------------------------------------------------------


def _media(cell: Cell, label: str, *over: Html | None) -> Html:
    """Return an input: a picture with marks over it, a text, or that it was missing."""
    if cell is None:
        return el("p", "missing", class_="missing")
    if "text" in cell:
        return _written(cell, [text(cell["text"])])
    width, height = cell["size"]
    picture = el("image", href=f"data:image/jpeg;base64,{cell['jpeg']}", width=width, height=height)
    return el("svg", picture, *over, viewBox=f"0 0 {width} {height}", role="img", aria_label=f"Picture of {label}")


def _frame(cell: dict[str, Any], box: Box, style: str) -> Html:
    width, height = cell["size"]
    place = {
        "x": (box["x"] - box["w"] / 2) * width,
        "y": (box["y"] - box["h"] / 2) * height,
        "width": box["w"] * width,
        "height": box["h"] * height,
    }
    return join(el("rect", **place, class_="halo"), el("rect", **place, class_=style))


def _written(cell: dict[str, Any], pieces: list[Html], *, beyond: int = 0) -> Html:
    """Return a text, and how much of it is left out."""
    left = cell["length"] - len(cell["text"])
    words = f" … {count(left, 'more character')}" + (f" with {count(beyond, 'span')}" if beyond else "")
    return el("p", pieces, el("span", words, class_="quiet") if left else None, dir="auto", class_="written")


def _value(value: Any) -> Html:
    return text("nothing") if value is None else name(figure(value) if isinstance(value, float) else value)


def _sure(answer: dict[str, Any], *, of: str = "") -> str:
    """Return the probability of an answer in brackets; nothing where it has none."""
    sure = number(answer.get("probability"))
    return f" ({of}{figure(sure, digits=2)})" if math.isfinite(sure) else ""


def _legend(entries: list[tuple[str, str]]) -> Html:
    return el("p", [el("span", el("i", class_=style), label) for label, style in entries], class_="legend keys")
