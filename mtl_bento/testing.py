"""The promises of each family of kinds, as functions for anybody's tests; our own kinds are held to them too.

    from mtl_bento.testing import check_trunk

    def test_my_trunk_keeps_the_promises_of_a_trunk() -> None:
        check_trunk(MyTrunkSpec)

Each takes a spec, or its class where all fields have defaults. Its sizes are varied along the marks of its fields for
the stacks of unlike members; where those sizes do not fit together, give the specs that shall share a stack yourself.
A broken promise is a `BrokenPromiseError` (an AssertionError) that says which one. All is computed in float64, on a
table of 120 rows, in a few seconds.

Letters: K members, T tasks, M TabM's inner members, B rows, N rows of the table, C columns, L positions, F features,
D width, O outputs of a head.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, get_args, get_origin

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Generator, Tensor, nn

from mtl_bento.backbones._base import BACKBONES, Backbone, BackboneSpec
from mtl_bento.columns._base import COLUMNS, Column, blank
from mtl_bento.dataset import Dataset
from mtl_bento.encoders._base import BACKBONE, ENCODERS, EncoderSpec, kind_of
from mtl_bento.errors import SchemaError
from mtl_bento.heads._base import HEADS, HeadSpec
from mtl_bento.network import Inputs, Network, NetworkSpec, stacks
from mtl_bento.registry import Registry
from mtl_bento.samples import BLOCK, OWN_ROWS, SampleTrunkSpec, sample_rows
from mtl_bento.schema import Schema
from mtl_bento.spec import Spec
from mtl_bento.tasks._base import TASKS, Task, TaskSpec
from mtl_bento.training import (
    Cohort,
    Member,
    MemberSpec,
    MemberState,
    Stack,
    TrainingSpec,
    advance,
    lined_up,
    restack,
)
from mtl_bento.trunks._base import TRUNKS, TrunkSizes, TrunkSpec
from mtl_bento.weighting._base import WEIGHTINGS, WeightingSpec

TOLERANCE = 1e-12
"""How far float64 results may lie apart that should be equal, relative to the larger of 1 and the value."""
SINGLE = 1e-4
"""How far float32 results of a backbone may lie apart that should be equal."""
CALIBRATED_ROWS = 200
"""Rows at least that a task is calibrated on in a check."""
STEPS = 12
"""Steps of training in a check."""
WIDTHS, DEPTHS = (8, 5, 12, 7), (3, 2, 1, 1)
"""Trunk sizes of the unlike members, deepest first."""

AnySpec = TypeVar("AnySpec", bound=Spec)
Forward = Callable[[Tensor], Tensor]


class BrokenPromiseError(AssertionError):
    """A kind does not keep a promise of its family."""


def check_trunk(trunk: type[TrunkSpec] | TrunkSpec, *others: TrunkSpec) -> None:
    """Raise BrokenPromiseError unless a trunk keeps its promises.

    A state [K, M, B, D] for each task; padding that stays zero; rows and members that do not see each other; finite
    gradients; and, above all, member k of a stack equals that member trained alone (`check_stack`). A trunk that reads
    positions has states [K, M, B, L, D], those of real positions whatever lies at the others, finite everywhere.

    Args:
        trunk: the spec or its class.
        others: specs that share its stack, deepest first; without them, widths, depths and own fields are varied.
    """
    spec = check_spec(trunk, TRUNKS)
    sizes = [{"width": w, "shared_depth": d, "dropout": 0.0} for w, d in zip(WIDTHS, DEPTHS, strict=True)]
    given = [_changed(member, dropout=0.0) or member for member in (spec, *others)]
    unlike = sorted(given if others else _varied(spec, sizes), key=lambda member: -member.shared_depth)
    alike = [unlike[0], unlike[0]]
    positional = TRUNKS.class_of(type(spec)).positional
    for specs in (unlike, alike, unlike[-1:]):
        for grid in ((2, 3), None) if positional else (None,):
            _check_states(specs, TrunkSizes(n_features=7, n_tasks=3, length=6 * positional, grid=grid))
    dataset = sample_dataset(positions=positional)
    check_stack(sample_members(dataset, trunks=unlike), dataset)
    check_stack(sample_members(dataset, trunks=alike), dataset)
    _check_refusals(spec, lambda specs: sample_members(dataset, trunks=specs), dataset)
    dropping = [_changed(member, dropout=0.3) or member for member in unlike]
    _check_repeatable(sample_members(dataset, trunks=dropping), dataset)


def check_head(head: type[HeadSpec] | HeadSpec, *others: HeadSpec) -> None:
    """Raise BrokenPromiseError unless a head keeps its promises; `others` share its stack.

    Shapes [K, M, B, O]; rows, members and TabM's inner members that do not see each other; a state's padding unread;
    finite gradients; member k of a stack equals that member trained alone.
    """
    spec = check_spec(head, HEADS)
    unlike = [spec, *others] if others else _varied(spec, [{}] * len(WIDTHS))
    widths = [WIDTHS[k % len(WIDTHS)] for k in range(len(unlike))]
    for specs in (unlike, [spec], unlike[::-1]):
        for inner in (1, 3):
            _check_outputs(specs, widths[: len(specs)], inner)
    dataset = sample_dataset()
    check_stack(sample_members(dataset, heads=unlike), dataset)
    tabm = TRUNKS.parse({"kind": "tabm", "inner": 3, "width": 6, "shared_depth": 1, "dropout": 0.0})
    check_stack(sample_members(dataset, heads=unlike, trunks=[tabm] * len(unlike)), dataset)
    _check_refusals(spec, lambda specs: sample_members(dataset, heads=specs), dataset)


def check_encoder(
    encoder: type[EncoderSpec] | EncoderSpec,
    *others: EncoderSpec,
    columns: Sequence[Column] = (),
    values: np.ndarray | None = None,
) -> None:
    """Raise BrokenPromiseError unless an encoder keeps its promises; `others` share its stack.

    Features [K or 1, B, F], finite also for missing and unseen values; rows that do not see each other; what it learned
    of the training rows lies in buffers; finite gradients; member k of a stack equals that member trained alone. With
    positions features are [K or 1, B, L, F] with a mask [K or 1, B, L], and pooled ones [K or 1, B, F'].

    Args:
        encoder: the spec or its class.
        others: specs that share its stack.
        columns: the columns of its block; not needed for a block that the project ships.
        values: training rows of the block as its columns encode them, [N, C].
    """
    spec = check_spec(encoder, ENCODERS)
    unlike = [spec, *others] if others else _varied(spec, [{}] * 3)
    if values is None:
        dataset, values = _sample(only=spec.kind)
    else:
        dataset = _problem({spec.kind: tuple(columns)}, {spec.kind: values})
    length = _check_features(unlike, dataset.inputs, values)
    check_stack(sample_members(dataset, encoders=unlike), dataset)
    if length:
        by_position = [SampleTrunkSpec(width=w, shared_depth=1, dropout=0.0) for w in range(4, 4 + len(unlike))]
        check_stack(sample_members(dataset, encoders=unlike, trunks=by_position), dataset)
    _check_refusals(spec, lambda specs: sample_members(dataset, encoders=specs), dataset)


def check_backbone(backbone: type[BackboneSpec] | BackboneSpec, *, size: tuple[int, int] = (48, 64)) -> None:
    """Raise BrokenPromiseError unless a backbone keeps its promises, with the weights that its spec names.

    A map [B, D, r, c] of pictures or features [B, L, D] of texts, finite, the same each time; rows that do not see each
    other, and what stands beyond a text not seen; no gradient; alike when built anew from its state, as a service does.

    Args:
        backbone: the spec or its class.
        size: rows and columns of pixels of the pictures that it is given.
    """
    spec = check_spec(backbone, BACKBONES)
    backbone_class: Any = BACKBONES.class_of(type(spec))
    built: Backbone[Any] = backbone_class.pretrained(spec)
    values = _sample_pixels(size) if spec.modality == "image" else _sample_tokens(built.n_tokens or 50)
    real = values >= 0 if spec.modality == "text" else torch.ones(len(values), dtype=torch.bool)
    frozen = not built.training and not any(parameter.requires_grad for parameter in built.parameters())
    _promise(frozen, "a backbone must come in evaluation mode, without gradients")
    answer = built(values)
    if spec.modality == "text":
        _same_shape(answer, (*values.shape, built.n_features), "features must be [B, L, D]")
        longer = built(nn.functional.pad(values, (0, 3), value=-1))[:, : values.shape[1]]
        _close(longer[real], answer[real], "what stands beyond a text must not be seen", tolerance=SINGLE)
    else:
        _promise(answer.dim() == 4, f"a map must be [B, D, r, c], not {list(answer.shape)}")
        _same_shape(answer, (len(values), built.n_features, *answer.shape[2:]), "a map must be [B, D, r, c]")
    for b in (0, 1):
        _same_shape(built(values[:b]), (b, *answer.shape[1:]), "any number of rows must do")
    _promise(_finite(answer[real]), "features must be finite")
    _promise(torch.equal(built(values)[real], answer[real]), "features must be the same each time")
    alone = torch.cat([built(values[i : i + 1]) for i in range(len(values))])
    _close(alone[real], answer[real], "rows must not see each other", tolerance=SINGLE)
    state = safetensors.torch.load(safetensors.torch.save(built.state_dict()))
    again = backbone_class.restored(spec, state)
    _promise(torch.equal(again(values)[real], answer[real]), "a backbone must be the same from its saved state")
    if built.by_token:
        turned = built(values.flip(1)).flip(1)
        _promise(torch.equal(turned[real], answer[real]), "`by_token` must hold: a token alike wherever it stands")


def check_task(
    task: TaskSpec,
    labels: pa.ChunkedArray | pa.Array | Sequence[Any],
    *,
    known: Sequence[bool] | None = None,
    table: pa.Table | None = None,
    columns: Sequence[Column] = (),
) -> None:
    """Raise BrokenPromiseError unless a task keeps its promises.

    A row without a label counts for nothing, a batch of them gives loss 0 and no gradient, but it learns from a
    teacher's answer as others do; weights have the effect of repeated rows; members do not see each other; answers are
    judged as they were trained, are labels in columns and JSON in rows, and are scored alike from arrays and from
    columns; `fit` refuses labels that teach nothing.
    Calibrated on out-of-fold answers it keeps all of that, and what rows without label or weight say does not matter.

    Args:
        task: the spec as a user writes it, not yet fitted.
        labels: training labels of at least two values, some missing.
        known: which rows are labelled, where that is not simply where a cell is.
        table, columns: inputs of the same rows, for a task that reads them (`Task.place`).
    """
    cells = labels if isinstance(labels, pa.ChunkedArray) else pa.chunked_array([pa.array(labels)])
    task_class: Any = TASKS.class_of(type(task))
    fitted = check_spec(task_class.fit(task, cells), TASKS)
    inputs = pa.table({"": pa.nulls(len(cells))}) if table is None else table

    def placed(n_rows: int, spec: TaskSpec = fitted) -> Task[Any]:
        built: Task[Any] = task_class(spec)
        return built.place(inputs.slice(0, n_rows), columns)

    built = placed(len(cells))
    targets = torch.from_numpy(built.encode(cells))
    if known is None:
        labelled = [value not in (None, "") and value == value for value in cells.to_pylist()]  # noqa: PLR0124 - no NaN
    else:
        labelled = list(known)
    if all(labelled):
        raise ValueError("give labels of which some are missing, so that masking can be checked")
    _promise(built.known(targets).tolist() == labelled, "`known` must be true exactly where there is a label")
    _check_fit_refuses(task_class, task, cells)
    _check_losses(built, targets)
    _check_judged(built, targets)
    _check_taught(built, targets)
    _check_answers(built, placed, cells)
    learned = _check_calibration(built, targets)
    again = placed(len(cells), learned)
    _check_losses(again, targets)
    _check_judged(again, targets)
    _check_answers(again, partial(placed, spec=learned), cells)
    _check_coverage(again, cells)


def check_weighting(weighting: type[WeightingSpec] | WeightingSpec, *others: WeightingSpec) -> None:
    """Raise BrokenPromiseError unless a weighting keeps its promises; `others` share its stack.

    One number to descend for each member [K], finite with finite gradients, in which exactly the losses of the tasks
    that it learns count; members that do not see each other; member k of a stack equals that member trained alone.
    """
    spec = check_spec(weighting, WEIGHTINGS)
    dataset = sample_dataset()
    names = [task.name for task in dataset.tasks]
    unlike = [spec, *others] if others else _varied(spec, [{}] * 3, tasks=names)
    built: Any = WEIGHTINGS.class_of(type(spec))
    losses = _random(len(unlike), len(names)).abs().requires_grad_()
    objective = built(unlike, names).double()(losses)
    _same_shape(objective, (len(unlike),), "a weighting must return one number a member, [K]")
    (gradient,) = torch.autograd.grad(objective.sum(), losses)
    _promise(_finite(objective, gradient), "a weighting must be finite with finite gradients for finite losses")
    for k, member in enumerate(unlike):
        alone = built([member], names).double()(losses[k : k + 1])
        _close(objective[k : k + 1], alone, f"member {k} of a stack must be weighed as it is alone")
        learned = [member.weight(name) > 0 for name in names]
        _promise((gradient[k] != 0).tolist() == learned, "a loss must count exactly where `weight(task)` is above 0")
    check_stack(sample_members(dataset, weightings=unlike), dataset)
    _check_refusals(spec, lambda specs: sample_members(dataset, weightings=specs), dataset)


def check_column(column: type[Column], values: pa.ChunkedArray | pa.Array | Sequence[Any]) -> None:
    """Raise BrokenPromiseError unless a kind of input column keeps its promises on training cells `values`.

    An array [B, F] of its dtype for any number of rows, the same for each row alone; all missing where the table lacks
    the column; drawn cells are JSON, pass as a request and are encoded.
    """
    cells = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(values)])
    fitted = check_spec(column.fit("a name, 名", cells), COLUMNS)
    encoded = fitted.encode(cells)
    shape = (len(cells), fitted.n_features)
    _promise(encoded.shape == shape, f"`encode` must return [B, F] = {shape}, not {encoded.shape}")
    _promise(encoded.dtype == column.dtype, f"`encode` must return {np.dtype(column.dtype)}, not {encoded.dtype}")
    alone = np.concatenate([fitted.encode(cells.slice(row, 1)) for row in range(len(cells))])
    same = np.array_equal(alone, encoded, equal_nan=encoded.dtype.kind == "f")
    _promise(same, "rows must be encoded alike alone")
    _promise(fitted.encode(cells.slice(0, 0)).shape == (0, shape[1]), "no rows must be encoded as [0, F]")
    absent = fitted.encode(pa.chunked_array([pa.nulls(3)]))
    empty = np.isnan(absent) if absent.dtype.kind == "f" else absent == blank(absent.dtype)
    _promise(bool(empty.all()), "cells of Arrow's null type must be missing: NaN, code -1, or 0 without a sign")
    _check_drawn(fitted)
    _promise(bool(fitted.describe()), "`describe` must say what the column is taken for")


def check_spec(given: type[AnySpec] | AnySpec, registry: Registry[Any]) -> AnySpec:
    """Return the spec after checking what all kinds promise: it is registered, and survives a trip through JSON."""
    spec = given() if isinstance(given, type) else given
    kinds = registry.kinds()
    kind = getattr(spec, "kind", None)
    _promise(kinds.get(str(kind)) is type(spec), f"{type(spec).__name__} must be registered as {kind!r}")
    back = registry.parse(json.loads(spec.model_dump_json()))
    _promise(back == spec, f"the spec must survive JSON: {spec!r} came back as {back!r}")
    _promise(spec.stack_key() == back.stack_key(), "`stack_key` must survive JSON")
    hash(spec.stack_key())
    return spec


def check_stack(members: Sequence[Member], dataset: Dataset) -> None:
    """Raise BrokenPromiseError unless members trained in one stack, dropout 0, end as each of them does alone.

    Compared are parameters, AdamW's moments, the best look at the validation rows and every look before. So that
    survivors may be restacked: half-way in two stacks, then together without one of them, must make no difference; nor
    must a stop on the way. Padding stays exactly zero, and what was learned answers alike in a stack for prediction.
    """
    order = lined_up(members)
    steps = order[0].spec.training.steps
    start = Stack(order, seed=0)
    cohort = Cohort(start, dataset)
    _check_parts(cohort.network)
    buffers = {name: value.clone() for name, value in cohort.network.named_buffers()}
    cohort.advance(dataset, steps)
    together = cohort.stack()
    _check_finite(together)
    _check_padding(cohort)
    for name, value in cohort.network.named_buffers():
        _promise(torch.equal(value, buffers[name]), f"buffer {name} changed in training; members keep parameters only")
    for k, member in enumerate(order):
        alone = advance(Stack((member,), seed=0), dataset, steps)
        _same_state(together.states[k], alone.states[0], f"member {k} of the stack must equal that member alone")
        _close(_looks(together, k), _looks(alone, 0), f"validation losses of member {k} must equal those alone")
    resumed = advance(advance(start, dataset, steps // 2), dataset, steps)
    for one, other in zip(resumed.states, together.states, strict=True):
        _same_state(one, other, "a stack advanced in two calls must equal one advanced in one")
    _check_restacked(together, order, dataset)
    _check_prediction(together, dataset)


def sample_dataset(*, dtype: torch.dtype = torch.float64, positions: bool = False) -> Dataset:
    """Return 120 rows with all blocks of tables, three tasks with missing labels, row weights, and two folds.

    With `positions` a block with positions stands beside them, and a fourth task, `cells`, answers by these.
    """
    return _sample(dtype=dtype, positions=positions)[0]


def sample_members(
    dataset: Dataset,
    *,
    trunks: Sequence[TrunkSpec] = (),
    heads: Sequence[HeadSpec] = (),
    encoders: Sequence[EncoderSpec] = (),
    weightings: Sequence[WeightingSpec] = (),
    steps: int = STEPS,
) -> list[Member]:
    """Return unlike members for a dataset: what is given of each, and plain kinds of our own for the rest."""
    n = max(len(given) for given in (trunks, heads, encoders, weightings, [None]))
    return [_member(dataset, k, trunks, heads, encoders, weightings, steps) for k in range(n)]


# Samples


def _member(
    dataset: Dataset,
    k: int,
    trunks: Sequence[TrunkSpec],
    heads: Sequence[HeadSpec],
    encoders: Sequence[EncoderSpec],
    weightings: Sequence[WeightingSpec],
    steps: int,
) -> Member:
    names = [task.name for task in dataset.tasks]
    mlp = {"kind": "mlp", "width": WIDTHS[k % 4], "shared_depth": DEPTHS[k % 4], "dropout": 0.0}
    # Each task gets another head, so that unlike heads meet in one member too.
    held = [heads[(k + t) % len(heads)] if heads else {"kind": "dense", "width": 4} for t in range(len(names))]
    network = NetworkSpec.model_validate(
        {
            "encoders": {
                block: encoders[k] if encoders else {"kind": kind_of(block)} for block in dataset.inputs.columns
            },
            "trunk": trunks[k] if trunks else mlp,
            "heads": dict(zip(names, held, strict=True)),
        }
    )
    weighting = weightings[k] if weightings else WEIGHTINGS.parse({"kind": "static"})
    training = TrainingSpec(lr=2e-3 * (k + 1), weight_decay=0.1 * k, batch_size=16, steps=steps, weighting=weighting)
    return Member(MemberSpec(network=network, training=training), seed=k, split=k % len(dataset.splits))


def _sample(
    *, only: str | None = None, dtype: torch.dtype = torch.float64, positions: bool = False
) -> tuple[Dataset, np.ndarray]:
    """Return the sample dataset, of one block where `only` names its kind, and that block's values (or any block's)."""
    n, rng = 120, np.random.default_rng(0)
    if only in OWN_ROWS:
        own, values = OWN_ROWS[only](n)
        return _problem({only: own}, {only: values}, dtype=dtype), values
    holes = rng.random((2, n)) < 0.1
    table = pa.table(
        {
            "size": pa.array(rng.normal(size=n), mask=holes[0]),
            "count": pa.array(rng.integers(0, 4, n)),
            "colour": pa.array(rng.choice(["red", "green", "blue"], n), mask=holes[1]),
            "place": pa.array([f"place {i % 15}" for i in range(n)]),
            "vector": pa.array([None, *rng.normal(size=(n - 1, 2)).tolist()], pa.list_(pa.float64())),
        }
    )
    kinds = {"size": "numeric", "count": "numeric", "colour": "categorical", "place": "categorical", "vector": "vector"}
    columns = [COLUMNS.class_of(COLUMNS.spec_class(kind)) for kind in kinds.values()]
    fitted = tuple(column.fit(name, table[name]) for name, column in zip(kinds, columns, strict=True))
    schema = Schema(columns=tuple(column for column in fitted if only in (None, kind_of(column.block))))
    blocks = schema.encode(table) if schema.columns else {}
    by_position, tokens, cells, labels = sample_rows(n)
    if positions or only == kind_of(BLOCK):
        blocks |= tokens
    if not blocks:
        raise TypeError(f"there are no sample rows for block {only!r}; give `columns` and `values`")
    held = {name: (schema.blocks | by_position)[name] for name in blocks}
    beside = [(cells, labels)] if positions else []
    return _problem(held, blocks, dtype=dtype, beside=beside), next(iter(blocks.values()))


def _problem(
    columns: dict[str, tuple[Column, ...]],
    blocks: dict[str, np.ndarray],
    *,
    dtype: torch.dtype = torch.float64,
    beside: Sequence[tuple[Task[Any], np.ndarray]] = (),
) -> Dataset:
    """Return encoded inputs with three made-up tasks and those `beside` them, row weights and two folds."""
    n, rng = len(next(iter(blocks.values()))), np.random.default_rng(1)
    labels = {
        "yes": ("binary", pa.array(np.arange(n) % 3 == 0)),
        "kind": ("multiclass", pa.array(rng.choice(["a", "b", "c"], n), mask=rng.random(n) < 0.2)),
        "amount": ("regression", pa.array(rng.normal(size=n), mask=rng.random(n) < 0.3)),
    }
    tasks, targets = [], []
    for name, (kind, values) in labels.items():
        spec = TASKS.parse({"kind": kind, "name": name})
        task_class: Any = TASKS.class_of(type(spec))
        cells = pa.chunked_array([values])
        tasks.append(task_class(task_class.fit(spec, cells)))
        targets.append(tasks[-1].encode(cells))
    tasks += [task for task, _ in beside]
    targets += [held for _, held in beside]
    inputs = Inputs.fit(columns, {name: torch.from_numpy(block) for name, block in blocks.items()})
    places = np.arange(n)
    splits = [(places[places % 4 != fold], places[places % 4 == fold]) for fold in range(2)]
    weights = rng.integers(1, 3, n).astype(np.float64)
    return Dataset.build(tasks, inputs, blocks, targets, splits, weights=weights, dtype=dtype)


def _varied(spec: AnySpec, fixed: Sequence[dict[str, Any]], *, tasks: Sequence[str] = ()) -> list[AnySpec]:
    """Return specs that differ in every field that may differ inside a stack, each with its fixed fields."""
    free = [name for name in type(spec).model_fields if name not in ("kind", *spec.must_match())]
    varied = []
    for k, fields in enumerate(fixed):
        held = spec
        for name in free:
            values = [fields[name]] if name in fields else _values(spec, name, k, tasks)
            held = _first_allowed(held, name, values) or held
        varied.append(held)
    return varied


def _values(spec: Spec, name: str, k: int, tasks: Sequence[str]) -> list[Any]:
    """Return values of a field that a k-th unlike member may have, the one to try first at the front."""
    current = getattr(spec, name)
    mark = spec.searched().get(name)
    if isinstance(current, dict):
        return [{task: 0.5 + (k + t) % 3 for t, task in enumerate(tasks)}]
    if choices := _choices(spec, name):
        return [choices[k % len(choices)]]
    if mark is not None and mark.low is not None and mark.high is not None:
        whole = isinstance(current, int)
        return [int(min(mark.low + k, mark.high))] if whole else [mark.low + (mark.high - mark.low) * k / 4]
    return [current + k, current - k] if isinstance(current, int | float) else []


def _choices(spec: Spec, name: str) -> tuple[Any, ...]:
    annotation = type(spec).model_fields[name].annotation
    mark = spec.searched().get(name)
    if mark is not None and mark.choices is not None:
        return mark.choices
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return (False, True) if annotation is bool else ()


def _first_allowed(spec: AnySpec, name: str, values: Sequence[Any]) -> AnySpec | None:
    changed = (_changed(spec, **{name: value}) for value in values)
    return next((allowed for allowed in changed if allowed is not None), None)


def _changed(spec: AnySpec, **fields: Any) -> AnySpec | None:
    """Return the spec with other values of fields, or None where they are not allowed."""
    try:
        return type(spec).model_validate({**spec.model_dump(), **fields})
    except ValueError:
        return None


# What stacks promise


def _check_parts(network: Network) -> None:
    held = {id(part.parameter) for part in network.parts()}
    lost = [name for name, parameter in network.named_parameters() if id(parameter) not in held]
    _promise(not lost, f"every parameter must be made by `stack` or lie in a PerMember, or it is never saved: {lost}")


def _check_finite(stack: Stack) -> None:
    values = (value for state in stack.states for tensors in state.tensors.values() for value in tensors.values())
    _promise(_finite(*values), "parameters must stay finite in training")


def _check_padding(cohort: Cohort) -> None:
    flat = cohort.flat
    for matrix in (flat.data, cohort.first, cohort.second):
        rest = matrix.clone()
        for part in flat.parts:
            for k in range(len(cohort.members)):
                if (share := part.share(flat.view(rest, part), k)) is not None:
                    share.zero_()
        padding = [part.name for part in flat.parts if bool(flat.view(rest, part).any())]
        _promise(not bool(rest.any()), f"padding must stay exactly zero; it does not in {padding}")


def _check_restacked(whole: Stack, order: Sequence[Member], dataset: Dataset) -> None:
    """Train the members in two stacks half-way, go on together without the first of them; compare with `whole`."""
    steps = order[0].spec.training.steps
    places = [part for part in (range(0, len(order), 2), range(1, len(order), 2)) if len(part)]
    halves = [advance(Stack(tuple(order[k] for k in part), seed=1), dataset, steps // 2) for part in places]
    kept = [list(range(len(part))) for part in places]
    if len(order) > 1:
        kept[0] = kept[0][1:]
    survivors = [order[places[half][k]] for half, held in enumerate(kept) for k in held]
    merged = advance(restack(halves, kept, seed=2), dataset, steps)
    _promise(set(map(id, merged.members)) == set(map(id, survivors)), "restacking must keep the members")
    for k, member in enumerate(merged.members):
        same = next(place for place, other in enumerate(order) if other is member)
        _same_state(merged.states[k], whole.states[same], "a member restacked half-way must go on as it would have")


def _check_prediction(stack: Stack, dataset: Dataset) -> None:
    """Compare answers of trained members, put together anew for prediction, with those of each alone."""
    blocks = [block.unsqueeze(0) for block in dataset.blocks]
    margins = None if dataset.margins is None else dataset.margins.unsqueeze(0)
    trained = [stack.trained(k) for k in range(len(stack.members))]
    for places, network in stacks(trained, dataset.inputs, dataset.tasks):
        together = network.to(dataset.dtype).answers(blocks, margins)
        for row, k in enumerate(places):
            ((_, single),) = stacks([trained[k]], dataset.inputs, dataset.tasks)
            for answer, alone in zip(together, single.to(dataset.dtype).answers(blocks, margins), strict=True):
                _promise(_finite(answer), "answers must be finite")
                _close(answer[row], alone[0], f"member {k} must answer in a stack as it does alone")


def _check_repeatable(members: Sequence[Member], dataset: Dataset) -> None:
    """Train a stack with dropout twice; its bits come from generators of its own, never from the global one."""
    stack = Stack(lined_up(members), seed=0)
    ends = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            ends.append(advance(stack, dataset, stack.members[0].spec.training.steps))
    _check_finite(ends[0])
    for one, other in zip(ends[0].states, ends[1].states, strict=True):
        same = all(torch.equal(value, other.tensors["data"][name]) for name, value in one.tensors["data"].items())
        _promise(same, "a stack trained twice must end alike to the last bit; draw nothing from a global generator")


def _check_refusals(spec: AnySpec, members: Callable[[list[AnySpec]], list[Member]], dataset: Dataset) -> None:
    """Check that members which differ in a field that must match cannot share a stack."""
    for name in spec.must_match():
        current = getattr(spec, name)
        values = [value for value in (*_choices(spec, name), *_neighbours(current)) if value != current]
        if (other := _first_allowed(spec, name, values)) is None:
            continue
        try:
            Cohort(Stack(lined_up(members([spec, other])), seed=0), dataset)
        except ValueError:
            continue
        raise BrokenPromiseError(f"members that differ in {name!r}, which must match, were put into one stack")


def _neighbours(current: Any) -> list[Any]:
    if isinstance(current, int):
        return [current + 1, current - 1]
    return [current / 2, current * 2] if isinstance(current, float) else []


def _looks(stack: Stack, k: int) -> Tensor:
    return torch.tensor([losses[k] for _, losses in stack.curve], dtype=torch.float64)


def _same_state(one: MemberState, other: MemberState, promise: str) -> None:
    for matrix, tensors in one.tensors.items():
        differing = set(tensors) ^ set(other.tensors[matrix])
        _promise(not differing, f"{promise}: only one of them has {sorted(differing)}")
        for name, value in tensors.items():
            _close(value, other.tensors[matrix][name], f"{promise} ({matrix} of {name})")
    losses = [torch.tensor([state.score, *state.losses], dtype=torch.float64) for state in (one, other)]
    _close(losses[0], losses[1], f"{promise} (best look)")


# What trunks, heads and encoders promise by themselves


def _check_states(specs: Sequence[TrunkSpec], sizes: TrunkSizes) -> None:
    n, tail = len(specs), (sizes.length,) if sizes.length else ()
    trunk: Any = TRUNKS.class_of(type(specs[0]))(specs, sizes, _generators(n)).double().eval()
    _promise(len(trunk.widths) == n, "`widths` must hold the width of each member's states")
    features = _random(n, 5, *tail, sizes.n_features)
    for row in range(5 if tail else 0):  # all positions of row 0 are real, none of the last
        features[:, row, sizes.length - row * sizes.length // 4 :] = torch.nan

    def forward(values: Tensor, filling: float = 0.0) -> Tensor:
        if not tail:
            return torch.stack(list(trunk(values)))  # [T, K, M, B, D]
        mask = ~values.isnan().any(-1)
        states = torch.stack(list(trunk(values.nan_to_num(filling), mask)))  # [T, K, M, B, L, D]
        return states * mask[:, None, ..., None]

    states = forward(features)
    _promise(_finite(states), "states must be finite, also where a row has no real position")
    _close(forward(features, 9.0), states, "what lies at positions that are not real must not matter")
    for b in (0, 1, 5):
        shape = (sizes.n_tasks, n, trunk.inner, b, *tail, max(trunk.widths))
        _same_shape(forward(features[:, :b]), shape, "states must be T of [K, M, B, D], or [K, M, B, L, D] by position")
    for k, width in enumerate(trunk.widths):
        _promise(not bool(states[:, k, ..., width:].any()), f"states beyond a member's width ({width}) must be zero")
    shared = features[:1]
    whole = shared.expand(n, *shared.shape[1:])
    _close(forward(shared), forward(whole), "features [1, B, F] must count for every member")
    _check_apart(forward, features, rows_in=1, rows_out=3, members_out=1)
    _check_gradients(forward, trunk, features, rows_in=1)
    trunk.train()
    _close(forward(features), states, "with dropout 0, training must answer as evaluation does")


def _check_outputs(specs: Sequence[HeadSpec], fan_in: Sequence[int], inner: int) -> None:
    n, n_outputs = len(specs), 3
    build: Any = HEADS.class_of(type(specs[0]))
    head = build(specs, fan_in, n_outputs, inner, _generators(n)).double().eval()
    state = _random(n, inner, 5, max(fan_in))
    for k, width in enumerate(fan_in):
        state[k, ..., width:] = 0  # as trunks leave it
    for b in (0, 1, 5):
        _same_shape(head(state[:, :, :b]), (n, inner, b, n_outputs), "outputs must be [K, M, B, O]")
    _check_apart(head, state, rows_in=2, rows_out=2, members_out=0)
    _check_gradients(head, head, state, rows_in=2)
    changed = state.clone()
    changed[:, 0] += 1
    _close(head(changed)[:, 1:], head(state)[:, 1:], "TabM's inner members must not see each other")
    other = build(specs, fan_in, n_outputs + 2, inner, _generators(n)).double().eval()
    for one, alone in zip(head.together([head, other, head], state), (head, other, head), strict=True):
        _close(one, alone(state), "heads of one state must answer together as they do alone")


def _check_features(specs: Sequence[EncoderSpec], inputs: Inputs, values: np.ndarray) -> int:
    """Check features; return how many positions they have."""
    ((block, fitted),), n = inputs.fitted.items(), len(specs)
    build: Any = ENCODERS.class_of(type(specs[0]))
    encoder = build(specs, inputs.columns[block], fitted, _generators(n)).double().eval()
    held = {name for name in fitted if not name.startswith(BACKBONE)}
    lost = held - {name for name, _ in encoder.named_buffers()}
    _promise(not lost, f"what was fitted must lie in buffers: {sorted(lost)}")
    raw = torch.from_numpy(np.concatenate([values, _odd_rows(values)]))
    prepared = encoder.prepare(raw)
    features = encoder.features(prepared[None])
    _promise(features.shape[0] in (1, n), "features must be [K or 1, B, F]")
    _promise(_finite(features), "features must be finite, also of missing and unseen values")
    tail = (encoder.length,) if encoder.length else ()
    for b in (0, 1, len(raw)):
        shape = (features.shape[0], b, *tail, encoder.n_features)
        _same_shape(
            encoder.features(prepared[None, :b]), shape, "features must be [K or 1, B, F], or [K or 1, B, L, F]"
        )
        shape = (b, *tail, prepared.shape[-1])
        _same_shape(encoder.prepare(raw[:b]), shape, "prepared rows must be [B, C'], or [B, L, D]")
    if tail:
        mask = encoder.unfold(prepared[None])[-1]
        _promise(mask.dtype == torch.bool, "the last of what is unfolded must be the mask of real positions")
        _same_shape(mask, (1, len(raw), *tail), "the mask must be [K or 1, B, L]")
        pooled = encoder.pooled(features, mask)
        shape = (features.shape[0], len(raw), encoder.n_pooled)
        _same_shape(pooled, shape, "pooled features must be [K or 1, B, F']")
        _promise(_finite(pooled), "pooled features must be finite, also where a row has no position")
    spec_class: Any = type(specs[0])
    default = build([spec_class()], inputs.columns[block], fitted, _generators(1)).double()
    _close(default.prepare(raw), prepared, "`prepare` must not depend on the spec: all members share its rows")
    own = prepared.expand(
        n, *prepared.shape
    )  # each member has rows of its own in training; all share theirs in prediction
    together = features.expand(n, *features.shape[1:])
    _close(encoder.features(own), together, "rows given for each member must be encoded as rows given once")
    whole = [part.expand(n, *part.shape) for part in encoder.unfold(prepared)]  # as training gathers them
    _close(encoder(*whole), together, "rows must be unfolded alike before and after they are drawn")
    alone = torch.cat([encoder.prepare(raw[i : i + 1]) for i in range(len(raw))])
    _close(alone, prepared, "rows must be prepared alike alone")
    _check_apart(encoder.features, own, rows_in=1, rows_out=1, members_out=0)
    _check_gradients(encoder.features, encoder, own, rows_in=1)
    return int(encoder.length)


def _sample_pixels(size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (4, *size, 3), generator=Generator().manual_seed(7)).to(torch.uint8)


def _sample_tokens(n_tokens: int) -> Tensor:
    """Return four texts: of six tokens, five, one, and none."""
    tokens = torch.randint(0, n_tokens, (4, 6), generator=Generator().manual_seed(7))
    return torch.where(torch.arange(6) < torch.tensor([[6], [5], [1], [0]]), tokens, -1)


def _odd_rows(values: np.ndarray) -> np.ndarray:
    """Return a row that is all missing, and unseen ones: far-away numbers, or the highest codes ("other")."""
    if values.dtype.kind == "u":  # bytes of a picture: none, and all white
        return np.stack([np.full_like(values[0], number) for number in (0, 255)])
    if values.dtype.kind == "f":
        return np.stack([np.full_like(values[0], number) for number in (np.nan, 1e30, -1e30)])
    return np.stack([np.full_like(values[0], -1), values.max(0)])


def _check_apart(forward: Forward, values: Tensor, *, rows_in: int, rows_out: int, members_out: int) -> None:
    """Check that neither rows nor members of `values` [K, ...] see each other; the axes are those of B and of K."""
    answer = forward(values)
    alone = [forward(values.narrow(rows_in, i, 1)) for i in range(values.shape[rows_in])]
    _close(torch.cat(alone, rows_out), answer, "rows must not see each other")
    changed = values.clone()
    changed[0] = changed[0].flip(rows_in - 1)
    rest = answer.shape[members_out] - 1
    others = [held.narrow(members_out, 1, rest) for held in (forward(changed), answer)]
    _close(others[0], others[1], "members must not see each other")


def _check_gradients(forward: Forward, module: nn.Module, values: Tensor, *, rows_in: int) -> None:
    parameters = list(module.parameters())
    for n_rows in (values.shape[rows_in], 1, 0) if parameters else ():
        answer = forward(values.narrow(rows_in, 0, n_rows))
        gradients = torch.autograd.grad(answer.square().sum(), parameters)
        _promise(_finite(*gradients), f"gradients must be finite for {n_rows} rows")


# What tasks promise


def _check_fit_refuses(task_class: Any, spec: TaskSpec, cells: pa.ChunkedArray) -> None:
    one = cells.drop_null().slice(0, 1).combine_chunks()
    for what, given in (("missing", pa.nulls(4, cells.type)), ("alike", pa.concat_arrays([one] * 4))):
        try:
            task_class.fit(spec, pa.chunked_array([given]))
        except SchemaError as error:
            _promise(spec.name in str(error), f"the error must name the target: {error}")
        else:
            raise BrokenPromiseError(f"`fit` must raise SchemaError where all labels are {what}")


def _head_shape(task: Task[Any], targets: Tensor) -> tuple[int, ...]:
    """Return the shape of one row's outputs: (O,), or (L, O) where it answers by position."""
    return (targets.shape[1], task.n_outputs) if task.positional else (task.n_outputs,)


