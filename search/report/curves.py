"""The plots of the search: gain by trial, and gain and loss while training."""

from __future__ import annotations

import math

from mtl_bento_search.report.axes import (
    Plot,
    Scale,
    above,
    chosen_words,
    defaults_key,
    figure_box,
    legend,
    padded,
    picture,
)
from mtl_bento_search.report.html import Html, el, join, name
from mtl_bento_search.report.reading import Curve, Facts, Point, known, number
from mtl_bento_search.report.words import count, figure, percent, short

MOST_CURVES = 5
"""Best trials whose curves are drawn."""
MOST_PANELS = 12
"""Loss curves shown at once; the rest unfolds."""
TRAINING = (
    "Across: training steps. Up: gain on validation rows at that step; the best moment of each network is kept, so a "
    "trial's gain can lie above its curve."
)
LOSSES = (
    "Validation loss against training steps; 1 is a predictor that has learned nothing. Where the dashed line is "
    "lower, the chosen trial has the lower loss."
)


# -- the history --------------------------------------------------------------------------------------------------


def history(facts: Facts) -> Html | None:
    """Return gain by trial: complete and pruned trials, the best so far, single-task at zero."""
    points = [point for point in facts.history if math.isfinite(point.gain)]
    if len(points) < 2:
        return None
    plot = Plot.of(_numbers(points), _in_view(points))
    dots = [
        _history_dot(plot, point, facts.best)
        for point in sorted(points, key=lambda p: (p.complete, p.number == facts.best))
    ]
    gain = percent(number(facts.result["trials"]["best_gain"]))
    drawn = picture(
        plot.frame(across="trial number", up="gain, validation rows", whole=True), plot.across(0, "zero"),
        plot.steps(_best_so_far(points), "bestline"), dots,
        label=f"Gain by trial; the chosen one, trial {facts.best}, has {gain}.",
    )  # fmt: skip
    below = sum(point.gain < plot.y.low for point in points)
    caption = join(
        "Across: trial number. Up: gain on validation rows; the line at 0 is each target's own single-task network.",
        f" {count(below, 'trial')} below the frame: triangles at its edge." if below else "",
        f" {count(len(facts.history) - len(points), 'trial')} ended before a first figure."
        if len(points) < len(facts.history)
        else "",
    )
    key = legend(
        ("dot complete", "complete"), ("dot pruned", "pruned (gain when stopped)"),
        ("dot chosen", chosen_words(facts.best)), ("stroke bestline", "best so far"),
    )  # fmt: skip
    return figure_box("Gain by trial", drawn, caption, legend=key)


def _history_dot(plot: Plot, point: Point, best: int) -> Html:
    chosen = point.number == best
    state = "chosen" if chosen else "complete" if point.complete else "pruned"
    tip = f"trial {point.number}: {percent(point.gain)}, {state}" + (" (the defaults)" if point.number == 0 else "")
    return plot.dot(point.number, point.gain, state, tip=tip, r=6 if chosen else 3.5 if point.complete else 3)


def _numbers(points: list[Point]) -> tuple[float, float]:
    last = max((point.number for point in points), default=1)
    air = max(1, last) * 0.03
    return -air, max(1, last) + air


def _in_view(points: list[Point]) -> tuple[float, float]:
    """Return the range of gains that is drawn: complete trials, zero, and not the far end of what was pruned."""
    values = [point.gain for point in points if point.complete] or [point.gain for point in points]
    low, high = min([0.0, *values]), max([0.0, *values])
    room = max(high - low, 0.02)
    lowest = min([low, *(point.gain for point in points)])
    return max(lowest, low - room) - 0.06 * room, high + 0.12 * room


def _best_so_far(points: list[Point]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for point in points:
        if point.complete and (not found or point.gain > found[-1][1]):
            found.append((point.number, point.gain))
    return found


# -- while training -----------------------------------------------------------------------------------------------


def training(facts: Facts) -> Html | None:
    """Return the gain of the best trials and of the defaults, step by step."""
    numbers = list(dict.fromkeys([facts.best, *(p.number for p in facts.complete[:MOST_CURVES]), 0]))
    curves = {n: held for n in numbers if len(held := facts.training_curve(n)) > 1}
    if not curves:
        return None
    last = max(step for held in curves.values() for step, _ in held)
    # The first quarter is a steep climb from -100 %; the frame shows what happens after it.
    later = known(v for held in curves.values() for step, v in held if step >= last / 4)
    plot = Plot.of((0, last), padded([0.0, *later]))
    lines = [_training_line(plot, n, held, facts.best) for n, held in reversed(curves.items())]
    label = f"Gain while training of {count(len(curves), 'trial')}."
    drawn = picture(
        plot.frame(across="training steps", up="gain, validation rows"), plot.across(0, "zero"), lines, label=label
    )
    key = legend(
        ("stroke chosen", chosen_words(facts.best)),
        ("stroke complete", "other best trials"),
        *defaults_key("stroke", facts.best),
    )
    return figure_box("Gain while training", drawn, TRAINING, legend=key)


def _training_line(plot: Plot, trial: int, held: Curve, best: int) -> Html:
    style = "chosen" if trial == best else "default" if trial == 0 else "complete"
    return plot.line(above(held, plot.y.low), style, tip=f"trial {trial}" + (" (the defaults)" if trial == 0 else ""))


def losses(facts: Facts) -> Html | None:
    """Return a small plot for each task: the loss of its single-task network while training, and where ours ended."""
    panels = [panel for task in facts.names if (panel := _panel(facts, task)) is not None]
    if not panels:
        return None
    shown = el("div", panels[:MOST_PANELS], class_="panels")
    if rest := panels[MOST_PANELS:]:
        shown = join(shown, el("details", el("summary", f"{len(rest)} more"), el("div", rest, class_="panels")))
    key = legend(
        ("stroke single", "single-task network while training"), ("stroke oursline", f"trial {facts.best}, at its best")
    )
    return el("div", el("h3", "Loss of each target"), key, shown, el("p", LOSSES, class_="caption"), class_="wide")


def _panel(facts: Facts, task: str) -> Html | None:
    held = facts.reference_curve(task)
    if len(known(v for _, v in held)) < 2:
        return None
    single, ours, gain = facts.validation(task)
    values = known([*(v for _, v in held), single, ours])
    low, high = padded(values, 0.1)
    width, height = 240, 110
    plot = Plot(Scale(0, held[-1][0], 40, width - 6), Scale(max(0, low), high, height - 6, 6), width, height)
    ticks_ = [
        join(plot.across(t, "grid"), el("text", short(t), x=35, y=plot.y(t) + 4, text_anchor="end", class_="tick"))
        for t in plot.y.ticks(3)
    ]
    mark = plot.across(ours, "line oursline") if math.isfinite(ours) else None
    label = f"{task}: validation loss alone {figure(single, digits=3)}, in the chosen trial {figure(ours, digits=3)}."
    drawn = picture(ticks_, plot.line(held, "single"), mark, label=label, width=width, height=height)
    words = f"alone {figure(single, digits=3)}, ours {figure(ours, digits=3)} ({percent(gain)})"
    return el("figure", el("h4", name(task), title=task), drawn, el("figcaption", words), class_="panel")
