"""Axes of the plots: scales, round ticks, and the frame that marks are drawn in, as SVG in the page's colours.

Plots are drawn 520 wide and shown about as wide; on a phone they shrink to two thirds and the style sheet enlarges
their text, so labels at ticks are short and few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mtl_bento_search.report.html import Child, Html, el, join
from mtl_bento_search.report.words import clipped, percent_tick, short

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 30, 46
"""Margins of a plot: ticks and titles of its axes stand in them."""


@dataclass(frozen=True)
class Scale:
    """A linear map from values to a length of the picture; values beyond it stay at its ends where `clamped`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value, to a tenth."""
        return round(self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start), 1)

    def clamped(self, value: float) -> float:
        """Return the place of a value, at most the scale's ends."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, most: int = 6) -> list[float]:
        """Return at most so many round values on the scale."""
        return [t for t in ticks(self.low, self.high, most) if self.low <= t <= self.high]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round values from low to high, at most `most` of them."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10 ** math.floor(math.log10(span / most))
    step = next(s * power for s in (1, 2, 2.5, 5, 10, 20) if span / (s * power) <= most - 1 + 1e-9)
    first = math.ceil(low / step - 1e-9)
    return [round(float(i * step), 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def above(points: Sequence[tuple[float, float]], low: float) -> list[tuple[float, float]]:
    """Return the parts of a line of points that lie above a value: it begins and ends where the line crosses it."""
    found: list[tuple[float, float]] = []
    for (x, y), (to_x, to_y) in pairwise(points):
        inside = [not v < low for v in (y, to_y)]
        crossing = (x + (low - y) / ((to_y - y) or 1.0) * (to_x - x), low)
        if all(inside):
            found += [(x, y), (to_x, to_y)]
        elif any(inside):
            found += [(x, y), crossing] if inside[0] else [(math.nan, math.nan), crossing, (to_x, to_y)]
        else:
            found.append((math.nan, math.nan))
    return found


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Return the range of values with some air; a range around a lone value."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    air = (high - low) * share or abs(low) * 0.1 or 0.05
    return low - air, high + air


def in_view(gains: Sequence[float]) -> tuple[float, float]:
    """Return the range of gains that is drawn: zero, the best, and not the far end of what went wrong."""
    values = sorted(gains) or [0.0]
    middle, high = values[len(values) // 2], max(0.0, values[-1])
    low = max(min(0.0, values[0]), min(0.0, middle - 3 * max(high - middle, 0.02)))
    air = (high - low) * 0.06 or 0.05
    return low - air, high + air


@dataclass(frozen=True)
class Plot:
    """A frame with two scales; marks are drawn on it."""

    x: Scale
    y: Scale
    width: int = WIDTH
    height: int = HEIGHT

    @classmethod
    def of(cls, xs: tuple[float, float], ys: tuple[float, float], *, width: int = WIDTH, height: int = HEIGHT) -> Plot:
        """Return a plot of these ranges."""
        x = Scale(*xs, LEFT, width - RIGHT)
        return cls(x, Scale(*ys, height - BOTTOM, TOP), width, height)

    def frame(
        self,
        *,
        across: str,
        up: str,
        x_text: Callable[[float], str] = short,
        y_text: Callable[[float], str] = percent_tick,
        whole: bool = False,
    ) -> Html:
        """Return grid lines, labels at the ticks (across at whole numbers only where `whole`), titles of the axes."""
        rows = [
            join(self.across(t, "grid"), _label(LEFT - 7, self.y(t), y_text(t), "end", dy=4)) for t in self.y.ticks()
        ]
        places = [t for t in self.x.ticks() if not whole or t.is_integer()]
        labels = [_label(self.x(t), self.height - BOTTOM + 19, x_text(t), "middle") for t in places]
        titles = [
            el("text", clipped(across, 60), x=self.x.end, y=self.height - 6, text_anchor="end", class_="axis"),
            el("text", clipped(up, 60), x=0, y=14, class_="axis"),
        ]
        return join(rows, labels, titles)

    def across(self, y: float, class_: str) -> Html:
        """Return a line at one height through the whole plot."""
        at = self.y(y)
        return el("path", d=f"M{self.x.start:g} {at}H{self.x.end:g}", class_=class_)

    def upright(self, x: float, class_: str) -> Html:
        """Return a line at one x through the whole plot."""
        at = self.x(x)
        return el("path", d=f"M{at} {self.y.start:g}V{self.y.end:g}", class_=class_)

    def line(self, points: Sequence[tuple[float, float]], class_: str, *, tip: str | None = None) -> Html:
        """Return a line through points, broken where one is NaN, held at the plot's edge where it leaves it."""
        parts, pen = [], "M"
        for x, y in points:
            if math.isnan(y):
                pen = "M"
                continue
            parts.append(f"{pen}{self.x(x)} {self.y.clamped(y)}")
            pen = "L"
        return el("path", d="".join(parts), class_=f"line {class_}", data_tip=tip)

    def steps(self, points: Sequence[tuple[float, float]], class_: str) -> Html:
        """Return a line that keeps each value until the next point."""
        if not points:
            return Html()
        (x, y), rest = points[0], points[1:]
        path = f"M{self.x(x)} {self.y.clamped(y)}" + "".join(f"H{self.x(a)}V{self.y.clamped(b)}" for a, b in rest)
        return el("path", d=f"{path}H{self.x.end:g}", class_=f"line {class_}")

    def dot(self, x: float, y: float, class_: str, *, tip: str | None = None, r: float = 4) -> Html:
        """Return a dot; a small triangle at the lower edge for what lies below the plot."""
        if y < self.y.low:
            at, edge = self.x.clamped(x), self.y.start
            return el("path", d=f"M{at - 3.5:g} {edge - 6:g}h7l-3.5 6z", class_=class_, data_tip=tip)
        return el("circle", cx=self.x.clamped(x), cy=self.y.clamped(y), r=r, class_=class_, data_tip=tip)

    def dots(self, points: Iterable[tuple[float, float]], class_: str) -> Html:
        """Return dots as one path of a few bytes each, for hundreds of trials; those outside stay at the edge."""
        path = "".join(f"M{self.x.clamped(x):g} {self.y.clamped(y):g}h0" for x, y in points)
        return el("path", d=path, class_=f"dots {class_}") if path else Html()


def share_tick(value: float) -> str:
    """Return a share at an axis: 0 %, 25 %."""
    return percent_tick(value).lstrip("+")


def _label(x: float, y: float, shown: str, anchor: str, *, dy: float = 0) -> Html:
    return el("text", shown, x=x, y=round(y + dy, 1), text_anchor=anchor, class_="tick")


def picture(*marks: Child, label: str, width: int = WIDTH, height: int = HEIGHT, class_: str = "plot") -> Html:
    """Return marks as a picture; `label` says in words what is seen."""
    return el("svg", *marks, viewBox=f"0 0 {width} {height}", role="img", aria_label=label, class_=class_)


def figure_box(title: Child, drawn: Html, caption: Child, *, legend: Html | None = None, class_: str = "") -> Html:
    """Return a picture with its title above and what is to be seen below."""
    return el("figure", el("h3", title), legend, drawn, el("figcaption", caption), class_=class_ or None)


def legend(*entries: tuple[str, str]) -> Html:
    """Return a key: (style, words) for each kind of mark."""
    return el("p", [el("span", el("i", class_=f"key {style}"), words) for style, words in entries], class_="legend")


def chosen_words(best: int) -> str:
    """Return what the chosen trial is called in a key."""
    return f"chosen, trial {best}" + (", the defaults" if best == 0 else "")


def defaults_key(mark: str, best: int) -> list[tuple[str, str]]:
    """Return the entry of trial 0 in a key: none where it is the chosen one."""
    return [(f"{mark} default", "trial 0, the defaults")] if best else []