def _check_losses(task: Task[Any], targets: Tensor) -> None:
    n, rows, known = 3, len(targets), task.known(targets)
    outputs = _random(n, 2, rows, *_head_shape(task, targets)).requires_grad_()
    losses = task.loss(outputs, targets[None])
    _same_shape(losses, (n,), "`loss` must return one number a member, [K]")
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    _promise(_finite(losses, gradient), "losses and gradients must be finite")
    _promise(not bool(gradient[:, :, ~known].any()), "a row without a label must give no gradient")
    own = torch.cat([task.loss(outputs[k : k + 1], targets[None]) for k in range(n)])
    _close(own, losses, "members must not see each other in a loss")
    none = task.loss(outputs[:, :, ~known], targets[None, ~known])
    (gradient,) = torch.autograd.grad(none.sum(), outputs)
    _promise(not bool(none.any() or gradient.any()), "a batch without labels must have loss 0 and give no gradient")
    times = torch.arange(rows) % 3
    often = torch.arange(rows).repeat_interleave(times)
    weighed = task.loss(outputs, targets[None], times[None].double())
    repeated = task.loss(outputs[:, :, often], targets[None, often])
    _close(weighed, repeated, "a weight must have the effect of repeating a row")


def _check_judged(task: Task[Any], targets: Tensor) -> None:
    known = task.known(targets)
    outputs = _random(1, 1, len(targets), *_head_shape(task, targets))
    judged = task.answer_losses(task.activate(outputs)[0, 0], targets)
    _promise(torch.equal(judged.isnan(), ~known), "`answer_losses` must be NaN exactly where a label is missing")
    trained = task.row_losses(outputs, targets[None, None])[0, 0]
    _close(judged[known], trained[known], "`answer_losses` of one network must be its `row_losses`", tolerance=1e-6)
    parts = task.row_parts(outputs, targets[None, None])[0, 0]
    n_parts = max(1, len(task.parts))
    _promise(parts.shape[-1] == n_parts, f"`row_parts` must return [..., P], P = {n_parts}, not {tuple(parts.shape)}")
    _close(parts.sum(-1)[known], trained[known], "the sum of `row_parts` must be `row_losses`")
    trivial = task.trivial_loss(targets)
    _promise(0 < trivial < float("inf"), f"`trivial_loss` must be above 0 and finite, not {trivial}")


