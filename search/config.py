"""mtl.yaml: the whole spec of a run, validated; options of the command line and of `mb.search` end up here too."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from mtl_bento.errors import SpecError, UnknownKindError, listing, nearest
from mtl_bento.spec import Spec
from mtl_bento.tasks._base import TASKS

DEFAULT_TIMEOUT_S = 600.0
"""Total wall time of a run where neither a number of trials nor a timeout is given."""


def seconds(value: Any) -> float:
    """Return a duration in seconds: 600, "90s", "10m" or "2h"; raises SpecError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(value))
    if isinstance(value, bool) or match is None or float(match[1]) <= 0:
        raise SpecError(f"timeout {value!r} is not a duration; write seconds or 90s, 10m, 2h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


Seconds = Annotated[float, BeforeValidator(seconds)]


class SplitSpec(Spec):
    """Which rows train, which validate, which are locked away for the test."""

    kind: Literal["random", "column", "fold", "time", "group"] = "random"
    column: str | None = None
    """The column that holds the split, fold, time or group."""
    valid: Annotated[float, Field(gt=0, lt=0.9)] = 0.15
    """Share of the rows that are not test, for validation; not used with folds."""
    test: Annotated[float, Field(gt=0, lt=0.9)] = 0.2
    """Share of all rows for the test."""
    folds: Annotated[int, Field(ge=0, le=20)] | None = None
    """Folds of cross-validation; 0 is a holdout; None is 5 below 5,000 rows and a holdout from there."""
    runs: bool | None = None
    """Whether validation rows are runs of consecutive rows, not dealt at random; None looks what the test is like."""

    @model_validator(mode="after")
    def _column_is_used(self) -> Self:
        if self.column is not None and self.kind == "random":
            raise ValueError("a column needs a kind: column, fold, time or group")
        if self.runs and self.kind not in ("random", "column"):
            raise ValueError(f"runs are of rows that are dealt; kind {self.kind} deals none: leave `runs` out")
        return self


class Choice(Spec):
    """A range of `search.space`."""

    low: float
    high: float
    log: bool | None = None


Domain = Choice | list[Any] | bool | int | float | str
"""A range, a list of choices, or a fixed value."""


def _listed(value: Any) -> Any:
    """Return a bare word as a list of it."""
    return [value] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_listed)]


CHOOSING = {"trees", "members", "max_members", "max_latency_ms", "student", "refit"}
"""Fields of a search that trials know nothing of: another choice of what serves is the same run, tested once more."""


class SearchSpec(Spec):
    """How long and where to search."""

    n_trials: Annotated[int, Field(ge=1)] | None = None
    timeout: Seconds | None = None
    """Total active wall time in seconds."""
    trunk: Annotated[Words, Field(min_length=1)] | None = None
    """Kinds of trunk to choose from; the first is the default. None is tabm and mlp, from 20,000 rows mlp first."""
    weighting: Annotated[Words, Field(min_length=1)] = ("static",)
    """Kinds of loss weighting to choose from; the first is the default."""
    head: Annotated[Words, Field(min_length=1)] = ("conv", "dense")
    """Kinds of head to choose from where tasks answer by position; the first is the default."""
    trees: bool = True
    """Whether trees are tuned for each task, to compare with and to serve where they are better."""
    members: Literal["all", "networks"] = "all"
    """What may serve: networks alone leave trees as something to compare with."""
    max_members: Annotated[int, Field(ge=1, le=64)] = 8
    """Configurations that may answer for a task together."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Most that a request may take in the served model, of one row and of 64, measured on this machine."""
    student: bool = False
    """Whether one network learns from what is served, to be tested beside it and, if wanted, packaged in its place."""
    refit: bool = False
    """Whether what is served is trained again on all rows, those of the test included, once it is tested."""
    space: dict[str, Domain] = {}
    """Narrows or fixes searched parameters, and sets fixed ones, by name."""
    seed: Annotated[int, Field(ge=0)] = 0


class DataSpec(Spec):
    """Separate tables."""

    train: str
    valid: str | None = None
    test: str | None = None


def _named(value: Any) -> Any:
    """Return a list of target names as a mapping."""
    return dict.fromkeys(value) if isinstance(value, list | tuple) else value


