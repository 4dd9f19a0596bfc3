"""Where a result came from: data, inputs, time, versions, and what to type next."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from mtl_bento_search.report.bars import phases
from mtl_bento_search.report.html import Html, el, join, name, prose
from mtl_bento_search.report.reading import Facts, number
from mtl_bento_search.report.words import count, duration

MOST_INPUTS = 30
"""Inputs up to which their table is unfolded."""


def tiles(facts: Facts) -> Html:
    """Return the run at a glance."""
    result = facts.result
    trials, rows = result["trials"], result["rows"]
    learned = f"{rows['train']:,} to learn from" + (
        f", {rows['folds']} folds" if rows["folds"] > 1 else f", {rows['valid']:,} to choose by"
    )
    entries = [
        (count(len(facts.names), "target"), count(len(result["inputs"]), "input")),
        (count(trials["total"], "trial"), f"{trials['complete']:,} complete, {trials['pruned']:,} pruned"),
        (count(rows["test"], "test row"), learned),
        (f"{duration(number(result.get('elapsed_s')))} in all", f"on {result['device']}"),
    ]  # fmt: skip
    shown = [el("li", el("b", value), el("small", more)) for value, more in entries]
    return el("ul", shown, class_="tiles")


def split(facts: Facts) -> Html:
    """Return how the rows were divided, and what was noticed."""
    rows = facts.result["rows"]
    if rows["folds"] > 1:
        words = (
            f"{rows['train']:,} rows in {rows['folds']} folds: every row is learned from in all folds but one, "
            "and validated on in that one."
        )
    else:
        words = f"{rows['train']:,} rows to learn from and {rows['valid']:,} validation rows to choose by."
    looks = int(facts.result["test_looks"])
    looked = "looked at once, at the end" if looks == 1 else f"scored {looks} times"
    words += f" {count(rows['test'], 'test row')}, {looked}." if rows["test"] else " No test rows."
    notes = [el("li", prose(note)) for note in facts.result["notes"]]
    return join(el("p", words), el("ul", notes) if notes else None)


def inputs(records: list[dict[str, str]]) -> Html:
    """Return what each input was taken for."""
    kinds = Counter(record["kind"] for record in records)
    summary = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common())
    rows = [el("tr", el("th", name(r["name"]), scope="row"), el("td", r["kind"]), el("td", r["what"])) for r in records]
    head = el("tr", [el("th", label, scope="col") for label in ("Input", "Kind", "What it is taken for")])
    table = el("table", el("thead", head), el("tbody", rows), class_="plain")
    remedy = prose(
        "To take one for something else: `inputs: {NAME: KIND}` in mtl.yaml, or `ignore: [NAME]` to leave it out."
    )
    if len(records) <= MOST_INPUTS:
        return join(el("p", f"{count(len(records), 'input')}: {summary}. ", remedy), table)
    shut = el("details", el("summary", f"All {len(records):,} inputs"), el("div", table, class_="scroll"))
    return join(el("p", f"{count(len(records), 'input')}: {summary}. ", remedy), shut)


def time_spent(facts: Facts) -> Html:
    """Return what each phase of the run cost."""
    seconds = dict(facts.result.get("phases_s", {}))
    rest = facts.result.get("elapsed_s", 0.0) - sum(seconds.values())
    if rest > 0.5:
        seconds["other"] = rest
    n, spent = facts.result["trials"]["total"], seconds.get("search", 0.0)
    words = "Bars: wall time of each phase of the run, and its share of the whole."
    if n > 1 and spent:
        words += f" Trials train in stacks, {duration(spent / n)} each on average."
    return join(phases(seconds), el("p", words, class_="caption"))


def versions(facts: Facts) -> Html:
    """Return versions, seed and hashes."""
    result, attrs = facts.result, facts.study.user_attrs
    entries: list[tuple[str, Any]] = [
        ("mtl-bento", result.get("framework_version") or _version()),
        ("torch", result["torch"]),
        ("Optuna", result["optuna"]),
        ("Python", result["python"]),
        ("device", result["device"]),
        ("seed", result["seed"]),
        ("study", facts.study.study_name),
        ("began", _date(facts, first=True)),
        ("ended", _date(facts, first=False)),
    ]
    entries += [(f"hash of the {key}", attrs.get(f"{key}_sha256")) for key in ("spec", "data", "split")]
    shown = [join(el("dt", key), el("dd", el("code", str(value)))) for key, value in entries if value not in (None, "")]
    return el("dl", shown, class_="facts")


def _version() -> str:
    from importlib.metadata import version

    return version("mtl-bento")


def _date(facts: Facts, *, first: bool) -> str | None:
    trials = facts.trials.values()
    dates = [d for t in trials if (d := t.datetime_start if first else t.datetime_complete) is not None]
    return (min(dates) if first else max(dates)).isoformat(sep=" ", timespec="minutes") if dates else None


def commands(folder: Path) -> Html:
    """Return what to type next."""
    run = shlex.quote(str(folder))
    lines = [
        (f"mtl-bento package {run}", "puts the model and its service into BentoML's store, and prints their tag"),
        ("bentoml serve TAG", "serves it: POST /predict answers every target in one request"),
        (f"mtl-bento predict {run} TABLE --out FILE", "answers the rows of a table"),
        (f"mtl-bento evaluate {run} TABLE", "scores it on other rows, with intervals"),
    ]
    if (folder / "study.log").is_file():  # not where the study lives in a storage of the user's
        lines.append((f"optuna-dashboard {shlex.quote(str(folder / 'study.log'))}", "shows every trial"))
    rows = [el("tr", el("td", _command(line)), el("td", words)) for line, words in lines]
    more = (
        "The same `mtl-bento search` with a larger `--n-trials` or `--timeout` goes on where this run ended; its test "
        "is then a second look, and marked as one."
    )
    return join(el("table", el("tbody", rows), class_="commands"), el("p", prose(more), class_="caption"))


def _command(line: str) -> Html:
    """Return a command that breaks between its words only, not within `--out`."""
    return el("code", join(*(el("span", word) for word in line.split(" ")), by=" "))