def _check_taught(task: Task[Any], targets: Tensor) -> None:
    rows, shape = len(targets), _head_shape(task, targets)
    teacher, others = _random(1, 1, rows, *shape), _random(3, 2, rows, *shape).requires_grad_()
    answers = task.activate(teacher)
    losses = task.soft_losses(others, answers, targets[None, None])
    _same_shape(losses, (3, 2, rows), "`soft_losses` must return the loss of each row, [K, M, B]")
    (gradient,) = torch.autograd.grad(losses.sum(), others)
    _promise(_finite(losses, gradient), "losses against a teacher and their gradients must be finite")
    learned = gradient.abs().sum((0, 1)).flatten(1).any(1)
    _promise(bool(learned.all()), "every row must learn from a teacher's answer, also one without a label")
    least = task.soft_losses(teacher, answers, targets[None, None])
    _promise(bool((losses >= least - 1e-9).all()), "nothing may lose less against a teacher than the teacher itself")
    parts = task.soft_parts(others, answers, targets[None, None])
    n_parts = max(1, len(task.parts))
    _promise(parts.shape[-1] == n_parts, f"`soft_parts` must return [..., P], P = {n_parts}, not {tuple(parts.shape)}")
    _close(parts.sum(-1), losses, "the sum of `soft_parts` must be `soft_losses`")


