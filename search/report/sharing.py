"""Who serves which target, by which share, and which targets were proposed to share a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_bento_search.report.html import Html, el, join, name
from mtl_bento_search.report.words import clipped, count, figure

KINDS = {
    "shared": "networks of all targets",
    "group": "networks of some targets",
    "single": "single-task networks",
    "trees": "boosted trees",
    "offset": "networks on top of the trees",
}
"""Kinds of what may serve, in words, in the order of the legend."""
MEASURES = {
    "gradients": "Cosine of the gradients that two targets give the shared layers of trial 0",
    "errors": "Rank correlation of the losses of two targets' single-task networks on validation rows",
}
"""What affinities measure."""
WIDTH, HEIGHT = 300, 14
MOST_SHOWN = 20
"""Targets whose affinities are shown; of more the matrix cannot be read."""


def served(result: Mapping[str, Any]) -> Html | None:
    """Return a bar for each target: what answers it, and with which share; None for a result without a blend."""
    blend = result.get("blend")
    if blend is None:
        return None
    candidates = blend["candidates"]
    rows = [_row(task, shares, candidates) for task, shares in blend["shares"].items()]
    head = el("tr", el("th", "target"), el("th", "share"), el("th", "served by"))
    present = {c["kind"] for i, c in enumerate(candidates) if any(held[i] for held in blend["shares"].values())}
    legend = [el("span", words, class_=f"key k-{kind}") for kind, words in KINDS.items() if kind in present]
    words = "Answers are averages of what is named, by the shares shown; validation rows decided."
    bars = el("table", el("thead", head), el("tbody", rows), class_="plain blend")
    return join(el("p", join(*legend, by=" "), class_="legend"), el("div", bars, class_="scroll whole"), el("p", words))


def _row(task: str, shares: Sequence[float], candidates: Sequence[Mapping[str, Any]]) -> Html:
    held = sorted(((share, c) for share, c in zip(shares, candidates, strict=True) if share), key=lambda p: -p[0])
    x, parts = 0.0, []
    for share, candidate in held:
        width = WIDTH * share
        parts.append(
            el("rect", x=round(x, 1), y=1, width=round(max(width - 1, 1), 1), height=HEIGHT - 2, rx=2,
               class_=f"k-{candidate['kind']}", data_tip=f"{candidate['name']}: {share:.0%}")
        )  # fmt: skip
        x += width
    label = ", ".join(f"{c['name']} {share:.0%}" for share, c in held)
    bar = el("svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", width=WIDTH, role="img", aria_label=label, class_="blend")
    words = ", ".join(f"{c['name']} ({share:.0%}{_copies(c)})" for share, c in held)
    return el("tr", el("th", name(task), scope="row"), el("td", bar), el("td", words))


def _copies(candidate: Mapping[str, Any]) -> str:
    n = candidate["members"]
    return "" if n == 1 else f", {n} folds"


def groups(result: Mapping[str, Any]) -> Html | None:
    """Return affinities and what came of each partition that they proposed; None where nothing was proposed."""
    held = result.get("groups") or {}
    names = list(result["blend"]["shares"]) if "blend" in result else []
    matrices = [_matrix(measure, m, names) for measure, m in (held.get("affinities") or {}).items()]
    partitions = held.get("partitions") or []
    if not matrices and not partitions:
        return None
    shown = matrices if len(names) <= MOST_SHOWN else [el("p", f"Affinities of {len(names)} targets: result.json.")]
    return join(
        el("p", "Which targets might share was proposed by two affinities; networks of these groups were trained, "
                "and validation rows decided."),
        el("div", shown, class_="two"),
        _proposals(partitions, names, result),
    )  # fmt: skip


def _matrix(measure: str, matrix: Sequence[Sequence[float]], names: Sequence[str]) -> Html:
    head = el("tr", el("th", ""), [el("th", clipped(n, 10), title=n) for n in names])
    rows = [
        el("tr", el("th", clipped(n, 16), scope="row", title=n), [_cell(v, i == j) for j, v in enumerate(row)])
        for i, (n, row) in enumerate(zip(names, matrix, strict=True))
    ]
    table = el("table", el("caption", MEASURES.get(measure, measure)), el("thead", head), el("tbody", rows),
               class_="plain matrix")  # fmt: skip
    return el("div", table, class_="scroll whole")


def _cell(value: float, own: bool) -> Html:
    if own or not math.isfinite(value):
        return el("td", "", class_="num quiet")
    tone = "pull" if value > 0 else "push"
    strength = min(4, int(abs(value) * 5))
    return el("td", f"{value:+.2f}", class_=f"num {tone}{strength}")


def _proposals(partitions: Sequence[Mapping[str, Any]], names: Sequence[str], result: Mapping[str, Any]) -> Html | None:
    if not partitions:
        return None
    blend = result["blend"]
    serving = {c["name"] for i, c in enumerate(blend["candidates"]) if any(s[i] for s in blend["shares"].values())}
    heads = ("Partition", "Validation loss", "Serves")
    rows = []
    for partition in partitions:
        titles = [" + ".join(group) for group in partition["groups"]]
        used = [t for t in titles if any(c.startswith(f"{t} at trial") for c in serving)]
        cells = (_losses(names, partition["losses"]), ", ".join(used) or "nothing")
        told = [el("td", el("div", cell), data_label=label) for label, cell in zip(heads[1:], cells, strict=True)]
        rows.append(el("tr", el("th", " | ".join(titles), scope="row"), told))
    head = el("tr", [el("th", label, scope="col") for label in heads])
    table = el("table", el("thead", head), el("tbody", rows), class_="cards plain partitions")
    words = f"{count(len(partitions), 'partition')}; a loss of 1 is the best constant's."
    return join(el("p", words), el("div", table, class_="scroll whole"))


def _losses(names: Sequence[str], losses: Sequence[float | None]) -> str:
    """Return the losses of the groups that were trained, target by target."""
    trained = [f"{name} {figure(v)}" for name, v in zip(names, losses, strict=True) if v is not None]
    if not trained:
        return "not trained"
    left = [name for name, v in zip(names, losses, strict=True) if v is None]
    return ", ".join(trained) + (f"; not trained: {', '.join(left)}" if left else "")
