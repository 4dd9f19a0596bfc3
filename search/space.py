"""The space: marks on spec fields become `trial.suggest_*` calls, and sampled values become a member.

Names are what the study shows: `trunk`, `shared_depth`, `width`, `lr`, `head_width.<task>`, `loss_weight.<task>`,
`part_weight.<task>.<part>`, `mmoe.n_experts`; for a picture or a text `<column>.pooling`; where tasks answer by
position `head`, the kind of their heads, and `conv_head_width.<task>` where that is "conv". Every field of a spec can
be set by name; those marked `Searched` are searched unless fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import ValidationError

from mtl_bento.encoders._base import ENCODERS, has_positions, kind_of
from mtl_bento.errors import SpecError, UnknownKindError, listing, nearest
from mtl_bento.heads._base import HEADS, HeadSpec
from mtl_bento.network import NetworkSpec, check_fits
from mtl_bento.spec import Searched, Spec
from mtl_bento.training import MemberSpec, TrainingSpec
from mtl_bento.trunks._base import TRUNKS, TrunkSpec
from mtl_bento.weighting._base import WEIGHTINGS, WeightingSpec
from mtl_bento.weighting.static import StaticWeightingSpec
from mtl_bento_search.config import Choice, Domain

CHOICES = ("trunk", "weighting", "head")
"""Parameters that choose among kinds."""
PARTS = "part_weight"
"""The field of `TrainingSpec` that weighs the parts of a task's loss."""
POOLING = "pooling"
"""The field of an input with positions that only trunks which read none use."""
HEAD = "dense"
"""The kind of head of a task that answers by the row."""


@dataclass(frozen=True)
class Slot:
    """One settable field: where it goes, its mark, its default."""

    name: str
    spec: type[Spec]
    field: str
    default: Any
    mark: Searched | None
    task: str | None = None
    block: str | None = None
    part: str | None = None
    common: bool = False
    """Whether every trunk has the field; `spec` is then the first trunk's, by which values are checked."""

    @property
    def key(self) -> str:
        """Its key, where the field is a mapping: the task, or a part of its loss."""
        return f"{self.task}.{self.part}" if self.part is not None else str(self.task)