def _check_answers(task: Task[Any], placed: Callable[[int], Task[Any]], cells: pa.ChunkedArray) -> None:
    n = len(cells)
    outputs = _random(1, 1, n, *_head_shape(task, torch.from_numpy(task.encode(cells)))).float()
    answers = task.activate(outputs)[0, 0].numpy()
    _promise(answers.ndim == 2, f"answers of one network must be [B, O'], not {answers.shape}")
    for b in (0, 1, n):
        few = placed(b)
        values, rows, columns = few.values(answers[:b]), few.rows(answers[:b]), few.columns(answers[:b])
        sizes = {len(values), len(rows), *(len(column) for column in columns.values())}
        _promise(sizes == {b}, f"{b} answers must give as many values, objects and cells, not {sizes}")
        _promise(json.loads(json.dumps(rows, allow_nan=False)) == rows, "`rows` must be what JSON can hold")
    encoded = torch.from_numpy(task.encode(pa.chunked_array([values])))
    _promise(bool(task.known(encoded).all()), "predictions must be labels")
    table = {task.name: values, **{f"{task.name}__{suffix}": column for suffix, column in columns.items()}}
    columnwise = task.scored_columns({name: pa.chunked_array([column]) for name, column in table.items()})
    scored = task.scored(answers)
    what = "columns must be scored as answers are"
    if scored.dtype == object:
        _promise(columnwise.tolist() == scored.tolist(), what)
    else:
        _close(torch.tensor(columnwise), torch.tensor(scored), what, tolerance=1e-6)
    _promise(len(task.truth(cells)) == n, "`truth` must give a label a row")
    said = task.said(cells)
    _promise(json.loads(json.dumps(said)) == said and len(said) == n, "`said` must be labels that JSON can hold")
    targets = torch.from_numpy(task.encode(cells))
    empty = task.empty(targets)
    _promise(empty.dtype == torch.bool and empty.shape == task.known(targets).shape, "`empty` must say yes or no a row")
    json.dumps(task.card(), allow_nan=False)


