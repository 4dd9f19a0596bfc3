"""What the test rows say: the headline, a sentence and a row for each task, and every metric."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mtl_bento_search.report.bars import forest_bar, forest_reach
from mtl_bento_search.report.html import Html, el, join, name, names, prose, text
from mtl_bento_search.report.reading import Comparison, Facts
from mtl_bento_search.report.words import (
    MINUS,
    MOST_SENTENCES,
    between,
    by_verdict,
    compared_with,
    count,
    direction,
    figure,
    headline,
    percent,
    sentence,
    signed,
    verdict,
    who_serves,
)

MOST_OPEN = 8
"""Tasks up to which the table of every metric is unfolded."""


def result(facts: Facts) -> Html:
    """Return the section that answers: did sharing help?"""
    if not facts.tested:
        return join(_no_test(), el("p", _on_validation(facts), class_="lead"), validation(facts))
    return join(
        _looks(int(facts.result["test_looks"])),
        el("p", headline(facts.tested), class_="lead"),
        _sentences(facts.tested) if len(facts.tested) <= MOST_SENTENCES else _groups(facts.tested),
        comparison(facts.tested),
    )


def _looks(times: int) -> Html | None:
    if times <= 1:
        return None
    return el(
        "div",
        el("strong", f"The test rows were scored {times} times."),
        " This run was raised after its test rows had been scored, so somebody may have chosen by them: the figures "
        "below can flatter the model. For an honest figure, score rows that no look has seen: ",
        el("code", "mtl-bento evaluate RUN NEW_TABLE"), ".",
        class_="alert bad", role="alert",
    )  # fmt: skip


def _no_test() -> Html:
    return el(
        "div",
        el("strong", "No rows were kept for a test."),
        " What follows was measured on the validation rows, by which the network was chosen: it flatters the model. "
        "For an honest figure, score rows that the search has not seen: ",
        el("code", "mtl-bento evaluate RUN NEW_TABLE"), ".",
        class_="alert bad", role="alert",
    )  # fmt: skip


def _on_validation(facts: Facts) -> Html:
    """Return the headline where there is no test."""
    gains = [facts.validation(task)[2] for task in facts.names]
    lower = f"{sum(gain > 0 for gain in gains)} of {count(len(gains), 'target')}"
    alone = "the network at the defaults" if len(gains) == 1 else "single-task networks"
    words = text(f"On validation rows, trial {facts.best} has a lower loss than {alone} for {lower}.")
    kept = [t for g in facts.result["network"]["groups"] if g["name"] != f"trial {facts.best}" for t in g["tasks"]]
    return join(words, " Single-task networks are kept for ", names(kept, most=6), ".") if kept else words


def _sentences(tested: list[Comparison]) -> Html:
    alone = len(tested) == 1
    said = [el("li", _chip(task, alone=alone), " ", sentence(task, alone=alone)) for task in tested]
    return el("ul", said, class_="said")


def _groups(tested: list[Comparison]) -> Html:
    """Return the tasks by verdict, each with its difference."""
    said = []
    for word, held in by_verdict(tested).items():
        shown = verdict(word)
        each = [join(name(task.name), _by(task)) for task in held]
        said.append(
            el(
                "li",
                el("span", f"{shown.mark} {shown.label}: {len(held)}", class_=f"chip {shown.tone}"),
                " ",
                join(*each, by=", "),
            )
        )
    return el("ul", said, class_="said")


def _by(task: Comparison) -> Html | None:
    if task.verdict == "single-task kept" or not math.isfinite(task.difference):
        return None
    return el("span", f" ({signed(task.difference)} {task.metric})", class_="quiet")


def _chip(task: Comparison, *, alone: bool) -> Html:
    shown = verdict(task.verdict, alone=alone)
    return el("span", f"{shown.mark} {shown.label}", class_=f"chip {shown.tone}")


# -- the comparison -----------------------------------------------------------------------------------------------


def comparison(tested: list[Comparison]) -> Html:
    """Return the table of each task beside its single-task network."""
    alone, reach = len(tested) == 1, forest_reach(tested)
    other = "At the defaults" if alone else "Single-task"
    heads = ["Target", "This model", other, "Difference", "← worse, better →", "Verdict, served by"]
    labels = [*heads[:4], "Interval", "Verdict"]
    rows = [_comparison_row(task, reach, labels, alone=alone) for task in tested]
    words = "All figures are from the test rows; in small, 95 % bootstrap intervals."
    if math.isfinite(reach):
        words += (
            " The bars show the interval of the difference as a share of the "
            f"{'other' if alone else 'single-task'} network's error (1 − score, or the error itself), from "
            f"{percent(-reach)} to {percent(reach)}."
        )
    return join(_table(heads, rows, class_="cards compare"), el("p", words, class_="caption"))


def _comparison_row(task: Comparison, reach: float, labels: list[str], *, alone: bool) -> Html:
    target = join(
        el("strong", name(task.name)),
        el("small", f"{task.metric}, {direction(higher_is_better=task.higher_is_better)}"),
        el("small", f"{task.kind}, {count(task.n_test, 'row')}"),
    )
    same = task.verdict == "single-task kept"
    cells = [
        (target, "head"),
        (join(el("b", figure(task.ours)), _bounds(*task.interval)), "num"),
        (join(el("b", figure(task.single)), el("small", compared_with(task))), "num"),
        (join(el("b", "same network" if same else signed(task.difference)),
              None if same else _bounds(task.lower, task.upper, difference=True)), "num"),
        (forest_bar(task, reach), "picture"),
        (join(_chip(task, alone=alone), el("small", who_serves(task, alone=alone))), ""),
    ]  # fmt: skip
    return _row(cells, labels)


def _bounds(low: float, high: float, *, difference: bool = False) -> Html | None:
    return el("small", between(low, high, difference=difference)) if math.isfinite(low + high) else None


def _table(heads: list[str], rows: list[Html], *, class_: str) -> Html:
    head = el("tr", [el("th", label, scope="col", role="columnheader") for label in heads], role="row")
    return el(
        "table", el("thead", head, role="rowgroup"), el("tbody", rows, role="rowgroup"), class_=class_, role="table"
    )


def _row(cells: Sequence[tuple[Html | str | None, str]], labels: list[str]) -> Html:
    """Return a row whose cells carry their column's name, for phones, where the table becomes cards."""
    (first, style), rest = cells[0], cells[1:]
    shown = [el("th", first, scope="row", role="rowheader", class_=style or None)]
    shown += [
        el("td", None if cell is None else el("div", cell), data_label=label, role="cell", class_=class_ or None)
        for (cell, class_), label in zip(rest, labels[1:], strict=True)
    ]
    return el("tr", shown, role="row")


