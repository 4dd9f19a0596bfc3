"""One round: members sorted into stacks of like size, advanced from rung to rung, thinned between them.

Budgets are counted in steps; rungs lie at a quarter, a half and the whole. Everything here is a function of the
members, the seed and the run's `Packing`, so that a repeated run stacks alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

import torch
from pydantic import Field

from mtl_bento.errors import RunError
from mtl_bento.spec import Spec
from mtl_bento.training import Member, Stack, lined_up, restack, stable_seed
from mtl_bento.trunks._base import TRUNKS
from mtl_bento_search.executors._base import Executor

Count = Annotated[int, Field(ge=1)]

SUITED = {"cpu": (2**18, 2**20, 2, 64)}
"""Room, weights, least and most of a `Packing` by type of device: on a CPU found by measurement (LOG.md)."""
ACCELERATOR = (2**24, 2**27, 4, 256)
"""Those of any other device. The activations of a layer then take 64 MiB, all layers, gradients and masks of a stack
about 2 GB; a member's step gets no cheaper on an H100 beyond 256 members, whose rows the host then draws too slowly."""


class Packing(Spec):
    """How large stacks are: made once a run and recorded, so that the run stacks alike wherever it goes on."""

    room: Count
    """Activations of one layer that a stack holds: more leave a core's cache on their way through the layers."""
    weights: Count
    """Weights that a stack holds: more leave it between two steps."""
    least: Count
    most: Count
    """Bounds of the members in a stack; `least` comes before `room` and `weights`."""
    n_features: Count
    """Inputs of the first layer."""
    n_workers: Count
    """Stacks that trained at the same time where the run was made."""
    length: Count = 1
    """Positions of the input that has most: a layer has so many times the activations where a trunk reads them."""
    ran_out: tuple[Count, ...] = ()
    """Numbers of members with which stacks ran out of memory; later stacks as wide have at most half as many."""

    @classmethod
    def suited(cls, device: torch.device, *, n_features: int, n_workers: int, length: int = 1) -> Self:
        """Return the packing that suits a type of device: fixed numbers, never timed, never asked of the device."""
        room, weights, least, most = SUITED.get(device.type, ACCELERATOR)
        bounds = {"room": room, "weights": weights, "least": least, "most": most}
        return cls(**bounds, n_features=n_features, n_workers=n_workers, length=length)

    def stack_size(self, members: Sequence[Member]) -> int:
        """Return how many members share a stack that has room for the largest of these."""
        trunks = [member.spec.network.trunk for member in members]
        width, depth = max(trunk.width for trunk in trunks), max(trunk.shared_depth for trunk in trunks)
        weights = width * (self.n_features + width * (depth - 1))
        room = min(self.room // max(map(self.activations, members)), self.weights // weights)
        return min(self.most, max(self.least, room))

    def halved(self, stack: Stack) -> Self:
        """Return the packing once a stack ran out of memory: one as wide would have half as many members.

        Raises RunError where it had one only.
        """
        n = len(stack.members)
        if n == 1:
            (spec,) = (member.spec for member in stack.members)
            raise RunError(
                f"One network alone (width {spec.network.trunk.width}, batch_size {spec.training.batch_size}) runs out "
                "of memory; give lower ones in `search: {space: {width: ..., batch_size: ...}}` and another --out, "
                "or go on where there is more memory, for instance with --device cpu."
            )
        room = n // 2 * max(map(self.activations, stack.members))
        ran_out = tuple(dict.fromkeys([*self.ran_out, n]))
        return self.model_copy(
            update={"room": min(self.room, room), "least": min(self.least, n // 2), "ran_out": ran_out}
        )

    def activations(self, member: Member) -> int:
        """Return how many numbers a layer of a member's trunk gives for a batch."""
        trunk = member.spec.network.trunk
        length = self.length if TRUNKS.class_of(type(trunk)).positional else 1
        return length * trunk.copies * member.spec.training.batch_size * trunk.width

    @property
    def notes(self) -> list[str]:
        """What a reader of the report should know of it."""
        return [f"ran out of memory with {n} stacked members; went on with {n // 2}" for n in self.ran_out]


def rungs(steps: int) -> list[int]:
    """Return the steps at which a round is thinned, the last being the whole budget."""
    return sorted({max(1, steps // 4), max(1, steps // 2), steps})


def pack(members: Sequence[Member], packing: Packing, *, seed: int) -> list[tuple[list[int], Stack]]:
    """Return stacks of like members, each with the places of its members in `members`.

    Members that must not share a stack are kept apart; the others are sorted by width and depth and cut into stacks of
    the size that their width allows, as many for each worker, as far as there are members for it.
    """
    by_key: dict[Any, list[int]] = {}
    for place, member in enumerate(members):
        by_key.setdefault(member.spec.stack_key(), []).append(place)
    packed: list[tuple[list[int], Stack]] = []
    for places in by_key.values():
        ordered = sorted(places, key=lambda p: _size(members[p]))
        cuts = _cut(ordered, members, packing, math.ceil(len(ordered) / packing.n_workers))
        if uneven := len(cuts) % packing.n_workers:
            even = len(cuts) + packing.n_workers - uneven
            cuts = _cut(ordered, members, packing, math.ceil(len(ordered) / even))
        for cut in cuts:
            line = lined_up([members[p] for p in cut])
            at = {id(members[p]): p for p in cut}
            stack = Stack(line, stable_seed(seed, "stack", len(packed)))
            packed.append(([at[id(member)] for member in line], stack))
    return packed


def _cut(ordered: Sequence[int], members: Sequence[Member], packing: Packing, most: int) -> list[list[int]]:
    """Return places in order of size cut into stacks of at most `most`, the largest members first."""
    cuts, left = [], list(ordered)
    while left:
        n = 1
        while n < min(most, len(left), packing.stack_size([members[p] for p in left[-n - 1 :]])):
            n += 1
        cuts.append(left[-n:])
        del left[-n:]
    return cuts


def _size(member: Member) -> tuple[int, int]:
    trunk = member.spec.network.trunk
    return trunk.width, trunk.shared_depth


def _part(stack: Stack, rows: Sequence[int], *, seed: int) -> Stack:
    """Return some members of a stack, which may not have begun, as one of their own: their states and looks as well."""
    states = tuple(stack.states[k] for k in rows) if stack.states else ()
    curve = tuple((step, [losses[k] for k in rows]) for step, losses in stack.curve)
    return replace(stack, members=tuple(stack.members[k] for k in rows), seed=seed, states=states, curve=curve)


class Round:
    """Members on their way through the rungs.

    `advance` trains those still in the round up to a step; `keep` thins them and stacks the others anew.
    """

    def __init__(
        self,
        members: Sequence[Member],
        executor: Executor,
        packing: Packing,
        *,
        seed: int,
        packed: Sequence[tuple[list[int], Stack]] | None = None,
        halved: Callable[[Packing], None] | None = None,
    ) -> None:
        """`packed` are the stacks of a round that was on its way; `members` are then not looked at.

        `halved` is told the packing that holds from here on, where a stack ran out of memory.
        """
        self.executor, self.packing, self.seed, self._halved = executor, packing, seed, halved
        self.packed = list(packed) if packed is not None else pack(members, packing, seed=seed)
        """The stacks, each with the places of its members in the round."""

    @property
    def step(self) -> int:
        """The step that every member has reached."""
        return min(stack.step for _, stack in self.packed)

    def advance(self, goal: int, *, reference: Sequence[float] | None, deadline: float) -> bool:
        """Train up to step `goal`; return whether every stack got there before the deadline.

        Stacks that do not fit into the memory go on as smaller ones; raises RunError where one member does not.
        """
        done: list[tuple[list[int], Stack]] = []
        waiting = self.packed
        while waiting:
            stacks = [stack for _, stack in waiting]
            given = self.executor.advance(stacks, goal, reference=reference, deadline=deadline)
            pairs = list(zip(waiting, given, strict=True))
            done += [(places, stack) for (places, _), stack in pairs if stack is not None]
            waiting = self._cut([held for held, stack in pairs if stack is None])
        self.packed = done
        return not any(stack.stopped for _, stack in done)

    def _cut(self, packed: Sequence[tuple[list[int], Stack]]) -> list[tuple[list[int], Stack]]:
        """Return stacks that ran out of memory as smaller ones; the smaller packing holds from here on."""
        for _, stack in packed:
            self.packing = self.packing.halved(stack)
            if self._halved is not None:
                self._halved(self.packing)
        return [
            ([places[k] for k in rows], _part(stack, rows, seed=fresh.seed))
            for places, stack in packed
            for rows, fresh in pack(stack.members, self.packing, seed=stack.seed)
        ]

    def members(self) -> dict[int, tuple[Stack, int]]:
        """Return, by place in the round, the stack and the row that holds each member still in it."""
        return {place: (stack, k) for places, stack in self.packed for k, place in enumerate(places)}

    def looks(self, places: Sequence[int]) -> dict[int, list[list[float]]]:
        """Return the losses [T] of each of some members by step, where all of them looked since they were stacked."""
        held = self.members()
        found: dict[int, list[list[float]]] = {}
        for place in places:
            stack, k = held[place]
            for step, losses in stack.curve:
                found.setdefault(step, []).append(losses[k])
        return {step: losses for step, losses in sorted(found.items()) if len(losses) == len(places)}

    def keep(self, wanted: Callable[[int], bool], *, rung: int) -> None:
        """Drop the members whose place is not wanted, and stack the others anew by size."""
        held = {place: at for place, at in self.members().items() if wanted(place)}
        places = sorted(held)
        members = [held[p][0].members[held[p][1]] for p in places]
        packed = []
        for cut, fresh in pack(members, self.packing, seed=stable_seed(self.seed, rung)):
            chosen = [places[i] for i in cut]
            stacks = [held[p][0] for p in chosen]
            packed.append((chosen, restack(stacks, [[held[p][1]] for p in chosen], seed=fresh.seed)))
        self.packed = packed