def _check_calibration(task: Task[Any], targets: Tensor) -> TaskSpec:
    """Check what `calibrate` learns of rows whose answers know a little of their labels; return the calibrated spec."""
    times = -(-CALIBRATED_ROWS // len(targets))
    many = targets.repeat(times, *[1] * (targets.dim() - 1))
    known = task.known(many)
    outputs = 2 * _random(1, 1, len(many), *_head_shape(task, targets))
    answers = task.activate(outputs)[0, 0].float().numpy()
    spec: TaskSpec = task.calibrate(answers, many).spec
    _promise(TASKS.parse(json.loads(spec.model_dump_json())) == spec, "a calibrated spec must survive JSON")
    before, after = task.spec.model_dump(), spec.model_dump()
    others = sorted(name for name in before.keys() - set(task.learned) if before[name] != after[name])
    _promise(not others, f"`calibrate` must set only what `learned` names, not {others}")
    _promise(all(before[name] is None for name in task.learned), "what is `learned` must be None before calibration")

    def same(other: Task[Any], what: str) -> None:
        _promise(other.spec == spec, f"{what}: {spec!r} became {other.spec!r}")

    same(task.calibrate(answers, many, np.ones(len(many))), "weights of 1 must count as none")
    same(type(task)(spec).calibrate(answers, many), "an earlier calibration must be replaced")
    weights = known.double().numpy()
    same(task.calibrate(answers, many, weights), "a row without a label must count for nothing")
    odd = np.where(known.numpy()[:, None], answers, task.activate(9 * outputs)[0, 0].float().numpy())
    same(task.calibrate(odd, many), "the answer to a row without a label must not matter")
    more = np.concatenate([answers, answers[::-1]]), torch.cat([many, many]), np.repeat([1.0, 0.0], len(many))
    same(task.calibrate(*more), "a row of weight 0 must count for nothing")
    none = task.calibrate(answers[:0], many[:0])
    few = [name for name in ("set", "value") if name in none.edges()]
    _promise(not few, f"nothing can be learned of no rows, but there is an edge of {few}")
    for held in (none, task.calibrate(answers, many)):
        _promise(all(isinstance(note, str) and note for note in held.notes()), "`notes` must be sentences")
        json.dumps(held.card(), allow_nan=False)
    return spec


def _check_coverage(task: Task[Any], cells: pa.ChunkedArray) -> None:
    """Check that intervals and sets are read from the columns, and hold what is answered."""
    outputs = _random(1, 1, len(cells), *_head_shape(task, torch.from_numpy(task.encode(cells)))).float()
    answers = task.activate(outputs)[0, 0].numpy()
    table = {task.name: task.values(answers), **{f"{task.name}__{k}": v for k, v in task.columns(answers).items()}}
    columns = {name: pa.chunked_array([column]) for name, column in table.items()}
    found = task.covered(columns, task.truth(pa.chunked_array([table[task.name]])))
    if found is not None:
        _promise(0 < found.level < 1, f"the level must be a share of the rows, not {found.level}")
        sizes = {found.held.shape, found.size.shape}
        _promise(sizes == {(len(cells),)}, f"`covered` must say something of each row, not {sizes}")
        _promise(bool(found.held.all()), "an interval or set must hold the value that is answered")


def _check_drawn(column: Column) -> None:
    rng = np.random.default_rng(0)
    drawn = [column.draw(rng) for _ in range(20)]
    _promise(json.loads(json.dumps(drawn, allow_nan=False)) == drawn, "drawn cells must be what JSON can hold")
    request: TypeAdapter[Any] = TypeAdapter(column.wire_type() | None)
    read = [request.validate_json(json.dumps(cell)) for cell in drawn]
    encoded = column.encode(pa.chunked_array([pa.array(read, column.arrow_type())]))
    _promise(encoded.shape == (20, column.n_features), "drawn cells must pass as a request and be encoded")


# Comparing


def _promise(kept: bool, what: str) -> None:
    if not kept:
        raise BrokenPromiseError(what)


def _same_shape(value: Tensor, shape: tuple[int, ...], what: str) -> None:
    _promise(tuple(value.shape) == shape, f"{what}: {shape}, not {tuple(value.shape)}")


def _close(one: Tensor, other: Tensor, what: str, *, tolerance: float = TOLERANCE) -> None:
    one, other = one.detach().double(), other.detach().double()
    _same_shape(one, tuple(other.shape), what)
    apart = (one - other).abs() / other.abs().clamp_min(1)
    apart = torch.where((one == other) | (one.isnan() & other.isnan()), 0.0, apart).nan_to_num(nan=float("inf"))
    most = float(apart.max()) if apart.numel() else 0.0
    _promise(most <= tolerance, f"{what}; they lie {most:.1e} apart")


def _finite(*values: Tensor) -> bool:
    return all(bool(value.isfinite().all()) for value in values)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(7))


def _generators(n: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in range(n)]
