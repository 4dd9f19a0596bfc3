"""The trials in figures: the chosen configuration, and the best of the others."""

from __future__ import annotations

from typing import Any

from mtl_bento_search.report.html import Html, el, join, name
from mtl_bento_search.report.reading import Facts
from mtl_bento_search.report.words import duration, percent, short

MOST_TRIALS = 10
"""Best trials in the table."""
MOST_TASKS = 16
"""Targets up to which their parameters are unfolded."""


def ranked(facts: Facts) -> Html:
    """Return the best complete trials."""
    heads = ["Trial", "Gain", "Worst target", "Parameters", "Trained in"]
    rows = []
    for point in facts.complete[:MOST_TRIALS]:
        note = "chosen" if point.number == facts.best else "the defaults" if point.number == 0 else None
        worst = facts.attribute(point.number, "worst_ratio")
        cells = [percent(point.gain), percent(1 - worst), short(facts.attribute(point.number, "n_params")),
                 duration(facts.attribute(point.number, "train_s"))]  # fmt: skip
        label = el("th", str(point.number), el("small", note) if note else None, scope="row")
        rows.append(
            el(
                "tr",
                label,
                [el("td", cell, class_="num") for cell in cells],
                class_="chosen" if note == "chosen" else None,
            )
        )
    head = el("tr", [el("th", label, scope="col", class_="num" if i else None) for i, label in enumerate(heads)])
    return el("div", el("table", el("thead", head), el("tbody", rows), class_="plain"), class_="scroll")


def chosen(facts: Facts) -> Html:
    """Return the parameters of the chosen trial: common ones, and those of each target."""
    params: dict[str, Any] = facts.result["trials"]["best_params"]
    by_task: dict[str, dict[str, Any]] = {}
    common: dict[str, Any] = {}
    for key, value in params.items():
        task = next((t for t in facts.names if key.endswith(f".{t}")), None)
        if task is None:
            common[key] = value
        else:
            by_task.setdefault(key.removesuffix(f".{task}"), {})[task] = value
    if not params:
        return el("p", "Everything was fixed by the spec; nothing was searched.")
    listed = el("dl", [join(el("dt", el("code", k)), el("dd", _value(v))) for k, v in common.items()], class_="facts")
    return join(listed, _per_task(facts, by_task) if by_task else None)


def _per_task(facts: Facts, by_task: dict[str, dict[str, Any]]) -> Html:
    head = el(
        "tr", el("th", "Target", scope="col"), [el("th", el("code", key), scope="col", class_="num") for key in by_task]
    )
    rows = [
        el(
            "tr",
            el("th", name(t), scope="row"),
            [el("td", _value(values.get(t)), class_="num") for values in by_task.values()],
        )
        for t in facts.names
    ]
    table = el("table", el("thead", head), el("tbody", rows), class_="plain")
    shut = el("details", el("summary", "Parameters of each target"), table)
    return table if len(facts.names) <= MOST_TASKS else shut


def _value(value: Any) -> str:
    return "–" if value is None else short(value) if isinstance(value, float) else str(value)
