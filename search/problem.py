"""A table and a config as a problem to search on: schema, tasks, splits, dataset, and the locked test rows."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mtl_bento import table as tables
from mtl_bento.columns.numeric import floats
from mtl_bento.dataset import Cache, Dataset, Progress
from mtl_bento.encoders._base import has_positions
from mtl_bento.errors import SchemaError, SpecError, listing, nearest
from mtl_bento.network import Inputs
from mtl_bento.schema import Schema
from mtl_bento.tasks._base import TASKS, Task
from mtl_bento_search.config import Config, DataSpec, target_options
from mtl_bento_search.inference import Inference, LeftOut, infer
from mtl_bento_search.leaks import suspicions
from mtl_bento_search.metrics import METRICS
from mtl_bento_search.nearness import as_near_as_test, may_be_in_runs, points, runs
from mtl_bento_search.protocol import Protocol, looks_like_split, make_protocol

FEW_LABELS = 10
"""A whole-number target of at most so many different values is taken for classes."""


@dataclass(frozen=True)
class Problem:
    """Everything that a search needs to know of the data."""

    table: pa.Table
    schema: Schema
    tasks: tuple[Task[Any], ...]
    protocol: Protocol
    dataset: Dataset
    """All rows; its splits are the protocol's, its test rows are read once, at the end."""
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    leaks: tuple[str, ...]
    """Inputs that may give a target away, and targets that are one another, a line each."""
    data_sha256: str
    _placed: dict[bytes, tuple[Task[Any], ...]] = field(default_factory=dict, repr=False, compare=False)

    def placed(self, rows: np.ndarray) -> tuple[Task[Any], ...]:
        """Return the tasks for some rows of the table, whose cells some need to read labels and answers."""
        key = np.asarray(rows, dtype=np.int64).tobytes()
        if key not in self._placed:
            self._placed[key] = _placed(self.tasks, self.schema, self.table, rows)
        return self._placed[key]

    @cached_property
    def features(self) -> Tensor:
        """What trees read of every row, [N, F]."""
        tabular = tuple(column for column in self.schema.columns if not has_positions(column.block))
        own = self.schema.model_copy(update={"columns": tabular}).encode(self.table) if tabular else {}
        return self.dataset.inputs.features({b: torch.from_numpy(v) for b, v in own.items()}, self.dataset.blocks)

    @property
    def names(self) -> list[str]:
        """Names of the targets."""
        return [task.name for task in self.tasks]


