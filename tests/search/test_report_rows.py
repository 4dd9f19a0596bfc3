"""Pictures and texts in the report: which test rows, how small, and what is drawn and said of them."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from mtl_bento_search.report.media import MOST_OPEN, overlap, runs, section
from mtl_bento_search.report.panels import CHARACTERS, Panel, gather, pick, small, thumbnail

JPEG = base64.b64encode(b"\xff\xd8\xff not decoded here").decode()
PICTURE = {"jpeg": JPEG, "size": [100, 50]}
BOX = {"x": 0.5, "y": 0.5, "w": 0.4, "h": 0.2}


def task(kind: str, truth: Any, answer: Any, *, name: str = "t", row: int = 3, **changes: Any) -> dict[str, Any]:
    """A task with one row."""
    held = {"row": row, "why": "worst", "truth": truth, "answer": answer}
    return {"task": name, "kind": kind, "input": "cell", "labels": [], "rows": [held]} | changes


def drawn(cell: Any, *tasks: dict[str, Any]) -> str:
    """The section of some tasks that all show one cell."""
    markup = section(json.loads(json.dumps({"cells": {"cell": {"3": cell}}, "tasks": list(tasks)})))
    assert markup is not None
    return markup


def said(markup: str) -> list[str]:
    """The captions, as text."""
    return [re.sub(r"<[^>]*>", "", found) for found in re.findall(r"<figcaption>(.*?)</figcaption>", markup)]


# -- which rows ---------------------------------------------------------------------------------------------------


def test_the_best_the_worst_and_others_are_picked_by_their_loss() -> None:
    losses = [0.5, 0.1, math.nan, 0.9, 0.3, 0.2, 0.8, 0.4, math.inf]
    picked = pick(range(100, 109), losses, each=2)
    assert [row for row, why in picked if why == "best"] == [101, 105]
    assert [row for row, why in picked if why == "worst"] == [103, 106]
    random = [row for row, why in picked if why == "random"]
    assert len(random) == 2
    assert set(random) < {100, 104, 107}  # what is left of those with a label
    assert pick(range(100, 109), losses, each=2) == picked


def test_rows_where_nothing_is_to_be_found_are_not_the_best_but_may_be_the_worst() -> None:
    losses = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    picked = pick(range(6), losses, empty=[True, False, True, False, False, True], each=1)
    assert [pair for pair in picked if pair[1] != "random"] == [(1, "best"), (5, "worst")]


@pytest.mark.parametrize(
    ("n", "groups"), [(0, []), (1, ["worst"]), (2, ["best", "worst"]), (3, ["best", "random", "worst"])]
)
def test_few_rows_are_shown_once_each(n: int, groups: list[str]) -> None:
    picked = pick(range(n), [0.5] * n)
    assert len({row for row, _ in picked}) == len(picked) == n
    assert [why for _, why in picked] == groups


# -- what is kept of them -----------------------------------------------------------------------------------------


def test_a_result_holds_each_shown_cell_once_and_no_other() -> None:
    panels = [
        Panel("a", "tagging", "note", [(7, "best")], {7: []}, {7: {"value": []}}, labels=("city",)),
        Panel(
            "b", "multiclass", "note", [(7, "worst"), (9, "worst")], {7: 1, 9: 2}, {7: {"value": 1}, 9: {"value": 1}}
        ),
    ]
    found = gather(panels, {"note": {9: None, 7: "x" * (CHARACTERS + 5), 8: "of no panel"}})
    assert found["cells"] == {"note": {"7": {"text": "x" * CHARACTERS, "length": CHARACTERS + 5}, "9": None}}
    assert found["tasks"][0] == {
        "task": "a", "kind": "tagging", "input": "note", "labels": ["city"],
        "rows": [{"row": 7, "why": "best", "truth": [], "answer": {"value": []}}],
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found


def encoded(mode: str, size: tuple[int, int], colour: Any, *, orientation: int = 1, kind: str = "PNG") -> bytes:
    image = pytest.importorskip("PIL.Image")
    picture, held = image.new(mode, size, colour), io.BytesIO()
    exif = image.Exif()
    exif[0x0112] = orientation
    picture.save(held, format=kind, exif=exif)
    return held.getvalue()


def decoded(jpeg: bytes) -> Any:
    image = pytest.importorskip("PIL.Image")
    opened = image.open(io.BytesIO(jpeg))
    assert opened.format == "JPEG"
    return opened


def test_a_large_picture_becomes_a_small_jpeg_of_its_shape() -> None:
    jpeg, size = thumbnail(encoded("RGB", (1600, 400), (10, 200, 30)))
    assert size == decoded(jpeg).size == (160, 40)
    assert decoded(jpeg).getpixel((80, 20)) == pytest.approx((10, 200, 30), abs=4)
    assert len(jpeg) < 2_000


def test_a_small_picture_keeps_its_size() -> None:
    assert thumbnail(encoded("L", (8, 8), 100))[1] == (8, 8)


def test_a_rotated_picture_is_upright() -> None:
    # Orientation 6 of EXIF: to be turned by 90 degrees.
    assert thumbnail(encoded("RGB", (80, 40), "red", orientation=6, kind="JPEG"))[1] == (40, 80)


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))])
def test_what_is_transparent_becomes_white(mode: str, colour: Any) -> None:
    assert decoded(thumbnail(encoded(mode, (8, 8), colour))[0]).getpixel((4, 4)) == (255, 255, 255)


def test_a_picture_is_kept_as_text_of_json() -> None:
    kept = small(encoded("RGB", (20, 10), "red"))
    assert kept is not None
    assert kept["size"] == [20, 10]
    assert decoded(base64.b64decode(kept["jpeg"])).size == (20, 10)


# -- boxes --------------------------------------------------------------------------------------------------------


def test_a_true_and_an_answered_box_lie_over_the_picture() -> None:
    answer = {"value": {"x": 0.6, "y": 0.5, "w": 0.4, "h": 0.2}, "probability": 0.97}
    markup = drawn(PICTURE, task("box", BOX, answer))
    assert f'<image href="data:image/jpeg;base64,{JPEG}" width="100" height="50"></image>' in markup
    # Of 100 x 50 pixels: 40 x 10, around (50, 25) and (60, 25).
    assert '<rect x="30" y="20" width="40" height="10" class="true"></rect>' in markup
    assert '<rect x="40" y="20" width="40" height="10" class="answered"></rect>' in markup
    assert said(markup) == ["row 3: IoU 0.60 (object 0.97)"]  # 30 of 50 in width


@pytest.mark.parametrize(
    ("truth", "value", "words", "frames"),
    [
        (None, None, "nothing there, nothing answered", 0),
        (None, BOX, "nothing there, but answered", 1),
        (BOX, None, "missed", 1),
    ],
)
def test_a_box_that_is_missing_is_said(truth: Any, value: Any, words: str, frames: int) -> None:
    markup = drawn(PICTURE, task("box", truth, {"value": value}))
    assert said(markup) == [f"row 3: {words}"]
    assert len(re.findall(r'<rect[^>]*class="(?:true|answered)"', markup)) == frames


def test_overlap_is_the_share_of_the_union() -> None:
    assert overlap(BOX, BOX) == pytest.approx(1)
    assert overlap(BOX, BOX | {"x": 0.9}) == pytest.approx(0)
    assert overlap(BOX, BOX | {"w": 0.2}) == pytest.approx(0.5)
    assert overlap(BOX | {"w": 0.0}, BOX | {"w": 0.0}) == 0


# -- grids --------------------------------------------------------------------------------------------------------


def test_cells_in_a_row_are_one_rectangle() -> None:
    assert runs([[0, 1, 1], [1, 0, 1]], "1") == "M1 0h2v1h-2zM0 1h1v1h-1zM2 1h1v1h-1z"
    assert runs([[0]], "1") == ""


def test_of_two_labels_the_second_is_coloured_and_unknown_cells_are_grey() -> None:
    markup = drawn(PICTURE, task("grid", [[0, 1], [None, 1]], {"value": [[0, 1], [1, 0]]}, labels=[0, 1]))
    true, answered = re.findall(r"<g .*?</g>", markup)
    assert true == (
        '<g transform="scale(50 25)"><path d="M1 0h1v1h-1zM1 1h1v1h-1z" class="cells k1"></path>'
        '<path d="M0 1h1v1h-1z" class="cells unknown"></path></g>'
    )
    assert answered == ('<g transform="scale(50 25)"><path d="M1 0h1v1h-1zM0 1h1v1h-1z" class="cells k1"></path></g>')
    assert said(markup) == ["row 3: 2 of 3 cells right"]


def test_of_more_labels_each_has_its_colour() -> None:
    grid = [["road", "car", "sky"]]
    markup = drawn(PICTURE, task("grid", grid, {"value": grid}, labels=["car", "road", "sky"]))
    assert re.findall(r'class="cells (k\d)"', markup) == 2 * ["k0", "k1", "k2"]


# -- spans --------------------------------------------------------------------------------------------------------

TEXT = {"text": "Anna flies to New York", "length": 22}
ANNA, YORK = {"label": "person", "start": 0, "end": 4}, {"label": "city", "start": 14, "end": 22}


def test_spans_that_are_all_right_are_shown_once() -> None:
    answer = {"value": [ANNA | {"probability": 0.91}, YORK | {"probability": 0.8}]}
    markup = drawn(TEXT, task("tagging", [ANNA, YORK], answer, labels=["city", "person"]))
    assert (
        '<mark class="k1" data-tip="person (0.91)">Anna<span>person</span></mark> flies to '
        '<mark class="k0" data-tip="city (0.80)">New York<span>city</span></mark></p>'
    ) in markup
    assert markup.count("<mark") == 2
    assert "true and answered" in markup
    assert said(markup) == ["row 3: 2 of 2 spans right"]


def test_spans_that_differ_are_marked_in_both_texts() -> None:
    answer = {"value": [ANNA, {"label": "city", "start": 18, "end": 22}]}
    markup = drawn(TEXT, task("tagging", [ANNA, YORK], answer, labels=["city", "person"]))
    assert re.findall(r'<mark class="([^"]*)" data-tip="\w+">([^<]*)', markup) == [
        ("k1", "Anna"), ("k0 lone", "New York"), ("k1", "Anna"), ("k0 lone", "York"),
    ]  # fmt: skip
    assert said(markup) == ["row 3: 1 of 2 spans right, 1 wrong"]


def test_a_long_text_says_how_much_is_left_out() -> None:
    cell = {"text": "Anna flies", "length": 22}
    markup = drawn(cell, task("tagging", [ANNA, YORK], {"value": [ANNA, YORK]}, labels=["city", "person"]))
    assert markup.count("<mark") == 1
    assert " … 12 more characters with 1 span</span>" in markup


def test_spans_of_emoji_and_other_scripts_keep_their_places() -> None:
    span = {"label": "市", "start": 3, "end": 5}
    markup = drawn({"text": "🙂去 北京!", "length": 6}, task("tagging", [span], {"value": [span]}, labels=["市"]))
    assert '>🙂去 <mark class="k0" data-tip="市">北京<span>市</span></mark>!</p>' in markup


# -- any other kind, and the section ------------------------------------------------------------------------------


def test_a_label_is_said_beside_its_picture() -> None:
    right, wrong = task("multiclass", 3, {"value": 3, "probability": 0.9}), task("multiclass", 3, {"value": 8})
    markup = drawn(PICTURE, right, wrong)
    assert said(markup) == ["row 3: 3 (0.90), which is right", "row 3: 8, true: 3"]
    assert markup.count("<image") == 2
    assert "<rect" not in markup


@pytest.mark.parametrize("kind", ["box", "grid", "tagging", "multiclass"])
def test_a_missing_cell_is_said_whatever_the_kind(kind: str) -> None:
    markup = drawn(None, task(kind, None, {"value": None}))
    assert '<p class="missing">missing</p>' in markup
    assert "<image" not in markup


def test_the_section_says_whose_rows_these_are() -> None:
    markup = drawn(PICTURE, task("box", BOX, {"value": BOX}))
    assert "no training row is shown" in markup
    assert "in this file, which is yours: look through them before you pass it on" in markup


def test_groups_stand_in_their_order_and_empty_ones_are_left_out() -> None:
    row = {"row": 3, "truth": 1, "answer": {"value": 1}}
    rows = [row | {"why": why} for why in ("worst", "best")]
    assert re.findall("<h4>(.*?)</h4>", drawn(PICTURE, task("binary", 1, {}, rows=rows))) == ["Best", "Worst"]


def test_many_tasks_are_folded() -> None:
    markup = drawn(PICTURE, *(task("box", BOX, {"value": BOX}, name=f"t{i}") for i in range(MOST_OPEN + 2)))
    assert markup.count("<details") == 1
    assert "Rows of 2 more targets" in markup
    assert markup.index("<bdi>t3</bdi>") < markup.index("<details") < markup.index("<bdi>t4</bdi>")


@pytest.mark.parametrize(
    "shown", [None, {}, {"cells": {}, "tasks": []}, {"cells": {}, "tasks": [task("box", 1, 1, rows=[])]}]
)
def test_without_rows_there_is_no_section(shown: Any) -> None:
    assert section(shown) is None


class Tags(HTMLParser):
    """The elements of a markup, with their attributes."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_hostile_texts_and_labels_stay_text_and_nothing_is_loaded() -> None:
    bad = "</p><script>alert(1)</script>\x00<img src=//x>"
    span = {"label": bad, "start": 4, "end": 20}
    markup = drawn(
        {"text": bad, "length": len(bad)},
        task("tagging", [span], {"value": [span]}, labels=[bad], name=bad, input="cell"),
        task("multiclass", bad, {"value": bad}),
    )
    tags = Tags(markup).found
    assert {tag for tag, _ in tags} == {
        "p", "div", "h3", "h4", "bdi", "span", "i", "figure", "figcaption", "b", "small", "mark",
    }  # fmt: skip
    assert "\x00" not in markup
    pictured = Tags(drawn(PICTURE, task("box", BOX, {"value": BOX}))).found
    assert [attrs["href"] for tag, attrs in pictured if "href" in attrs] == [f"data:image/jpeg;base64,{JPEG}"]
    assert all(attrs["aria-label"] for tag, attrs in pictured if tag == "svg")
