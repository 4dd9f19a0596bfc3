"""Registries: one for each family of kinds, filled by importing its folder and by entry points of other packages."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from mtl_bento.errors import SpecError, UnknownKindError, listing, nearest
from mtl_bento.spec import Spec

Built = TypeVar("Built")
AnyClass = TypeVar("AnyClass", bound=type)


class Registry(Generic[Built]):
    """Kinds by name: a spec class and what it builds.

    Args:
        family: what users call the family ("trunk"), for error messages.
        package: the folder whose modules register the kinds that ship with the project.
        group: the entry-point group through which other packages add theirs; loading an entry point must register it.
    """

    def __init__(self, family: str, *, package: str, group: str) -> None:
        self.family, self.package, self.group = family, package, group
        self._specs: dict[str, type[Spec]] = {}
        self._classes: dict[type[Spec], type[Any]] = {}
        self._loaded = False
        self._origins: dict[str, tuple[str, str]] = {}

    def register(self, spec: type[Spec]) -> Callable[[AnyClass], AnyClass]:
        """Return a decorator that files a class under its spec's `kind`; a kind registered twice is a SpecError."""

        def file(built: AnyClass) -> AnyClass:
            kind = spec.model_fields["kind"].default if "kind" in spec.model_fields else None
            if not isinstance(kind, str):
                raise SpecError(f'{spec.__name__} needs a name of its own: `kind: Literal["name"] = "name"`.')
            held = self._specs.get(kind)
            if held is not None and (held.__module__, held.__qualname__) != (spec.__module__, spec.__qualname__):
                raise SpecError(
                    f"{self.family} kind {kind!r} is registered by {held.__module__} and {spec.__module__}; rename one."
                )
            self._specs[kind], self._classes[spec] = spec, built
            return built

        return file

    def kinds(self) -> dict[str, type[Spec]]:
        """Return every spec class by kind name, in order of name."""
        self._load()
        return dict(sorted(self._specs.items()))

    def parse(self, data: Mapping[str, Any] | Spec) -> Any:
        """Return the spec that `data` describes; raises UnknownKindError or SpecError in one line."""
        if isinstance(data, Spec):
            return data
        if not isinstance(data, Mapping):
            raise SpecError(
                f"{self.family} {data!r} is no mapping; write {{kind: NAME}}, NAME one of {listing(self.kinds())}."
            )
        spec = self.spec_class(str(data.get("kind")))
        try:
            return spec.model_validate(dict(data))
        except ValidationError as error:
            where = f"{self.family} {data.get('kind')!r}"
            raise SpecError(one_line(error, where=where, allowed=spec.model_fields)) from None

    def spec_class(self, kind: str) -> type[Spec]:
        """Return the spec class of a kind; raises UnknownKindError with the kinds there are."""
        kinds = self.kinds()
        if kind not in kinds:
            raise UnknownKindError(
                f"There is no {self.family} {kind!r}{nearest(kind, kinds) or '.'} Allowed: {listing(kinds)}."
            )
        return kinds[kind]

    def class_of(self, spec: type[Spec]) -> type[Built]:
        """Return the class that a spec class builds."""
        self._load()
        return self._classes[spec]

    def origin(self, kind: str) -> tuple[str, str] | None:
        """Return (distribution, version) of the package that brought a foreign kind, or None for ours.

        Raises SpecError where the class comes from no installed package (a notebook): it could not be packaged.
        """
        if kind in self._origins:
            return self._origins[kind]
        top = self.spec_class(kind).__module__.partition(".")[0]
        if top == __name__.partition(".")[0]:
            return None
        names = importlib.metadata.packages_distributions().get(top)
        if not names:
            raise SpecError(
                f"{self.family} {kind!r} is defined in {top!r}, which is not an installed package; "
                "put it into one with an entry point (CONTRIBUTING.md) to package the model."
            )
        return names[0], importlib.metadata.version(names[0])

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        folder = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(folder.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry in importlib.metadata.entry_points(group=self.group):
            self._load_entry(entry)

    def _load_entry(self, entry: importlib.metadata.EntryPoint) -> None:
        """Import another package's kinds, and note whose they are; raises SpecError naming the package that fails."""
        before = set(self._specs)
        brought_by = entry.dist.name if entry.dist is not None else "a package"
        try:
            entry.load()
        except (ImportError, AttributeError) as error:
            raise SpecError(
                f"{brought_by} brings a {self.family} by its entry point {entry.name!r}, but {entry.value} "
                f"cannot be imported ({error}); mend or uninstall it."
            ) from error
        if entry.dist is not None:
            # An editable install is found by its entry point alone, not by its files.
            self._origins |= dict.fromkeys(set(self._specs) - before, (entry.dist.name, entry.dist.version))


def one_line(error: ValidationError, *, where: str, allowed: Collection[str] = ()) -> str:
    """Return the first complaint of a pydantic error as one sentence; `allowed` are the keys at the top."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "is not a known key"
        if len(first["loc"]) == 1 and allowed:
            message += f"{nearest(place, allowed) or '.'} Allowed: {listing(allowed)}"
    return f"{where}: {place + ': ' if place else ''}{message}."