def make_problem(
    config: Config,
    *,
    data: Any = None,
    valid: Any = None,
    test: Any = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Problem:
    """Return the problem that a config describes; frames given here stand in for `config.data`.

    `progress` and `cache` are for features of pictures and texts (`Dataset.build`).

    Raises TableError, SchemaError or SpecError in one line, before anything is written.
    """
    table, roles = _load(config, data, valid, test)
    config = _with_found_split(config, table, roles)
    targets = _known_targets(config, table)
    weights = None if config.sample_weight is None else row_weights(table, config.sample_weight)
    notes = [] if config.split.kind == "random" or roles is not None else [f"by column {config.split.column!r}"]
    service = {c for c in (config.sample_weight, config.split.column) if c is not None}
    other_splits = [c for c in table.column_names if c not in {*service, *config.inputs} and looks_like_split(table, c)]
    coarse = [_coarse(table[name], name) for name in targets]
    protocol = make_protocol(config.split, table, coarse, seed=config.search.seed, roles=roles)
    ignore = {*config.ignore, *service, *other_splits} - set(targets)
    found = _inferred(config, table, targets, ignore, protocol.learned)
    near = _near(config, protocol, found, weights)
    if not np.array_equal(near.learned, protocol.learned):
        found = _inferred(config, table, targets, ignore, near.learned)
    protocol, learned = near, near.learned
    inference, tasks, schema, labels, blocks = found
    _check_splits(tasks, labels, protocol, weights)
    inputs = Inputs.fit(schema.blocks, {b: torch.from_numpy(v[learned]) for b, v in blocks.items()})
    dataset = Dataset.build(
        tasks, inputs, blocks, labels, protocol.splits, weights=weights, device=device, progress=progress, cache=cache
    )
    return Problem(
        table,
        schema,
        tasks,
        protocol,
        dataset,
        (
            *inference.left_out,
            *(LeftOut(c, "another split", f"name it by `--split {c}` to use it") for c in other_splits),
        ),
        (*notes, *protocol.notes, *_absent(tasks, labels, protocol)),
        (
            *_twins(table, list(targets)),
            *suspicions(table, [c.name for c in schema.columns], list(targets), learned),
        ),
        digest(table),
    )


class _Inferred(NamedTuple):
    """What is known of the columns from the rows that are learned."""

    inference: Inference
    tasks: tuple[Task[Any], ...]
    schema: Schema
    labels: list[np.ndarray]
    blocks: dict[str, np.ndarray]


def _inferred(
    config: Config, table: pa.Table, targets: Mapping[str, Any], ignore: Collection[str], learned: np.ndarray
) -> _Inferred:
    """Return tasks, schema and encoded rows; raises SchemaError where no column is left as an input."""
    inference = infer(table, overrides=config.inputs, targets=tuple(targets), ignore=tuple(ignore), rows=learned)
    if not inference.schema.columns:
        raise SchemaError("No column is left as an input; give some a kind in mtl.yaml, `inputs: {name: categorical}`.")
    tasks = tuple(make_task(name, options, table[name], learned=learned) for name, options in targets.items())
    tasks = tuple(task.settled(inference.schema.columns) for task in tasks)
    schema = suited(inference.schema, tasks, table, rows=learned, chosen=config.inputs)
    placed = _placed(tasks, schema, table, np.arange(table.num_rows))
    labels = [task.encode(table[task.name]) for task in placed]
    return _Inferred(inference, tasks, schema, labels, schema.encode(table))


def make_task(
    name: str, options: Mapping[str, Any], values: pa.ChunkedArray, *, learned: np.ndarray | None = None
) -> Task[Any]:
    """Return the task of a target, its kind inferred where it is not given.

    Which labels there are is read off all rows; means, spreads and frequencies off the rows `learned` alone.
    """
    kind = options.get("kind") or _recognised(values)
    if pa.types.is_nested(values.type) and kind is None:
        kinds = listing(TASKS.kinds())
        raise SpecError(f"Target {name!r} holds lists; say what they are, `{name}: {{kind: KIND}}`; kinds: {kinds}.")
    kind = kind or infer_task(values)
    spec = TASKS.parse({**options, "kind": kind, "name": name})
    task_class = TASKS.class_of(type(spec))
    if unknown := set(task_class.metrics) - set(METRICS):
        raise SpecError(f"Task kind {kind!r} names metrics that do not exist: {listing(sorted(unknown))}; see METRICS.")
    if given := sorted(set(options) & set(task_class.learned)):
        raise SpecError(f"Target {name!r}: {given[0]} is learned from rows that no network learned; remove the key.")
    known = task_class.survey(spec, values)
    return task_class(task_class.fit(known, values if learned is None else values.take(pa.array(learned))))


def _placed(tasks: Sequence[Task[Any]], schema: Schema, table: pa.Table, rows: np.ndarray) -> tuple[Task[Any], ...]:
    own = schema.own_blocks(table)
    cells = own.take(pa.array(rows)) if own.num_columns else own
    return tuple(task.place(cells, schema.columns) for task in tasks)


def suited(
    schema: Schema,
    tasks: Sequence[Task[Any]],
    table: pa.Table,
    *,
    rows: np.ndarray,
    chosen: Mapping[str, str | Mapping[str, Any]],
) -> Schema:
    """Return the schema with columns as the tasks that answer by their positions need them.

    `rows` are the training rows; what the user chose of an input (`inputs:`) stays as it is. Raises SpecError where two
    tasks need one column in different ways.
    """
    columns = list(schema.columns)
    for place, column in enumerate(columns):
        readers = [task for task in tasks if task.positional and task.reads in (None, column.name)]
        if ":" not in column.block or not readers:
            continue
        wished = column
        for task in readers:
            wished = task.suited(wished, table, rows)
        for task in readers:
            other = task.suited(wished, table, rows)
            if other != wished:
                raise SpecError(
                    f"Target {readers[-1].name!r} needs input {column.name!r} as {wished.describe()}; target "
                    f"{task.name!r} as {other.describe()}. Give both one shape, or search them apart."
                )
        given = chosen.get(column.name, {})
        kept = {} if isinstance(given, str) else {n: getattr(column, n) for n in given if n != "kind"}
        columns[place] = wished.model_copy(update=kept)
    return schema.model_copy(update={"columns": tuple(columns)})


def _recognised(values: pa.ChunkedArray) -> str | None:
    """Return the kind whose labels these can only be, a box, a grid or tags, by the first hundred; or None."""
    few = values.drop_null().slice(0, 100)
    own = (kind for kind, spec in TASKS.kinds().items() if len(few) and TASKS.class_of(spec).recognises(few))
    return next(own, None)


def infer_task(values: pa.ChunkedArray) -> str:
    """Return the task kind of a target: two labels binary, text and few whole numbers multiclass, else regression."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    distinct = len(pc.unique(values.drop_null()))
    whole = pa.types.is_integer(kind) or (
        pa.types.is_floating(kind) and pc.all(pc.equal(pc.round(values), values)).as_py() is not False
    )
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        if whole and distinct == 2:
            return "binary"
        return "multiclass" if whole and distinct <= FEW_LABELS else "regression"
    return "binary" if distinct == 2 else "multiclass"


def digest(table: pa.Table) -> str:
    """Return a hash of a table's names, types and cells: 64 hexadecimal digits."""
    sink = hashlib.sha256(str(table.schema.remove_metadata()).encode())
    for column in table.columns:
        for chunk in column.chunks:
            flat = chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk
            # By way of IPC: buffers of slices hold more than their rows.
            batch = pa.record_batch([pa.concat_arrays([flat])], names=["x"])
            sink.update(batch.serialize())
    return sink.hexdigest()


def _load(config: Config, data: Any, valid: Any, test: Any) -> tuple[pa.Table, np.ndarray | None]:
    """Return all rows in one table, and each row's role where separate tables say so."""
    if data is None:
        spec = config.data
        if isinstance(spec, DataSpec):
            data, valid, test = (
                spec.train,
                valid if valid is not None else spec.valid,
                test if test is not None else spec.test,
            )
        else:
            data = spec
    given = [
        (role, source) for role, source in (("train", data), ("valid", valid), ("test", test)) if source is not None
    ]
    parts = [tables.read(source, role="table" if role == "train" else f"--{role} table") for role, source in given]
    if len(parts) == 1:
        return parts[0].combine_chunks(), None
    roles = np.concatenate([np.full(part.num_rows, role) for part, (role, _) in zip(parts, given, strict=True)])
    return tables.concat(parts).combine_chunks(), roles


def _with_found_split(config: Config, table: pa.Table, roles: np.ndarray | None) -> Config:
    """Take a column `split` of train, val and test as the split where nothing else is asked for."""
    untouched = config.split.kind == "random" and "split" not in config.targets and roles is None
    if untouched and looks_like_split(table):
        split = config.split.model_copy(update={"kind": "column", "column": "split"})
        return config.model_copy(update={"split": split})
    return config


def _known_targets(config: Config, table: pa.Table) -> dict[str, dict[str, Any]]:
    for name in config.targets:
        if name not in table.column_names:
            raise SpecError(
                f"There is no column {name!r} for a target{nearest(name, table.column_names) or '.'} "
                f"Columns: {listing(table.column_names)}."
            )
    if not config.targets:
        raise SpecError(
            f"No target is given; name at least one, `--target NAME`. Columns: {listing(table.column_names)}."
        )
    for name in config.targets:
        if name in config.inputs or name in config.ignore:
            other = "an input" if name in config.inputs else "ignored"
            raise SpecError(f"{name!r} is a target and cannot be {other} as well; remove it from one of the two.")
    for name in config.targets:
        if (first := next((n for n in config.targets if name.startswith(f"{n}__")), None)) is not None:
            raise SpecError(
                f"Target {name!r} is called as a column of the full answers of target {first!r} may be ({first}__...); "
                "rename one of the two."
            )
    return {name: target_options(name, given) for name, given in config.targets.items()}


def _coarse(values: pa.ChunkedArray, name: str) -> np.ndarray:
    """Return a coarse class of each label, -1 where missing, to stratify by: its code, or its fifth among numbers."""
    cells = tables.plain(values)
    if (pa.types.is_floating(cells.type) or pa.types.is_integer(cells.type)) and len(pc.unique(cells)) > FEW_LABELS:
        numbers = floats(cells, name).ravel()
        cuts = np.nanquantile(numbers, [0.2, 0.4, 0.6, 0.8])
        return np.where(np.isnan(numbers), -1, np.searchsorted(cuts, numbers))
    try:
        codes = cells.dictionary_encode().indices.fill_null(-1)
    except pa.ArrowNotImplementedError:  # nested labels have no classes to stratify by
        return np.zeros(len(cells), dtype=np.int64)
    return np.asarray(codes.to_numpy(zero_copy_only=False))


def _near(config: Config, protocol: Protocol, found: _Inferred, weights: np.ndarray | None) -> Protocol:
    """Return the protocol in runs of rows where that is asked for, or where it is more like the test.

    Raises SpecError where runs are asked for and the validation rows are given.
    """
    if config.split.runs:
        if not protocol.dealt:
            raise SpecError("split: runs: true deals validation rows, and yours are given; leave out one or the other.")
        return replace(protocol, splits=runs(protocol), notes=(*protocol.notes, "validation rows are runs of rows"))
    if config.split.runs is False or not may_be_in_runs(protocol):
        return protocol
    where = points({block: values for block, values in found.blocks.items() if not has_positions(block)})
    nearer = as_near_as_test(protocol, where, seed=config.search.seed)
    try:
        _check_splits(found.tasks, found.labels, nearer, weights)
    except SchemaError:  # a label that lies in one run only
        return protocol
    return nearer


def _check_splits(
    tasks: Sequence[Task[Any]], encoded: Sequence[np.ndarray], protocol: Protocol, weights: np.ndarray | None
) -> None:
    """Raise SchemaError where a part of the split leaves a task without labels; rows of weight 0 do not count."""
    unheeded = np.zeros(len(encoded[0]), dtype=bool) if weights is None else weights == 0
    heavy = " that weigh more than 0" if unheeded.any() else ""
    parts = [(f"the training rows of fold {i + 1}" if len(protocol.splits) > 1 else "the training rows", train)
             for i, (train, _) in enumerate(protocol.splits)]  # fmt: skip
    parts += [
        ("the validation rows", np.concatenate([valid for _, valid in protocol.splits])),
        ("the test rows", protocol.test),
    ]
    for task, labels in zip(tasks, encoded, strict=True):
        missing = unheeded | ~task.known(torch.from_numpy(labels)).numpy()
        for words, rows in parts:
            if missing[rows].all():
                raise SchemaError(
                    f"Target {task.name!r} has no label in {words}{heavy}; "
                    "split otherwise (`split:` in mtl.yaml), or leave it out."
                )
        for words, rows in parts[: len(protocol.splits)]:
            known = labels[rows][~missing[rows]]
            if known.ndim == 1 and known.min() == known.max():
                raise SchemaError(
                    f"Target {task.name!r} has one value only in {words}{heavy}; "
                    "split otherwise (`split:` in mtl.yaml), or leave it out."
                )


def _absent(tasks: Sequence[Task[Any]], encoded: Sequence[np.ndarray], protocol: Protocol) -> list[str]:
    """Return a note for each target with labels that a fold validates without having learned them."""
    notes = []
    for task, labels in zip(tasks, encoded, strict=True):
        if labels.ndim > 1 or labels.dtype.kind != "i":  # numbers, or no labels of rows
            continue
        unseen = [np.setdiff1d(labels[valid], np.append(labels[train], -1)) for train, valid in protocol.splits]
        if n := len(np.unique(np.concatenate(unseen))):
            folds = listing(str(i + 1) for i, missing in enumerate(unseen) if len(missing))
            where = f", in fold {folds}" if len(protocol.splits) > 1 else ""
            notes.append(f"labels of target {task.name!r} that the training rows lack: {n}{where}")
    return notes


def _twins(table: pa.Table, names: Sequence[str]) -> list[str]:
    """Return a note for each target that is another one by another name."""
    return [
        f"Targets {one!r} and {other!r} hold the same labels, which therefore count twice in every mean"
        for i, other in enumerate(names)
        if (one := next((n for n in names[:i] if table[n].equals(table[other])), None)) is not None
    ]


def row_weights(table: pa.Table, name: str) -> np.ndarray:
    """Return the row weights in a column, with mean 1; raises SpecError or SchemaError where they are no weights."""
    if name not in table.column_names:
        raise SpecError(
            f"sample_weight: there is no column {name!r}{nearest(name, table.column_names) or '.'} "
            f"Columns: {listing(table.column_names)}."
        )
    weights = floats(tables.plain(table[name]), name).ravel().astype(np.float64)
    bad = ~(weights >= 0)
    if bad.any():
        row = int(bad.argmax())
        raise SchemaError(
            f"sample_weight {name!r}, row {row}: {weights[row]} is not a weight; give a number of 0 or more."
        )
    if not weights.sum():
        raise SchemaError(f"sample_weight {name!r} is 0 in every row; give some rows weight.")
    return np.asarray(weights / weights.mean())


def table_name(data: Any) -> str:
    """Return what a run is called after its table."""
    return Path(data).name.partition(".")[0] or "table" if isinstance(data, str | Path) else "table"
