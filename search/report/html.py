"""Markup whose every text is escaped: what is not `Html` already becomes text when it enters an element."""

from __future__ import annotations

import re
from html import escape


class Html(str):
    """A piece of finished markup."""

    __slots__ = ()


Child = str | int | float | None | list["Html"]
"""What may stand in an element: text, numbers, finished markup, several pieces of it; None is nothing."""

VOID = frozenset({"meta", "br", "col"})
"""Elements that have no end tag."""


def text(value: object) -> Html:
    """Return a value as escaped text; control characters, which HTML forbids, become the replacement character."""
    shown = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", str(value))
    return Html(escape(shown, quote=True))


def join(*children: Child, by: str = "") -> Html:
    """Return pieces one after another, with `by` between them."""
    return Html(text(by).join(_piece(child) for child in children))


def el(tag: str, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """Return an element: `el("td", name, class_="x", data_tip=tip)`; False and None leave an attribute out."""
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    return Html(f"<{tag}{shown}>") if tag in VOID else Html(f"<{tag}{shown}>{join(*children)}</{tag}>")


def name(value: object) -> Html:
    """Return a name of the user's: in any script and direction, it does not disturb the text around it."""
    return el("bdi", str(value))


def names(values: list[str], *, most: int = 40) -> Html:
    """Return names as a list in a sentence: "a, b and c", cut after `most`."""
    shown = [name(value) for value in values[:most]]
    if len(values) > most:
        return join(join(*shown, by=", "), f" and {len(values) - most:,} more")
    head, tail = shown[:-1], shown[-1:]
    return join(join(*head, by=", "), " and " if head else "", tail)


def prose(sentence: str) -> Html:
    """Return a sentence in which `what stands between backticks` is code."""
    parts = sentence.split("`")
    if len(parts) % 2 == 0:  # a backtick without its partner is a character like any other
        return text(sentence)
    return join(*(el("code", part) if i % 2 else part for i, part in enumerate(parts)))


def _piece(child: Child) -> str:
    if isinstance(child, list):
        return "".join(_piece(part) for part in child)
    if child is None:
        return ""
    return child if isinstance(child, Html) else text(child)


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    label = key.rstrip("_").replace("_", "-")
    return f" {label}" if value is True else f' {label}="{text(f"{value:.6g}" if isinstance(value, float) else value)}"'
