"""The Pareto view: what one target gains and another loses, over the complete trials.

Letters: T tasks.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from mtl_bento_search.report.axes import (
    WIDTH,
    Plot,
    Scale,
    chosen_words,
    defaults_key,
    figure_box,
    in_view,
    legend,
    padded,
    picture,
)
from mtl_bento_search.report.html import Html, el, join, name
from mtl_bento_search.report.reading import Facts, front, known
from mtl_bento_search.report.words import clipped, count, percent, percent_tick

MOST_PAIRED = 4
"""Tasks up to which each pair has a plot; more are drawn as a lane each before."""
MOST_OPEN, MOST_MENU = 4, 100
"""Pairs of many targets that are drawn at once, and from a menu."""
MOST_DOTS = 200
"""Best trials drawn in a pair's plot, beside those that no other beats."""
MOST_LANES = 200
"""Best trials drawn in the lanes."""
FIRST_LANE = 46
"""Height of the first lane in its picture."""
PAIRS = (
    "Each dot is a complete trial: its gain over the single-task network on either target, on validation rows. Right "
    "of and above the lines at 0 both targets gain; along the dashed line one can gain only what the other loses."
)
CONFLICT = (
    " Shown first are the pairs where the best trial for one target costs the other most, as a share of what its own "
    "best trial has above its middle one."
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
    return join(_lanes(facts, gains), _pairs(facts, gains))


def _pairs(facts: Facts, gains: dict[int, list[float]]) -> Html:
    """Return a plot for each pair of few targets; of many for the pairs that conflict most, others from a menu."""
    pairs = by_conflict(gains, len(facts.names))
    if len(facts.names) <= MOST_PAIRED:
        shown, rest = pairs, []
    else:
        shown, rest = pairs[:MOST_OPEN], pairs[MOST_OPEN : MOST_OPEN + MOST_MENU]
    left = len(pairs) - len(shown) - len(rest)
    more = CONFLICT if rest else ""
    more += f" {count(left, 'pair')} that conflict less are left out." if left else ""
    key = legend(
        ("dot complete", "complete trial"), ("dot chosen", chosen_words(facts.best)), *defaults_key("dot", facts.best),
        ("stroke frontline", "best trade-offs: no trial is better on both"),
    )  # fmt: skip
    return el(
        "div",
        el("h3", "What one target gains and another loses"),
        key,
        el("div", [_pair(facts, gains, a, b) for a, b in shown], class_="pairs"),
        _menu(facts, gains, rest) if rest else None,
        el("p", PAIRS + more, class_="caption"),
        class_="wide",
    )


def by_conflict(gains: dict[int, list[float]], n_tasks: int) -> list[tuple[int, int]]:
    """Return pairs of tasks, those first where the best trial for one costs the other most.

    The cost is what that trial leaves of the other's best gain, in units of the way from its middle trial to its best:
    0 where one trial is best for both, 1 where it is no better than the middle trial; the mean of both ways.
    """
    pairs = list(combinations(range(n_tasks), 2))
    held = np.array([gains[n] for n in sorted(gains)], dtype=np.float64)  # [N, T]
    held = held[np.isfinite(held).all(1)]  # a trial that lost a target altogether says nothing of the others
    if not len(held):
        return pairs
    best = held.max(0)
    room = best - np.median(held, axis=0)
    cost = (best - held[held.argmax(0)]) / np.where(room > 0, room, np.inf)  # [T, T]: by whose best, what others lose
    return sorted(pairs, key=lambda pair: -(cost[pair] + cost[pair[::-1]]))


def _menu(facts: Facts, gains: dict[int, list[float]], pairs: list[tuple[int, int]]) -> Html:
    """Return plots of which a menu shows one."""
    options = [el("option", f"{facts.names[a]} and {facts.names[b]}") for a, b in pairs]
    choice = el("select", options, aria_label="Another pair of targets", autocomplete="off")
    plots = [_pair(facts, gains, a, b, hidden=i > 0) for i, (a, b) in enumerate(pairs)]
    return el("div", el("p", "Another pair: ", choice), plots, class_="menu")


def _pair(facts: Facts, gains: dict[int, list[float]], a: int, b: int, *, hidden: bool = False) -> Html:
    points = {n: (v[a], v[b]) for n, v in gains.items() if math.isfinite(v[a]) and math.isfinite(v[b])}
    first, second = facts.names[a], facts.names[b]
    plot = Plot.of(in_view([x for x, _ in points.values()]), in_view([y for _, y in points.values()]))
    edge = front(points)
    marked = list(dict.fromkeys([*edge, *({0, facts.best} & points.keys())]))
    best_first = [p.number for p in facts.complete if p.number in points and p.number not in marked]
    cloud = plot.dots((points[n] for n in best_first[:MOST_DOTS]), "complete")
    dots = [_gain_dot(plot, n, *points[n], facts) for n in sorted(marked, key=lambda n: (n == facts.best, n == 0))]
    label = f"Gain of {first} against gain of {second} over {count(len(points), 'complete trial')}."
    drawn = picture(
        plot.frame(across=f"gain of {first}", up=f"gain of {second}", x_text=percent_tick),
        plot.across(0, "zero"), plot.upright(0, "zero"), cloud, plot.line([points[n] for n in edge], "frontline"), dots,
        label=label,
    )  # fmt: skip
    return el("figure", drawn, el("figcaption", _given_up(points, edge, first, second)), class_="pair", hidden=hidden)


def _given_up(points: dict[int, tuple[float, float]], edge: list[int], first: str, second: str) -> Html:
    """Return what the best trial for each of two targets leaves of the other."""
    if not edge:
        return join("No trial has a gain on both.")
    for_second, for_first = edge[0], edge[-1]
    if for_second == for_first:
        return join(f"Trial {for_first} is best for both.")
    (least, most_second), (most_first, left) = points[for_second], points[for_first]
    return join(
        "The best trial for ", name(first), f", {for_first}, has {percent(left)} on ", name(second),
        f" instead of {percent(most_second)}; the best for ", name(second),
        f", {for_second}, {percent(least)} instead of {percent(most_first)}.",
    )  # fmt: skip


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
    # One path, not a circle each: hundreds of trials times dozens of targets.
    path = "".join(
        f"M{across.clamped(gains[n][t]):g} {y + (n * 7 % 5 - 2)}h0"
        for n in numbers
        if n != facts.best and math.isfinite(gains[n][t])
    )
    dots = el("path", d=path, class_="dots complete")
    best = gains.get(facts.best, [math.nan] * (t + 1))[t]
    tip = f"{facts.names[t]}, trial {facts.best}: {percent(best)}"
    chosen = (
        el("circle", cx=across.clamped(best), cy=y, r=5, class_="chosen", data_tip=tip) if math.isfinite(best) else None
    )
    return join(el("path", d=f"M12 {y}H{WIDTH - 12}", class_="grid"), label, dots, chosen)


def _lane_line(values: list[float], across: Scale, step: int, style: str) -> Html:
    points = [(across.clamped(v), FIRST_LANE + step * t) for t, v in enumerate(values) if math.isfinite(v)]
    return el("path", d="M" + "L".join(f"{x} {y}" for x, y in points), class_=f"line {style}")
