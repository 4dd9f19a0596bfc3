"""Packages that add commands and functions, found by entry point: the search imports this package, never back."""

from __future__ import annotations

from importlib.metadata import entry_points
from types import ModuleType

from mtl_bento.errors import MissingExtraError

GROUP = "mtl_bento.plugins"


def load(name: str) -> ModuleType:
    """Return a plugin module; raises MissingExtraError with the pip line where what it needs is not installed."""
    for entry in entry_points(group=GROUP, name=name):
        try:
            module = entry.load()
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0].startswith("mtl_bento"):
                raise  # our own mistake, not a missing extra
            raise MissingExtraError(
                f"{name} needs {error.name}, which is not installed: pip install 'mtl-bento[{name}]'"
            ) from None
        assert isinstance(module, ModuleType)
        return module
    raise MissingExtraError(f"{name} is not installed: pip install 'mtl-bento[{name}]'")
