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
        took = [f"{_ms(own, n)} ms (not {_ms(ours, n)}) for {rows}" for n, rows in _REQUESTS]
        said.append(
            f"The student, one network configured as trial {student['trial']}, takes {' and '.join(took)}, and "
            f"{_kilobytes(own)} kB (not {_kilobytes(ours)}); what it costs stands beside each target."
        )
    return said


_REQUESTS = (("1", "one row"), ("64", "64 rows"))
"""Those whose latency is measured, in words."""


def rounded(value: float) -> str:
    """Return a number of two significant digits, as one reads it: 1.8, 23, 270."""
    return f"{float(f'{value:.2g}'):,.10g}"


def _ms(size: dict[str, Any], n: str) -> str:
    return rounded(size["latency_ms"][n])


def _kilobytes(size: dict[str, Any]) -> str:
    return f"{size['bytes'] / 1e3:,.0f}"
