"""The Pareto view: what one target gains and another loses, over the complete trials.

Letters: T tasks.
"""

from __future__ import annotations

import math
from itertools import combinations

from mtl_bento_search.report.axes import (
    WIDTH,
    Plot,
    Scale,
    chosen_words,
    defaults_key,
    figure_box,
    legend,
    padded,
    picture,
)
from mtl_bento_search.report.html import Html, el, join, name
from mtl_bento_search.report.reading import Facts, front, known
from mtl_bento_search.report.words import clipped, count, percent, percent_tick

MOST_PAIRED = 4
"""Tasks up to which each pair has a plot; more are drawn as a lane each."""
MOST_LANES = 200
"""Best trials drawn in the lanes."""
FIRST_LANE = 46
"""Height of the first lane in its picture."""
PAIRS = (
    "Each dot is a complete trial: its gain over the single-task network on either target, on validation rows. Right "
    "of and above the lines at 0, both targets gain."
)
LANES = (
    "Each lane is a target, each dot a complete trial's gain on it over its single-task network, on validation rows; "
    "what lies left of 0 lost by sharing."
)


def trade_offs(facts: Facts) -> Html | None:
    """Return the gains of the complete trials task against task: a plot a pair, or a lane each."""
    gains = {n: values for n, values in facts.task_gains.items() if known(values)}
    if len(facts.names) < 2 or not gains:
        return None
    if len(facts.names) <= MOST_PAIRED:
        return _pairs(facts, gains)
    return _lanes(facts, gains)


def _pairs(facts: Facts, gains: dict[int, list[float]]) -> Html:
    plots = [_pair(facts, gains, a, b) for a, b in combinations(range(len(facts.names)), 2)]
    key = legend(
        ("dot complete", "complete trial"), ("dot chosen", chosen_words(facts.best)), *defaults_key("dot", facts.best),
        ("stroke frontline", "best trade-offs: no trial is better on both"),
    )  # fmt: skip
    return el(
        "div",
        el("h3", "What one target gains and another loses"),
        key,
        el("div", plots, class_="pairs"),
        el("p", PAIRS, class_="caption"),
        class_="wide",
    )


def _pair(facts: Facts, gains: dict[int, list[float]], a: int, b: int) -> Html:
    points = {n: (v[a], v[b]) for n, v in gains.items() if math.isfinite(v[a]) and math.isfinite(v[b])}
    plot = Plot.of(padded([0.0, *(x for x, _ in points.values())]), padded([0.0, *(y for _, y in points.values())]))
    first, second = facts.names[a], facts.names[b]
    order = sorted(points, key=lambda n: (n == facts.best, n == 0))
    dots = [_gain_dot(plot, n, *points[n], facts) for n in order]
    edge = plot.line([points[n] for n in front(points)], "frontline")
    label = f"Gain of {first} against gain of {second} over {count(len(points), 'complete trial')}."
    drawn = picture(
        plot.frame(x_text=percent_tick), plot.across(0, "zero"), plot.upright(0, "zero"), edge, dots, label=label
    )
    return el("figure", drawn, el("figcaption", "across: ", name(first), "; up: ", name(second)), class_="pair")


def _gain_dot(plot: Plot, trial: int, x: float, y: float, facts: Facts) -> Html:
    tip = f"trial {trial}: {percent(x)}, {percent(y)}"
    style = "chosen" if trial == facts.best else "default" if trial == 0 else "complete"
    return plot.dot(x, y, style, tip=tip, r=6 if trial == facts.best else 4)


def _lanes(facts: Facts, gains: dict[int, list[float]]) -> Html:
    """Return a lane for each task with a dot for each trial, and the chosen trial as a line from lane to lane."""
    numbers = [p.number for p in facts.complete if p.number in gains][:MOST_LANES]
    numbers = list(dict.fromkeys([*numbers, *({facts.best, 0} & gains.keys())]))
    step = 34
    height = FIRST_LANE + step * len(facts.names) + 2
    low, high = padded(known([0.0, *(v for n in numbers for v in gains[n])]))
    across = Scale(low, high, 12, WIDTH - 12)
    marks = [_lane_tick(across(t), percent_tick(t), height, zero=t == 0) for t in across.ticks()]
    lanes = [_lane(facts, gains, numbers, across, t, FIRST_LANE + step * t) for t in range(len(facts.names))]
    lines = [
        _lane_line(gains[n], across, step, style)
        for n, style in {0: "default", facts.best: "chosen"}.items()
        if n in gains
    ]
    drawn = picture(
        marks,
        lines,
        lanes,
        label=f"Gain of each target in {count(len(numbers), 'complete trial')}.",
        height=height,
        class_="plot lanes",
    )
    key = legend(
        ("dot complete", "complete trial"),
        ("stroke chosen", chosen_words(facts.best)),
        *defaults_key("stroke", facts.best),
    )
    caption = LANES
    if len(facts.complete) > len(numbers):
        caption += f" The best {len(numbers)} of {count(len(facts.complete), 'complete trial')} are drawn."
    return figure_box("What each target gains", drawn, caption, legend=key, class_="tall")


def _lane_tick(x: float, label: str, height: int, *, zero: bool) -> Html:
    """Return an upright line with its label at both ends: the picture may be taller than the screen."""
    labels = [el("text", label, x=x, y=y, text_anchor="middle", class_="tick") for y in (12, height - 6)]
    return join(el("path", d=f"M{x} 20V{height - 22}", class_="zero" if zero else "grid"), labels)


def _lane(facts: Facts, gains: dict[int, list[float]], numbers: list[int], across: Scale, t: int, y: int) -> Html:
    label = el("text", clipped(facts.names[t], 44), x=12, y=y - 9, class_="lane")
    dots = [
        el("circle", cx=across.clamped(gains[n][t]), cy=y + (n * 7 % 5 - 2), r=2.5, class_="complete",
           data_tip=f"trial {n}: {percent(gains[n][t])}")
        for n in numbers if n != facts.best and math.isfinite(gains[n][t])
    ]  # fmt: skip
    best = gains.get(facts.best, [math.nan] * (t + 1))[t]
    tip = f"{facts.names[t]}, trial {facts.best}: {percent(best)}"
    chosen = (
        el("circle", cx=across.clamped(best), cy=y, r=5, class_="chosen", data_tip=tip) if math.isfinite(best) else None
    )
    return join(el("path", d=f"M12 {y}H{WIDTH - 12}", class_="grid"), label, dots, chosen)


def _lane_line(values: list[float], across: Scale, step: int, style: str) -> Html:
    points = [(across.clamped(v), FIRST_LANE + step * t) for t, v in enumerate(values) if math.isfinite(v)]
    return el("path", d="M" + "L".join(f"{x} {y}" for x, y in points), class_=f"line {style}")
