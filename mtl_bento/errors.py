"""Every error a user can meet, each with the HTTP status the service answers with.

    MtlBentoError                 500
    ├── TableError                400   a file or frame cannot be read as a table
    ├── SchemaError               400   the table, the rows or the targets contradict the schema
    ├── SpecError                 400   mtl.yaml, an option or a search space is wrong
    │   └── UnknownKindError      400   no task, trunk or encoder has that name
    ├── FitError                  400   MultiTaskEstimator cannot learn from that; a ValueError as well
    ├── RunError                  409   the run folder cannot be used as asked
    ├── SourceError               404   no model folder, run, tag or service answers to that name
    ├── RequestError              400   the service refused a request (raised by the client)
    ├── ArtifactError             500   a saved model is damaged or too new for this version
    └── MissingExtraError         500   a part needs an optional dependency that is not installed

The service answers `{"error": sentence, "type": class name, "detail": [...]}` and the client raises the class again;
both read this file, so a new error needs no change on either side. The command line prints the sentence and exits 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class MtlBentoError(Exception):
    """A mistake that one line explains: what was wrong, what is allowed, what to do next."""

    status = 500

    def __init__(self, message: str, *, detail: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.detail = detail or []
        """The places that were wrong, as `{"loc": [...], "msg": ..., "type": ...}`; empty where there is no place."""


class TableError(MtlBentoError):
    """A file or frame cannot be read as a table."""

    status = 400


class SchemaError(MtlBentoError):
    """The table, the rows or the targets contradict the schema."""

    status = 400


class SpecError(MtlBentoError):
    """mtl.yaml, an option or a search space is wrong."""

    status = 400


class UnknownKindError(SpecError):
    """No task, trunk, encoder, head, weighting or column has that name."""


class FitError(MtlBentoError, ValueError):
    """An estimator was given what it cannot learn from or answer; a ValueError, as scikit-learn expects."""

    status = 400


class RunError(MtlBentoError):
    """The run folder cannot be used as asked."""

    status = 409


class SourceError(MtlBentoError):
    """No model folder, run, tag or service answers to that name."""

    status = 404


class RequestError(MtlBentoError):
    """The service refused a request; raised by the client where the service names no other class."""

    status = 400


class ArtifactError(MtlBentoError):
    """A saved model is damaged, incomplete or too new for this version."""


class MissingExtraError(MtlBentoError):
    """A part needs an optional dependency that is not installed."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the name closest to `name`, or an empty string where none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def listing(names: Iterable[str], *, most: int = 12) -> str:
    """Return the names with commas between them, cut after `most` of them."""
    items = [str(name) for name in names]
    more = f", ... ({len(items) - most} more)" if len(items) > most else ""
    return ", ".join(items[:most]) + more
