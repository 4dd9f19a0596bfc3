"""Hyperparameters against the gain: all of a trial as a line, each by itself, and which of them mattered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from mtl_bento_search.importance import MIN_FOR_IMPORTANCE, place
from mtl_bento_search.report.axes import (
    WIDTH,
    Plot,
    Scale,
    chosen_words,
    defaults_key,
    figure_box,
    in_view,
    legend,
    picture,
)
from mtl_bento_search.report.bars import ranked
from mtl_bento_search.report.html import Html, el, join, name, names, prose
from mtl_bento_search.report.reading import Facts
from mtl_bento_search.report.words import clipped, count, percent, percent_tick, short

MOST_LANES = 12
"""Hyperparameters that the picture of all trials shows."""
MOST_SLICES, MOST_FOLDED = 12, 48
"""Hyperparameters that are drawn one by one, at once and behind a fold."""
FIRST_LANE, STEP, MARGIN = 34, 52, 14
"""Of the picture of all trials: height of the first lane, from lane to lane, room at both sides."""
MOST_LINES = 150
"""Trials that it shows; of more every so many, from the worst to the best."""
FIFTHS = 5
"""Shades of the lines, by the trial's place among all."""
MANY = 100
"""Trials from which on more of them seldom help."""
MOST_NAMED = 5
"""Hyperparameters that a sentence names."""
PARALLEL = (
    "Each line is a complete trial and each lane a setting: where the dark lines, the best fifth of the trials, run "
    "together, that setting mattered. A line has a gap where its network has no such setting."
)
SLICES = (
    "Each dot is a complete trial: across the value of one setting, up the trial's gain on validation rows. A slope or "
    "an empty corner says that the setting mattered; a flat cloud that it did not."
)


@dataclass(frozen=True)
class Setting:
    """A hyperparameter and its value in each trial that has it."""

    name: str
    kind: BaseDistribution
    values: dict[int, Any]

    @property
    def choices(self) -> Sequence[Any]:
        """The values to choose from; none where it is a range."""
        return self.kind.choices if isinstance(self.kind, CategoricalDistribution) else ()

    def at(self, trial: int) -> float:
        """Return where a trial's value lies in the range, from 0 to 1; NaN where it has none."""
        return place(self.kind, self.values[trial]) if trial in self.values else math.nan

    def ticks(self) -> list[tuple[float, str]]:
        """Return labels and their places: every choice, or both ends of a range."""
        if self.choices:
            return [(place(self.kind, choice), str(choice)) for choice in self.choices]
        return [(0.0, short(float(self.kind.low))), (1.0, short(float(self.kind.high)))]  # type: ignore[attr-defined]

    @property
    def title(self) -> str:
        """Its name, with how its range runs."""
        return f"{self.name} (log scale)" if getattr(self.kind, "log", False) else self.name


def settings(facts: Facts) -> list[Setting]:
    """Return what differs between the complete trials: by importance where it was measured, else common ones first."""
    held: dict[str, Setting] = {}
    for point in facts.complete:
        trial = facts.trials.get(point.number)
        for key, kind in trial.distributions.items() if trial is not None else ():
            held.setdefault(key, Setting(key, kind, {})).values[point.number] = trial.params[key]  # type: ignore[union-attr]
    found = [s for s in held.values() if len({str(value) for value in s.values.values()}) > 1]
    order = {record["name"]: i for i, record in enumerate((facts.result.get("importance") or {}).get("ranked") or ())}
    of_task = {s.name: any(s.name.endswith(f".{task}") for task in facts.names) for s in found}
    return sorted(found, key=lambda s: (order.get(s.name, len(order)), of_task[s.name]))


def drawn(facts: Facts) -> Html:
    """Return both pictures, or why there are none."""
    found = settings(facts)
    if len(facts.complete) < 2 or not found:
        n = count(len(facts.complete), "complete trial")
        words = f"Settings are not drawn against the gain: of {n} no two differ in what was searched."
        return el("p", prose(f"{words} More trials: `--n-trials` or `--timeout`."))
    return join(_parallel(facts, found), _slices(facts, found))


# -- all settings of a trial as a line ----------------------------------------------------------------------------