class _UniqueKeys(yaml.SafeLoader):
    """YAML without a key given twice, of which the last would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; raises a YAML error naming a key given twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key, n in Counter(map(str, keys)).items() if n > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


class Config(Spec):
    """The spec of a run; `data` and `targets` suffice."""

    version: Literal[1] = 1
    data: str | DataSpec | None = None
    """A table, or separate ones; paths are relative to mtl.yaml."""
    targets: Annotated[dict[str, dict[str, Any] | str | None], BeforeValidator(_named)]
    """Target columns: a kind, or kind and options, or nothing to have the kind inferred."""
    inputs: dict[str, str | dict[str, Any]] = {}
    """Kinds of input columns that the inference should not decide: a kind, or kind and options."""
    ignore: Words = ()
    """Columns that are no inputs."""
    sample_weight: str | None = None
    """A column of row weights."""
    split: SplitSpec = SplitSpec()
    groups: tuple[tuple[str, ...], ...] | None = None
    """Which tasks share a network: every target once. None lets the search propose and validation decide."""
    search: SearchSpec = SearchSpec()


def load_config(path: Path) -> Config:
    """Return the spec of a mtl.yaml, its paths made absolute; raises SpecError in one line."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(raw, dict):
        raise SpecError(f"{path} holds no mapping; it needs at least `data` and `targets`.")
    config = parse_config(raw, where=str(path))
    if config.data is None:
        raise SpecError(f"{path}: data is missing; name the table, `data: table.parquet`.")
    return config.model_copy(update={"data": _beside(config.data, path.parent)})


def parse_config(raw: Mapping[str, Any], *, where: str = "") -> Config:
    """Return the spec that a mapping describes; raises SpecError naming the key and the nearest allowed one.

    `where` names the file in such a line; keys that come from arguments need no name before them.
    """
    try:
        return Config.model_validate(dict(raw))
    except ValidationError as error:
        raise SpecError((f"{where}: " if where else "") + _complaint(error)) from None


WANTED = {
    "tuple_type": "Input should be a list",
    "dict_type": "Input should be a mapping",
    "model_type": "Input should be a mapping",
}
"""What YAML calls what was wanted, by pydantic's type of error."""


def _complaint(error: ValidationError) -> str:
    # A misspelt key first: what pydantic says of the other members of a union would hide it.
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    # Names of a union's members are no part of the file.
    place_of = [str(p) for p in first["loc"] if p not in ("str", "Choice", "DataSpec") and "[" not in str(p)]
    if first["type"] != "extra_forbidden":
        return f"{'.'.join(place_of)}: {WANTED.get(first['type'], first['msg'].removeprefix('Value error, '))}."
    *path, key = place_of
    models: dict[str, type[Spec]] = {"": Config, "split": SplitSpec, "search": SearchSpec, "data": DataSpec}
    allowed = list((Choice if "space" in path else models.get(path[0] if path else "", Choice)).model_fields)
    place = ".".join(place_of)
    return f"{place} is not a known key{nearest(key, allowed) or '.'} Allowed: {listing(allowed)}."


def _beside(data: str | DataSpec, folder: Path) -> str | DataSpec:
    if isinstance(data, str):
        return str(folder / data)
    return DataSpec(**{name: str(folder / path) for name, path in data.model_dump().items() if path is not None})


def parse_targets(names: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any] | str | None]:
    """Return the targets of `--target NAME[:KIND]` options; NAME may be a pattern such as 'NR-*'.

    A suffix is split off only where it is a known kind. Raises SpecError naming the nearest column where none matches.
    """
    targets: dict[str, dict[str, Any] | str | None] = {}
    for text in names:
        name, kind = split_kind(text)
        matched = [name] if name in columns else [c for c in columns if fnmatch.fnmatchcase(c, name)]
        if not matched:
            raise SpecError(
                f"There is no column {name!r} for a target{nearest(name, columns) or '.'} Columns: {listing(columns)}."
            )
        targets |= dict.fromkeys(matched, kind)
    return targets


def split_kind(text: str) -> tuple[str, str | None]:
    """Return (name, kind) of `NAME[:KIND]`."""
    name, colon, kind = text.rpartition(":")
    return (name, kind) if colon and name and kind in TASKS.kinds() else (text, None)


def target_options(name: str, given: dict[str, Any] | str | None) -> dict[str, Any]:
    """Return a target's options as a mapping, without `kind` where it is to be inferred; raises UnknownKindError."""
    options = {"kind": given} if isinstance(given, str) else dict(given or {})
    if options.get("kind") is None:
        options.pop("kind", None)
    elif options["kind"] not in TASKS.kinds():
        kinds = TASKS.kinds()
        raise UnknownKindError(
            f"Target {name!r}: there is no task kind {options['kind']!r}{nearest(str(options['kind']), kinds) or '.'} "
            f"Allowed: {listing(kinds)}."
        )
    return options
