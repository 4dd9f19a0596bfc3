"""The page: sections in order, in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from mtl_bento_search.report import errors, hyperparameters, inputs, media, provenance, results, sharing, sure, trials
from mtl_bento_search.report.curves import history, losses, training
from mtl_bento_search.report.html import Child, Html, el, join, name
from mtl_bento_search.report.network import draw
from mtl_bento_search.report.reading import Facts
from mtl_bento_search.report.tradeoffs import trade_offs
from mtl_bento_search.report.words import count

GAIN = (
    "Gain is how much lower a network's validation loss is than that of each target's own single-task network, as a "
    "share of the latter, averaged over the targets: 0 is single-task, +10 % a tenth less loss."
)
GAIN_ALONE = (
    "Gain is how much lower a network's validation loss is than that of the network at the defaults, as a share of the "
    "latter: 0 is no better than the defaults, +10 % a tenth less loss."
)


def page(facts: Facts, folder: Path) -> Html:
    """Return the whole page as markup."""
    body = [
        ("result", "Result", results.result(facts)),
        ("next", "What to type next", provenance.commands(folder)),
        ("blend", "Who serves which target", sharing.served(facts.result)),
        ("network", "The chosen networks", _network(facts)),
        ("groups", "Which targets share", sharing.groups(facts.result)),
        ("metrics", "Every metric", results.every_metric(facts)),
        ("errors", "Where it errs", errors.section(facts.result)),
        ("sure", "How sure it is", sure.section(facts.result)),
        ("rests", "What the answers rest on", inputs.section(facts.result)),
        ("rows", "Test rows", media.section(facts.result.get("shown"))),
        ("search", "The search", _search(facts)),
        ("data", "The data", _data(facts)),
        ("run", "The run", _run(facts)),
    ]
    shown = [(anchor, title, content) for anchor, title, content in body if content is not None]
    links = el("nav", [el("a", title, href=f"#{anchor}") for anchor, title, _ in shown], aria_label="Sections")
    sections = [_section(anchor, title, content) for anchor, title, content in shown]
    targets = count(len(facts.names), "target")
    head = el(
        "header",
        el("p", "mtl-bento report", class_="quiet"),
        el("h1", name(facts.result["name"])),
        provenance.tiles(facts),
    )
    return _document(f"{facts.result['name']}: {targets}", join(head, links, el("main", sections)))


def _section(anchor: str, title: str, content: Child) -> Html:
    return el("section", el("h2", title), content, id=anchor)


def _network(facts: Facts) -> Html | None:
    if not facts.result["network"]["groups"]:  # trees alone serve
        return None
    drawn = draw(facts.result["network"], facts.kinds)
    words = "Every target has its own head; the number in it is the units of its hidden layer, a linear head has none."
    return join(el("div", drawn, class_="network"), el("p", words, class_="caption"))


def _search(facts: Facts) -> Html:
    return join(
        el("p", GAIN if len(facts.names) > 1 else GAIN_ALONE),
        el("div", history(facts), training(facts), class_="two"),
        trade_offs(facts),
        losses(facts),
        el("h3", "Best trials"),
        trials.ranked(facts),
        el(
            "p",
            "Worst target: its loss against its single-task network's. Any complete trial can be served: ",
            el("code", "mtl-bento package RUN --trial N"),
            ".",
            class_="caption",
        ),
        el("h3", f"Hyperparameters of trial {facts.best}"),
        trials.chosen(facts),
        hyperparameters.drawn(facts),
        el("h3", "Importance of hyperparameters"),
        hyperparameters.what_mattered(facts),
    )


def _data(facts: Facts) -> Html:
    return join(
        el("h3", "Split"), provenance.split(facts),
        el("h3", "Left out"), results.left_out(facts.result["left_out"]),
        el("h3", "Inputs"), provenance.inputs(facts.result["inputs"]),
    )  # fmt: skip


def _run(facts: Facts) -> Html:
    return join(
        el("h3", "What the search cost"), provenance.time_spent(facts),
        el("h3", "Versions, seed and hashes"), provenance.versions(facts),
    )  # fmt: skip


def _document(title: str, body: Html) -> Html:
    """Return a document whose policy forbids to load anything, and to run any script but its own.

    Pictures may stand in the page itself, as `data:`.
    """
    style, script = (Html((files(__package__) / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = join(
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("title", title),
        el("style", style),
    )
    return join(
        Html("<!doctype html>\n"), el("html", el("head", head), el("body", body, el("script", script)), lang="en"), "\n"
    )