def _parallel(facts: Facts, found: list[Setting]) -> Html:
    shown = found[:MOST_LANES]
    heights = [FIRST_LANE + STEP * i for i in range(len(shown) + 1)]
    low, high = in_view([point.gain for point in facts.complete])
    gain = Scale(low, high, MARGIN, WIDTH - MARGIN)
    across = Scale(0, 1, MARGIN, WIDTH - MARGIN)
    lanes = [
        _lane(s.title, y, [(across(at), label) for at, label in s.ticks()])
        for s, y in zip(shown, heights, strict=False)
    ]
    lanes.append(_lane("gain, validation rows", heights[-1], [(gain(t), percent_tick(t)) for t in gain.ticks()]))
    n = len(facts.complete)
    # The best is among them: the last of each equal part of the trials, worst first.
    kept = [facts.complete[::-1][(i + 1) * n // min(n, MOST_LINES) - 1] for i in range(min(n, MOST_LINES))]
    lines: list[list[str]] = [[] for _ in range(FIFTHS)]
    for rank, point in enumerate(kept):
        lines[rank * FIFTHS // len(kept)].append(_path(point.number, point.gain, shown, across, gain, heights))
    paths = [el("path", d="".join(part), class_=f"line fifth{i}") for i, part in enumerate(lines) if part]
    gains = {point.number: point.gain for point in facts.complete}
    marked = [
        el("path", d=_path(n, gains[n], shown, across, gain, heights), class_=f"line {style}",
           data_tip=f"trial {n}: {percent(gains[n])}")
        for n, style in {0: "default", facts.best: "chosen"}.items() if n in gains
    ]  # fmt: skip
    height = heights[-1] + 26
    label = f"{count(len(shown), 'hyperparameter')} and the gain of {count(len(kept), 'complete trial')}."
    key = legend(
        ("stroke fifth4", "best fifth of the trials"), ("stroke fifth0", "worst fifth"),
        ("stroke chosen", chosen_words(facts.best)), *defaults_key("stroke", facts.best),
    )  # fmt: skip
    more = f" {len(found) - len(shown)} of {len(found)} settings are not in it." if len(found) > len(shown) else ""
    more += f" {len(kept)} of {n:,} trials are drawn, evenly from the worst to the best." if n > len(kept) else ""
    return figure_box(
        "All settings of every trial", picture(paths, marked, lanes, label=label, height=height), PARALLEL + more,
        legend=key, class_="tall",
    )  # fmt: skip


def _path(
    trial: int, value: float, shown: list[Setting], across: Scale, gain: Scale, heights: list[int]
) -> str:  # fmt: skip
    """Return a trial's line from lane to lane; of equal values, as of choices, neighbours lie a little apart."""
    parts, pen = [], "M"
    for setting, y in zip(shown, heights, strict=False):
        at = setting.at(trial)
        if math.isnan(at):
            pen = "M"
            continue
        apart = (trial * 7 % 11 - 5) * 0.9 if setting.choices else 0.0
        parts.append(f"{pen}{across(at) + apart:.4g} {y}")
        pen = "L"
    return "".join([*parts, f"{pen}{gain.clamped(value):g} {heights[-1]}"])


def _lane(title: str, y: int, ticks: list[tuple[float, str]]) -> Html:
    room = (WIDTH - 2 * MARGIN) / max(len(ticks) - 1, 1) / 8
    labels = [
        el("text", clipped(label, max(3, int(room))), x=x, y=y + 15, class_="tick over",
           text_anchor="start" if x <= MARGIN else "end" if x >= WIDTH - MARGIN else "middle")
        for x, label in ticks
    ]  # fmt: skip
    marks = "".join(f"M{x:g} {y - 3}v6" for x, _ in ticks)
    line = el("path", d=f"M{MARGIN} {y}H{WIDTH - MARGIN}{marks}", class_="rail")
    return join(line, el("text", clipped(title, 56), x=MARGIN, y=y - 9, class_="lane"), labels)


# -- each setting by itself ---------------------------------------------------------------------------------------


def _slices(facts: Facts, found: list[Setting]) -> Html:
    view = in_view([point.gain for point in facts.complete])
    panels = [_slice(facts, setting, view) for setting in found[: MOST_SLICES + MOST_FOLDED]]
    below = sum(point.gain < view[0] for point in facts.complete)
    words = SLICES + (f" {count(below, 'trial')} below the frame: at its lower edge." if below else "")
    shown = el("div", panels[:MOST_SLICES], class_="panels")
    if rest := panels[MOST_SLICES:]:
        shown = join(shown, el("details", el("summary", f"{len(rest)} more"), el("div", rest, class_="panels")))
    key = legend(
        ("dot complete", "complete trial"), ("dot chosen", chosen_words(facts.best)), *defaults_key("dot", facts.best)
    )
    return el("div", el("h3", "Gain against each setting"), key, shown, el("p", words, class_="caption"), class_="wide")


def _slice(facts: Facts, setting: Setting, view: tuple[float, float]) -> Html:
    width, height = 240, 140
    plot = Plot(Scale(0, 1, 52, width - 14), Scale(*view, height - 24, 8), width, height)
    rows = [
        join(
            plot.across(t, "zero" if t == 0 else "grid"),
            el("text", percent_tick(t), x=44, y=plot.y(t) + 4, text_anchor="end", class_="tick"),
        )
        for t in plot.y.ticks(4)
    ]
    ticks = setting.ticks()
    room = max(3, int(170 / len(ticks) / 7))
    labels = [
        el("text", clipped(label, room), x=plot.x(at), y=height - 5, class_="tick",
           text_anchor="middle" if setting.choices else "start" if at == 0 else "end")
        for at, label in ticks
    ]  # fmt: skip
    points = {
        p.number: (setting.at(p.number) + ((p.number * 7 % 11 - 5) / 160 if setting.choices else 0), p.gain)
        for p in facts.complete
        if p.number in setting.values
    }
    marked = {n: style for n, style in {0: "default", facts.best: "chosen"}.items() if n in points}
    cloud = plot.dots((xy for n, xy in points.items() if n not in marked), "complete")
    dots = [
        plot.dot(*points[n], style, r=5, tip=f"trial {n}: {_said(setting.values[n])}, {percent(points[n][1])}")
        for n, style in marked.items()
    ]
    label = f"Gain against {setting.title} in {count(len(points), 'complete trial')}."
    drawn_ = picture(rows, labels, cloud, dots, label=label, width=width, height=height)
    return el("figure", el("h4", name(setting.title), title=setting.title), drawn_, class_="panel")


def _said(value: Any) -> str:
    return short(value) if isinstance(value, float) else str(value)


# -- which mattered -----------------------------------------------------------------------------------------------


def what_mattered(facts: Facts) -> Html:
    """Return the importance of hyperparameters with ranks over bootstrap draws, or why it is not shown."""
    held = facts.result.get("importance") or {}
    if "ranked" in held:
        return join(el("p", _settled(held)), ranked(held["ranked"]), el("p", _how(held), class_="caption"))
    n = facts.result["trials"]["complete"]
    if n < MIN_FOR_IMPORTANCE:
        words = (
            f"Not shown: with {n} complete trial{'s' * (n != 1)} the ranks would differ from run to run; "
            f"{MIN_FOR_IMPORTANCE} are needed. More trials: `--n-trials` or `--timeout`."
        )
        return el("p", prose(words))
    return el(
        "p",
        "It cannot be told: the complete trials do not differ in their hyperparameters or gains, or no time was left.",
    )


def _settled(held: dict[str, Any]) -> Html:
    """Return which ranks can be trusted, in a sentence."""
    k, ranked_ = held["settled"], [record["name"] for record in held["ranked"]]
    if k is not None and k > MOST_NAMED:
        return join(f"The first {k} matter most, in at least 19 of 20 draws of the trials; the order is not settled.")
    if k is None:
        return join(
            "No rank is settled: which setting matters most changes with the trials that are looked at. Take the list "
            "as a hint only",
            "; with a hundred complete trials or more ranks often settle." if held["trials"] < MANY else ".",
        )
    verb = "matters" if k == 1 else "matter"
    return join(names(ranked_[:k]), f" {verb} most, in at least 19 of 20 draws of the trials; the order of ",
                "the others is not settled." if k == 1 else "these, and of the others, is not settled.")  # fmt: skip


def _how(held: dict[str, Any]) -> str:
    told = max(0.0, held["told"])
    return (
        f"Bars: how much worse one foretells which trials are better once the values of a setting are shuffled among "
        f"them (100 % = as much as the trials differ); the line is where 9 of 10 of {held['draws']} draws of the "
        f"{count(held['trials'], 'complete trial')} lie, rank is its place in these. "
        f"All settings together tell {told:.0%} of how trials differ."
    )
