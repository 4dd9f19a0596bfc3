"""What the test rows say: the headline, a sentence and a row for each task, and every metric."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mtl_bento_search.report.bars import forest_bar, forest_reach
from mtl_bento_search.report.html import Html, el, join, name, names, prose, text
from mtl_bento_search.report.reading import Against, Comparison, Facts
from mtl_bento_search.report.words import (
    MINUS,
    MOST_SENTENCES,
    NOTHING,
    between,
    by_verdict,
    count,
    direction,
    figure,
    heading,
    headline,
    least,
    percent,
    sentence,
    signed,
    verdict,
    where,
    who_serves,
)
from mtl_bento_search.said import after_the_test
from mtl_bento_search.verdict import ARMS, INCONCLUSIVE, OPPONENTS, RULE, SAME, WORSE

MOST_OPEN = 8
"""Tasks up to which the table of every metric is unfolded."""


def result(facts: Facts) -> Html:
    """Return the section that answers: did sharing help?"""
    if not facts.tested:
        later = [el("p", line) for line in after_the_test(facts.result)]
        return join(_no_test(), el("p", _on_validation(facts), class_="lead"), validation(facts), *later)
    tested, alone = facts.tested, len(facts.tested) == 1
    heads = [
        el(
            "p",
            headline(tested, opponent),
            class_="lead" if place == 0 or WORSE in by_verdict(tested, opponent) else None,
        )
        for place, opponent in enumerate(facts.opponents)
    ]
    said = el("ul", [el("li", sentence(task, alone=alone)) for task in tested], class_="said")
    return join(
        _looks(int(facts.result["test_looks"])),
        *heads,
        said if len(tested) <= MOST_SENTENCES else _groups(facts),
        comparison(facts),
        *(el("p", line) for line in after_the_test(facts.result)),
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
    return text(f"On validation rows, trial {facts.best} has a lower loss than {alone} for {lower}.")


def _groups(facts: Facts) -> Html:
    """Return the tasks by verdict against each opponent, each with its difference."""
    said = []
    for opponent in facts.opponents:
        if len(facts.opponents) > 1:
            said.append(el("li", el("strong", heading(opponent)), class_="group"))
        for word, held in by_verdict(facts.tested, opponent).items():
            shown = verdict(word)
            each = [join(name(task.name), _by(task, task.against[opponent])) for task in held]
            chip = el("span", f"{shown.mark} {shown.label}: {len(held)}", class_=f"chip {shown.tone}")
            said.append(el("li", chip, " ", join(*each, by=", ")))
    return el("ul", said, class_="said")


def _by(task: Comparison, against: Against) -> Html | None:
    if against.verdict == SAME or not math.isfinite(against.difference):
        return None
    return el("span", f" ({signed(against.difference)} {task.metric})", class_="quiet")


# -- the comparison -----------------------------------------------------------------------------------------------


def comparison(facts: Facts) -> Html:
    """Return the table of each task beside its opponents."""
    tested, opponents = facts.tested, facts.opponents
    alone, reach = len(tested) == 1, forest_reach(tested)
    heads = ["Target", "This model", *(heading(opponent, alone=alone) for opponent in opponents)]
    rows = [_comparison_row(task, reach, heads, opponents) for task in tested]
    words = f"All figures are from the test rows; in small, 95 % bootstrap intervals. {RULE}"
    if math.isfinite(reach):
        words += (
            " The bars show the interval of the difference as a share of the other's error (1 − score, or the error "
            f"itself), from {percent(-reach)} (worse) to {percent(reach)} (better)."
        )
    return join(_table(heads, rows, class_="cards compare"), el("p", words, class_="caption"))


def _comparison_row(task: Comparison, reach: float, heads: list[str], opponents: list[str]) -> Html:
    target = join(
        el("strong", name(task.name)),
        el("small", f"{task.metric}, {direction(higher_is_better=task.higher_is_better)}"),
        el("small", f"{task.kind}, {count(task.n_test, 'row')}"),
    )
    ours = join(el("b", figure(task.ours)), _bounds(*task.interval), el("small", who_serves(task), class_="who"))
    cells = [(target, "head"), (ours, "num")]
    cells += [(_against(task, task.against.get(opponent), reach), "num against") for opponent in opponents]
    return _row(cells, heads)


def _against(task: Comparison, against: Against | None, reach: float) -> Html:
    """Return the figure of an opponent, the verdict, and the difference with its interval, also as a bar."""
    if against is None:
        return text(NOTHING)
    value = join(el("b", figure(against.value)), " ", _chip(against), el("small", where(task, against), class_="who"))
    if against.verdict == SAME or not math.isfinite(against.difference):
        return value
    bounds = between(against.lower, against.upper, difference=True)
    spread = "" if bounds == NOTHING else f" ({bounds})"
    few = el("small", least(against), class_="who") if against.verdict == INCONCLUSIVE else None
    return join(value, el("small", f"{signed(against.difference)}{spread}"), forest_bar(against, reach), few)


def _chip(against: Against) -> Html:
    shown = verdict(against.verdict)
    return el("span", f"{shown.mark} {shown.label}", class_=f"chip {shown.tone}")


def _bounds(low: float, high: float) -> Html | None:
    return el("small", between(low, high)) if math.isfinite(low + high) else None


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
    shown = el("h3", "Every way to answer"), every_arm(facts), el("h3", "Every metric")
    heads = ["Metric", "This model", *(OPPONENTS[opponent].capitalize() for opponent in facts.opponents)]
    head = el("tr", [el("th", label, scope="col") for label in heads])
    rows = [_metric_rows(task, facts.opponents) for task in facts.tested]
    table = el("table", el("thead", head), rows, class_="plain")
    if len(facts.tested) <= MOST_OPEN:
        return join(
            *shown, el("div", table, class_="scroll whole"), el("h3", "On the validation rows"), validation(facts)
        )
    n = len(facts.tested)
    return join(
        *shown[:2],
        el(
            "details",
            el("summary", f"Every metric of {n} targets on the test rows"),
            el("div", table, class_="scroll whole"),
        ),
        el("details", el("summary", f"The losses of {n} targets on the validation rows"), validation(facts)),
    )


def every_arm(facts: Facts) -> Html:
    """Return the metric of each task in every arm that was scored: what sharing, mixing and searching each gave."""
    arms = [arm for arm in ARMS if any(arm in task.values for task in facts.tested)]
    heads = ["Target", *(ARMS[arm].capitalize() for arm in arms)]
    rows = []
    for task in facts.tested:
        target = join(name(task.name), el("small", task.metric))
        rows.append(_row([(target, "head"), *((_arm(task, arm), "num") for arm in arms)], heads))
    words = (
        "On the test rows; below each figure the loss that is trained for, where 1 is the best answer that is the same "
        "for every row."
    )
    return join(_table(heads, rows, class_="cards plain"), el("p", words, class_="caption"))


def _arm(task: Comparison, arm: str) -> Html:
    loss = task.losses.get(arm, math.nan)
    below = el("small", f"loss {figure(loss, digits=3)}") if math.isfinite(loss) else None
    return join(figure(task.values.get(arm, math.nan)), below)


def _metric_rows(task: Comparison, opponents: list[str]) -> Html:
    columns = 2 + len(opponents)
    rows = [el("tr", el("th", name(task.name), scope="rowgroup", colspan=columns), class_="group")]
    others = [task.against[opponent].metrics if opponent in task.against else {} for opponent in opponents]
    for metric, ours in task.metrics.items():
        label = join(metric, el("span", " (shown first)", class_="quiet") if metric == task.metric else None)
        values = [ours, *(other.get(metric, math.nan) for other in others)]
        rows.append(el("tr", el("th", label, scope="row"), [el("td", figure(v), class_="num") for v in values]))
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