# -- every metric -------------------------------------------------------------------------------------------------


def every_metric(facts: Facts) -> Html | None:
    """Return all metrics of each task on the test rows, and its losses on the validation rows."""
    if not facts.tested:
        return None
    heads = ["Metric", "This model", "At the defaults" if len(facts.tested) == 1 else "Single-task"]
    head = el("tr", [el("th", label, scope="col") for label in heads])
    table = el("table", el("thead", head), [_metric_rows(task) for task in facts.tested], class_="plain")
    if len(facts.tested) <= MOST_OPEN:
        return join(table, el("h3", "On the validation rows"), validation(facts))
    n = len(facts.tested)
    return join(
        el("details", el("summary", f"Every metric of {n} targets on the test rows"), table),
        el("details", el("summary", f"The losses of {n} targets on the validation rows"), validation(facts)),
    )


def _metric_rows(task: Comparison) -> Html:
    rows = [el("tr", el("th", name(task.name), scope="rowgroup", colspan=3), class_="group")]
    for metric, (ours, single) in task.metrics.items():
        label = join(metric, el("span", " (shown first)", class_="quiet") if metric == task.metric else None)
        figures = [el("td", figure(value), class_="num") for value in (ours, single)]
        rows.append(el("tr", el("th", label, scope="row"), figures))
    return el("tbody", rows)


def validation(facts: Facts) -> Html:
    """Return the losses on validation rows: each task alone, and in the chosen trial."""
    metrics = {task: _validation_metrics(facts, task) for task in facts.names}
    heads = ["Target", "Loss alone", f"Loss in trial {facts.best}", "Gain", f"Metric in trial {facts.best}"]
    rows = []
    for task in facts.names:
        single, ours, gain = facts.validation(task)
        tone = {"+": "good", MINUS: "bad"}.get(percent(gain)[0])
        losses = [(figure(single), "num"), (figure(ours), "num")]
        last = [(el("span", percent(gain), class_=tone), "num"), (metrics[task], "num")]
        rows.append(_row([(name(task), ""), *losses, *last], heads))
    words = (
        "A loss of 1 is a predictor that has learned nothing. The network was chosen by these rows, so they flatter it."
    )
    return join(_table(heads, rows, class_="cards plain"), el("p", words, class_="caption"))


def _validation_metrics(facts: Facts, task: str) -> str:
    """Return the metrics that the study kept of a task in the chosen trial."""
    held = facts.trials.get(facts.best)
    prefix = f"val.{task}."
    others = [f"val.{name_}." for name_ in facts.names if name_.startswith(f"{task}.")]  # targets a and a.b
    found = {} if held is None else {
        key.removeprefix(prefix): facts.attribute(facts.best, key)
        for key in held.user_attrs
        if key.startswith(prefix) and key != f"{prefix}loss" and not any(key.startswith(o) for o in others)
    }  # fmt: skip
    return ", ".join(f"{metric} {figure(value)}" for metric, value in found.items()) or "–"


# -- left out -----------------------------------------------------------------------------------------------------


def left_out(records: list[dict[str, str]]) -> Html:
    """Return the columns that are no inputs, why, and what to do; those of one reason and remedy together."""
    if not records:
        return el("p", "No column was left out.")
    groups: dict[tuple[str, str], list[str]] = {}
    for record in records:
        groups.setdefault((record["reason"], record["remedy"]), []).append(record["name"])
    heads = ["Column", "Why", "To use it"]
    rows = [
        _row([(names(held), "head"), (prose(reason), ""), (prose(remedy), "")], heads)
        for (reason, remedy), held in groups.items()
    ]
    return _table(heads, rows, class_="cards")
