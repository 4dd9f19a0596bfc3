"""Where answers on the test rows are wrong: confusion matrices, reliability, answers against truths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_bento_search.report.axes import Plot, figure_box, padded, picture
from mtl_bento_search.report.html import Html, el, join
from mtl_bento_search.report.words import clipped, percent_tick, short

MOST_TASKS = 12
"""Targets that are drawn at once; the rest are behind a fold."""
RELIABILITY = (
    "Rows in bins by the probability that was answered; on the line it is as often true as was said. "
    "Below it answers are too sure."
)
AGAINST = (
    "Rows in bins by the number that was answered; the bar goes from a tenth to nine tenths of the true numbers of the "
    "bin, the dot is their median. On the line answers are right."
)


def section(result: Mapping[str, Any]) -> Html | None:
    """Return a figure for each target whose answers are labels or numbers; None where there is none."""
    drawn = [part for record in result["tasks"] for part in _of(record)]
    if not drawn:
        return None
    shown = el("div", drawn[:MOST_TASKS], class_="two")
    if rest := drawn[MOST_TASKS:]:
        return join(shown, el("details", el("summary", f"{len(rest)} more"), el("div", rest, class_="two")))
    return shown


def _of(record: Mapping[str, Any]) -> list[Html]:
    held = record.get("diagnosis") or {}
    task = record["task"]
    found = []
    if "confusion" in held:
        found.append(_confusion(task, held["confusion"], held["labels"]))
    if "reliability" in held:
        found.append(_reliability(task, held["reliability"]))
    if "against" in held:
        found.append(_against(task, held["against"]))
    return found


def _confusion(task: str, matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Html:
    head = el("tr", el("th", "true"), [el("th", clipped(label, 9), title=label) for label in labels])
    rows = []
    for i, (label, counts) in enumerate(zip(labels, matrix, strict=True)):
        total = sum(counts) or 1
        cells = [
            el(
                "td",
                f"{n:,}" if n else "",
                class_=f"num {_tone(n / total, i == j)}",
                title=f"{n / total:.0%} of {label}",
            )
            for j, n in enumerate(counts)
        ]
        rows.append(el("tr", el("th", clipped(label, 16), scope="row", title=label), cells))
    table = el("table", el("thead", head), el("tbody", rows), class_="plain matrix")
    words = "Test rows by their true label (down) and the label that is answered (across)."
    return figure_box(f"{task}: which labels are confused", el("div", table, class_="scroll"), words)


def _tone(share: float, right: bool) -> str:
    strength = 0 if share < 0.05 else 1 if share < 0.5 else 3
    return f"{'pull' if right else 'push'}{strength}" if strength else ""


def _reliability(task: str, bins: Sequence[Sequence[float]]) -> Html:
    plot = Plot.of((0, 1), (0, 1))
    dots = [
        plot.dot(p, share, "complete", tip=f"answered {p:.0%}, true in {share:.0%} of {n:.0f} rows", r=5)
        for p, share, n in bins
    ]
    marks = join(plot.frame(x_text=percent_tick), plot.line([(0, 0), (1, 1)], "default"), dots)
    label = f"Probability answered for {task} against how often it was true, {len(bins)} bins."
    return figure_box(f"{task}: is it as sure as it says", picture(marks, label=label), RELIABILITY)


def _against(task: str, bins: Sequence[Sequence[float]]) -> Html:
    reach = padded([value for low_to_high in bins for value in low_to_high[:4]])
    plot = Plot.of(reach, reach)
    bars = [plot.line([(mean, low), (mean, high)], "complete") for mean, low, _, high, _ in bins]
    dots = [
        plot.dot(mean, middle, "chosen", tip=f"answered {short(mean)}, true median {short(middle)}, {n:.0f} rows", r=4)
        for mean, _, middle, _, n in bins
    ]
    marks = join(
        plot.frame(y_text=short), plot.line([(reach[0], reach[0]), (reach[1], reach[1])], "default"), bars, dots
    )
    label = f"Numbers answered for {task} against the true ones, {len(bins)} bins."
    return figure_box(f"{task}: answers against truths", picture(marks, label=label), AGAINST)
