"""What is said, in the terminal as in the report, of what was trained beside the served model or after its test."""

from __future__ import annotations

from typing import Any


def after_the_test(result: dict[str, Any]) -> list[str]:
    """Return sentences on the student's latency and size, and on training again, where there was either."""
    said = []
    if (refitted := result.get("refit")) is not None:
        said.append(
            f"What is served was trained again on all {refitted['rows']:,} rows after the test: the figures are those "
            "of the model before."
        )
    if (student := result.get("student")) is not None:
        ours, own = student["model"], student["student"]
        took = [
            f"{_digits(own['latency_ms'][n])} ms (not {_digits(ours['latency_ms'][n])}) for {rows}"
            for n, rows in _REQUESTS
        ]
        said.append(
            f"The student, one network configured as trial {student['trial']}, takes {' and '.join(took)}, and "
            f"{_kilobytes(own)} kB (not {_kilobytes(ours)}); what it costs stands beside each target."
        )
    return said


_REQUESTS = (("1", "one row"), ("64", "64 rows"))
"""Those whose latency is measured, in words."""


def _digits(took: float) -> str:
    """Return milliseconds with two digits at least, and none behind the point from ten on."""
    return f"{took:,.0f}" if took >= 10 else f"{took:.2g}"


def _kilobytes(size: dict[str, Any]) -> str:
    return f"{size['bytes'] / 1e3:,.0f}"