class Space:
    """What a search may choose from.

    Args:
        blocks: names of the input blocks.
        tasks: names of the targets.
        by_position: those that answer by position, which not every trunk can.
        parts: the parts of a task's loss, by task, of those that have some.
        trunks, weightings, heads: kinds to choose from, the default first; `heads` are for tasks that answer by
            position. They share one choice: networks of unlike heads cannot share a stack, so with a choice for each of
            three tasks a round would fall apart into eight times as many stacks.
        domains: the user's `search.space`: a range, a list of choices or a fixed value by parameter name; a name before
            the dot (`head_width`) speaks for every task.
        batch_size, steps: what the number of rows asks for, where the user fixes nothing.

    Raises SpecError or UnknownKindError where a name or a value is not allowed.
    """

    def __init__(
        self,
        blocks: Sequence[str],
        tasks: Sequence[str],
        *,
        by_position: Sequence[str] = (),
        parts: Mapping[str, Sequence[str]] | None = None,
        trunks: Sequence[str] = ("tabm", "mlp"),
        weightings: Sequence[str] = ("static",),
        heads: Sequence[str] = (HEAD,),
        domains: Mapping[str, Domain] | None = None,
        batch_size: int = 256,
        steps: int = 2048,
    ) -> None:
        self.blocks, self.tasks = list(blocks), list(tasks)
        self.trunks = {kind: _trunk_spec(kind) for kind in trunks}
        for kind in self.trunks:
            check_fits(kind, by_position=by_position, positions=any(map(has_positions, self.blocks)))
        self.weightings = {kind: WEIGHTINGS.spec_class(kind) for kind in weightings}
        self.by_position, self.parts = set(by_position), dict(parts or {})
        self.heads = {kind: HEADS.spec_class(kind) for kind in (heads if by_position else (HEAD,))}
        sizes = {"batch_size": batch_size, "steps": steps}
        self._slots = {slot.name: slot for slot in self._all_slots(sizes)}
        self._domains = self._resolve(domains or {})

    def _all_slots(self, sizes: Mapping[str, int]) -> Iterator[Slot]:
        first = next(iter(self.trunks.values()))
        yield from (_slot(field, first, field, common=True) for field in _fields(TrunkSpec))
        for kind, trunk in self.trunks.items():
            own = [field for field in _fields(trunk) if field not in TrunkSpec.model_fields]
            yield from (_slot(f"{kind}.{field}", trunk, field) for field in own)
        for block in self.blocks:
            spec = ENCODERS.spec_class(kind_of(block))
            _, _, column = block.partition(":")
            yield from (_slot(f"{column or block}.{field}", spec, field, block=block) for field in _fields(spec))
        for task in self.tasks:
            for kind in self.heads if task in self.by_position else (HEAD,):
                head, prefix = HEADS.spec_class(kind), "head" if kind == HEAD else f"{kind}_head"
                yield from (_slot(f"{prefix}_{field}.{task}", head, field, task=task) for field in _fields(head))
        for kind, weighting in self.weightings.items():
            for field in _fields(weighting):
                if not isinstance(weighting.model_fields[field].default, dict):
                    yield _slot(f"{kind}.{field}", weighting, field)
                elif len(self.tasks) > 1:  # one task has nothing to weigh
                    yield from (
                        _slot(f"{field}.{task}", weighting, field, task=task, default=1.0) for task in self.tasks
                    )
        for field in _fields(TrainingSpec):
            if field not in ("weighting", PARTS):
                yield _slot(field, TrainingSpec, field, default=sizes.get(field))
        for task, parts in self.parts.items():
            for part in parts:
                yield _slot(f"{PARTS}.{task}.{part}", TrainingSpec, PARTS, task=task, part=part, default=1.0)

    def _resolve(self, given: Mapping[str, Domain]) -> dict[str, BaseDistribution | Any]:
        """Return a distribution or a fixed value for every slot."""
        exact: dict[str, Domain] = {}
        for name, domain in given.items():
            held = [
                slot for slot in self._slots if slot == name or (slot.startswith(f"{name}.") and self._slots[slot].task)
            ]
            if name in CHOICES:
                raise SpecError(f"space: {name} is set by `search: {{{name}: [...]}}`.")
            if not held:
                allowed = dict.fromkeys(slot.partition(".")[0] if s.task else slot for slot, s in self._slots.items())
                raise SpecError(
                    f"space: there is no parameter {name!r}{nearest(name, allowed) or '.'} "
                    f"Allowed: {listing(allowed, most=30)}."
                )
            exact |= {slot: domain for slot in held if slot == name or slot not in given}
        return {
            name: _domain(slot, exact[name]) if name in exact else _searched(slot) for name, slot in self._slots.items()
        }

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What is searched, by parameter name (whether or not a trial's trunk has it)."""
        return self._choices() | {n: d for n, d in self._domains.items() if isinstance(d, BaseDistribution)}

    def _choices(self) -> dict[str, BaseDistribution]:
        """Return what is chosen among several kinds."""
        kinds = {"trunk": list(self.trunks), "weighting": list(self.weightings), "head": list(self.heads)}
        return {name: CategoricalDistribution(held) for name, held in kinds.items() if len(held) > 1}

    def _kinds(self, params: Mapping[str, Any]) -> set[type[Spec]]:
        """Return the specs of the kinds that parameters choose: the first where there is nothing to choose."""
        return {_chosen("trunk", self.trunks, params), _chosen("weighting", self.weightings, params)}

    def _head(self, task: str, params: Mapping[str, Any]) -> type[Spec]:
        """Return the spec of a task's head."""
        return _chosen("head", self.heads, params) if task in self.by_position else HEADS.spec_class(HEAD)

    def defaults(self) -> dict[str, Any]:
        """Return trial 0: the defaults, moved into the user's space where it is narrower."""
        chosen: dict[str, Any] = {name: choice.choices[0] for name, choice in self._choices().items()}  # type: ignore[attr-defined]
        for name, distribution in self.distributions.items():
            if name not in CHOICES and self._applies(name, chosen):
                chosen[name] = _nearest_in(distribution, self._slots[name].default)
        return chosen

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Return a trial's parameters."""
        params = {name: _suggest(trial, name, choice) for name, choice in self._choices().items()}
        for name, distribution in self.distributions.items():
            if name not in CHOICES and self._applies(name, params):
                params[name] = _suggest(trial, name, distribution)
        return params

    def member(self, params: Mapping[str, Any]) -> MemberSpec:
        """Return the member that a trial's parameters describe.

        Sampled loss weights are divided by their geometric mean, so that they say how tasks compare and leave the size
        of a step to the learning rate, and those of a task's parts alike; fixed ones are used as they are.
        """
        fixed = {n: d for n, d in self._domains.items() if not isinstance(d, BaseDistribution)}
        values = {**fixed, **params, **_balanced(params, [f"loss_weight.{task}" for task in self.tasks])}
        for task, parts in self.parts.items():
            values |= _balanced(params, [f"{PARTS}.{task}.{part}" for part in parts])
        return MemberSpec(
            network=NetworkSpec(
                encoders={b: self._built(ENCODERS.spec_class(kind_of(b)), values, block=b) for b in self.blocks},
                trunk=self._built(_chosen("trunk", self.trunks, params), values),
                heads={t: self._built(self._head(t, params), values, task=t) for t in self.tasks},
            ),
            training=TrainingSpec(
                **{f: values[f] for f in _fields(TrainingSpec) if f in self._slots},
                weighting=self._weighting(values, params),
                part_weight={s.key: values[s.name] for s in self._slots.values() if s.part and s.name in values},
            ),
        )

    def _built(
        self, spec: type[Spec], values: Mapping[str, Any], *, task: str | None = None, block: str | None = None
    ) -> Any:
        held = [s for s in self._slots.values() if s.task == task and s.block == block]
        slots = [s for s in held if s.spec is spec or (s.common and issubclass(spec, TrunkSpec))]
        # What does not apply to the trial (pooling, where the trunk reads positions) has no value.
        return spec(**{slot.field: values[slot.name] for slot in slots if slot.name in values})

    def _weighting(self, values: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
        spec = _chosen("weighting", self.weightings, params)
        fields: dict[str, Any] = {}
        for slot in self._slots.values():
            if slot.spec is spec and slot.task is None:
                fields[slot.field] = values[slot.name]
            elif slot.spec is spec:
                fields.setdefault(slot.field, {})[slot.task] = values[slot.name]
        return spec(**fields)

    def _applies(self, name: str, params: Mapping[str, Any]) -> bool:
        """Return whether a trial of those choices has the parameter."""
        slot = self._slots[name]
        if slot.block is not None and slot.field == POOLING:
            return not TRUNKS.class_of(_chosen("trunk", self.trunks, params)).positional
        if issubclass(slot.spec, HeadSpec):
            return slot.spec is self._head(str(slot.task), params)
        several = issubclass(slot.spec, TrunkSpec | WeightingSpec)
        return slot.common or not several or slot.spec in self._kinds(params)


def within(member: MemberSpec, group: Sequence[str], tasks: Sequence[str]) -> MemberSpec:
    """Return a configuration's member for some of the tasks, one or several: the others' losses have no weight."""
    held = member.training.weighting
    given = held.loss_weight if isinstance(held, StaticWeightingSpec) and len(group) > 1 else {}
    weighting = StaticWeightingSpec(loss_weight={t: given.get(t, 1.0) if t in group else 0.0 for t in tasks})
    return member.model_copy(update={"training": member.training.model_copy(update={"weighting": weighting})})


def _trunk_spec(kind: str) -> type[TrunkSpec]:
    spec = TRUNKS.spec_class(kind)
    if not issubclass(spec, TrunkSpec):
        raise UnknownKindError(f"Trunk {kind!r} is described by {spec.__name__}, which is no TrunkSpec.")
    for name, field in TrunkSpec.model_fields.items():
        if name != "kind" and spec.model_fields[name].metadata != field.metadata:
            raise SpecError(f"Trunk {kind!r} narrows {name}, which all trunks share; call it otherwise.")
    return spec


def _chosen(name: str, kinds: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    """Return what parameters choose among kinds: the first where there is nothing to choose."""
    return kinds[params.get(name, next(iter(kinds)))]


def _fields(spec: type[Spec]) -> list[str]:
    return [name for name in spec.model_fields if name != "kind"]


def _slot(
    name: str,
    spec: type[Spec],
    field: str,
    *,
    task: str | None = None,
    block: str | None = None,
    part: str | None = None,
    default: Any = None,
    common: bool = False,
) -> Slot:
    own = spec.model_fields[field].default
    held = own if default is None else default
    return Slot(name, spec, field, held, spec.searched().get(field), task, block, part, common)


def _searched(slot: Slot) -> BaseDistribution | Any:
    """Return the distribution of a slot's mark, or its default where it has none."""
    mark = slot.mark
    if mark is None:
        return slot.default
    if mark.choices is not None:
        return CategoricalDistribution(list(mark.choices))
    assert mark.low is not None
    assert mark.high is not None
    return _range(slot, mark.low, mark.high, mark.log, step=mark.step or 1)


def _range(slot: Slot, low: float, high: float, log: bool, *, step: int = 1) -> BaseDistribution:
    if isinstance(slot.default, int) and not isinstance(slot.default, bool):
        return IntDistribution(int(low), int(high), log=log, step=step)
    return FloatDistribution(float(low), float(high), log=log)


def _domain(slot: Slot, domain: Domain) -> BaseDistribution | Any:
    """Return the user's domain of a slot; raises SpecError where the field does not allow one of its values."""
    where = f"space: {slot.name}"
    if isinstance(domain, list):
        if not domain:
            raise SpecError(f"{where}: an empty list leaves nothing to choose; give at least one value.")
        values = [_valid(slot, value, where) for value in domain]
        return CategoricalDistribution(values) if len(values) > 1 else values[0]
    if isinstance(domain, Choice):
        low, high = _valid(slot, domain.low, where), _valid(slot, domain.high, where)
        if isinstance(low, str | bool):
            raise SpecError(f"{where} takes choices, not a range; write a list.")
        if not low < high:
            raise SpecError(f"{where}: low {domain.low:g} must be below high {domain.high:g}.")
        log = domain.log if domain.log is not None else bool(slot.mark and slot.mark.log)
        if log and low <= 0:
            raise SpecError(f"{where}: a logarithmic range must start above 0; set low above 0, or `log: false`.")
        return _range(slot, low, high, log)
    return _valid(slot, domain, where)


def _valid(slot: Slot, value: Any, where: str) -> Any:
    """Return a value as the field holds it."""
    given = {slot.key: value} if isinstance(slot.spec.model_fields[slot.field].default, dict) else value
    try:
        held = getattr(slot.spec.model_validate({slot.field: given}), slot.field)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SpecError(f"{where}: {message}.") from None
    return held[slot.key] if isinstance(held, dict) else held


def _nearest_in(distribution: BaseDistribution, default: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if default in choices:
            return default
        numbers = [c for c in choices if isinstance(c, int | float) and not isinstance(c, bool)]
        return min(numbers, key=lambda c: abs(c - default)) if numbers and not isinstance(default, str) else choices[0]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return min(max(default, distribution.low), distribution.high)


def _suggest(trial: optuna.trial.BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def _balanced(params: Mapping[str, Any], weights: Sequence[str]) -> dict[str, float]:
    """Return sampled weights divided by their geometric mean."""
    names = [name for name in weights if name in params]
    if not names:
        return {}
    mean = math.exp(sum(math.log(params[name]) for name in names) / len(names))
    return {name: params[name] / mean for name in names}
