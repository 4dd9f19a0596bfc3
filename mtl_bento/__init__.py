"""One model for many targets: multi-task networks searched with Optuna, verified, and served with BentoML.

    import mtl_bento as mb

    run = mb.search("flights.parquet", targets=["cancelled", "arr_delay", "air_time", "dep_late"])
    run.comparison
    mb.load("flights:latest").predict(frame)
    mb.Client("http://localhost:3000").predict(frame)

Names are looked up when they are used: `mb.Client` imports no torch, `mb.search` needs the extra `search`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "AsyncClient": "mtl_bento.client",
    "Client": "mtl_bento.client",
    "Model": "mtl_bento.model",
    "MtlBentoError": "mtl_bento.errors",
    "load": "mtl_bento.sources",
    "package": "mtl_bento.packaging",
}
_SEARCH = ("MultiTaskEstimator", "Objective", "Run", "compare", "search")

__all__ = [*sorted(_HOMES), *_SEARCH]  # noqa: PLE0604 - strings by construction


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _SEARCH:
        plugins = importlib.import_module("mtl_bento.plugins")
        return getattr(plugins.load("search"), name)
    raise AttributeError(f"module 'mtl_bento' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
