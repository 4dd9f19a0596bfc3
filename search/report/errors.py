"""Where answers on the test rows are wrong: confusion matrices, reliability, answers against truths, residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_bento_search.report.axes import Plot, figure_box, padded, picture, share_tick
from mtl_bento_search.report.html import Html, el, join
from mtl_bento_search.report.words import clipped, count, figure, short, signed

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


RESIDUALS = (
    "Test rows by how far the answer is off: bars on the right are answers above the true value, on the left below it; "
    "the first and the last bar hold what lies beyond. A heap around 0 is good, one beside 0 is a bias."
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
    if "residuals" in held:
        found.append(_residuals(task, held["residuals"], record.get("coverage")))
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
    marks = join(
        plot.frame(
            across="probability that was answered", up="how often it was true", x_text=share_tick, y_text=share_tick
        ),
        plot.line([(0, 0), (1, 1)], "default"),
        dots,
    )
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
    even = plot.line([(reach[0], reach[0]), (reach[1], reach[1])], "default")
    marks = join(plot.frame(across="answer", up="true value", x_text=short, y_text=short), even, bars, dots)
    label = f"Numbers answered for {task} against the true ones, {len(bins)} bins."
    return figure_box(f"{task}: answers against truths", picture(marks, label=label), AGAINST)


def _residuals(task: str, held: Mapping[str, Any], coverage: Mapping[str, Any] | None) -> Html:
    reach, counts = held["reach"], held["counts"]
    plot = Plot.of((-reach, reach), (0, max(counts) * 1.05))
    step = (plot.x.end - plot.x.start) / len(counts)
    bars = [
        el("rect", x=round(plot.x.start + step * i + 1, 1), y=plot.y(n), width=round(step - 2, 1),
           height=round(plot.y.start - plot.y(n), 1), class_="heap",
           data_tip=f"{count(n, 'row')}, {_off(i, len(counts), reach)}")
        for i, n in enumerate(counts) if n
    ]  # fmt: skip
    half = coverage["size"] / 2 if coverage else reach
    ends = [plot.upright(v, "line default") for v in (-half, half)] if half < reach else None
    marks = join(
        plot.frame(across="answer minus true value, in the target's unit", up="test rows", x_text=short, y_text=short),
        bars, plot.upright(0, "zero"), ends,
    )  # fmt: skip
    words = f"{RESIDUALS} On average {signed(held['mean'])}; without the sign {figure(held['absolute'], digits=2)}."
    if ends and coverage:
        level = share_tick(coverage["level"])
        words += f" The dotted lines are the ends of the intervals that shall hold {level} of the rows."
    label = f"Residuals of {task}: {sum(counts):,} test rows from {short(-reach)} to {short(reach)}."
    return figure_box(f"{task}: how far it is off", picture(marks, label=label), words)


def _off(i: int, n: int, reach: float) -> str:
    """Return which residuals a bin holds, in words."""
    low, high = (reach * (2 * at / n - 1) for at in (i, i + 1))
    if i == 0:
        return f"up to {short(high)}"
    return f"{short(low)} and more" if i == n - 1 else f"{short(low)} to {short(high)}"
