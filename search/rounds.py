"""One round: members sorted into stacks of like size, advanced from rung to rung, thinned between them.

Budgets are counted in steps; rungs lie at a quarter, a half and the whole. Everything here is a function of the
members, the seed and the run's `Packing`, so that a repeated run stacks alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

import torch
from pydantic import Field

from mtl_bento.spec import Spec
from mtl_bento.training import Member, Stack, lined_up, restack, stable_seed
from mtl_bento_search.executors._base import Executor

Count = Annotated[int, Field(ge=1)]

SUITED = {"cpu": (2**18, 4, 64)}
"""Room, least and most of a `Packing` by type of device: on a CPU found by measurement, larger stacks leave the cache.
"""
ACCELERATOR = (2**24, 4, 256)
"""Those of any other device: an estimate that no GPU has confirmed. The activations of a layer then take 64 MiB, all
layers, gradients and masks of a stack about 2 GB; networks of 256 units at batches of 256 come in one stack a round."""


class Packing(Spec):
    """How large stacks are: made once a run and recorded, so that the run stacks alike wherever it goes on."""

    room: Count
    """Activations of one layer that a stack holds."""
    least: Count
    most: Count
    """Bounds of the members in a stack; `least` comes before `room`."""
    n_workers: Count
    """Stacks that trained at the same time where the run was made."""

    @classmethod
    def suited(cls, device: torch.device, *, n_workers: int) -> Self:
        """Return the packing that suits a type of device: fixed numbers, never timed, never asked of the device."""
        room, least, most = SUITED.get(device.type, ACCELERATOR)
        return cls(room=room, least=least, most=most, n_workers=n_workers)

    def stack_size(self, member: Member) -> int:
        """Return how many members of this size share a stack."""
        return min(self.most, max(self.least, self.room // activations(member)))


def activations(member: Member) -> int:
    """Return how many numbers a layer of a member's trunk gives for a batch."""
    trunk = member.spec.network.trunk
    return int(getattr(trunk, "inner", 1) * member.spec.training.batch_size * trunk.width)


def rungs(steps: int) -> list[int]:
    """Return the steps at which a round is thinned, the last being the whole budget."""
    return sorted({max(1, steps // 4), max(1, steps // 2), steps})


def pack(members: Sequence[Member], packing: Packing, *, seed: int) -> list[tuple[list[int], Stack]]:
    """Return stacks of like members, each with the places of its members in `members`.

    Members that must not share a stack are kept apart; the others are sorted by width and depth and cut into stacks of
    the size that their width allows, at least one a worker.
    """
    by_key: dict[Any, list[int]] = {}
    for place, member in enumerate(members):
        by_key.setdefault(member.spec.stack_key(), []).append(place)
    packed: list[tuple[list[int], Stack]] = []
    for places in by_key.values():
        ordered = sorted(places, key=lambda p: _size(members[p]))
        most = math.ceil(len(ordered) / packing.n_workers)
        while ordered:
            n = min(packing.stack_size(members[ordered[-1]]), most)
            cut, ordered = ordered[-n:], ordered[:-n]
            line = lined_up([members[p] for p in cut])
            at = {id(members[p]): p for p in cut}
            stack = Stack(line, stable_seed(seed, "stack", len(packed)))
            packed.append(([at[id(member)] for member in line], stack))
    return packed


def _size(member: Member) -> tuple[int, int]:
    trunk = member.spec.network.trunk
    return trunk.width, trunk.shared_depth


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
    ) -> None:
        """`packed` are the stacks of a round that was on its way; `members` are then not looked at."""
        self.executor, self.packing, self.seed = executor, packing, seed
        self.packed = list(packed) if packed is not None else pack(members, packing, seed=seed)
        """The stacks, each with the places of its members in the round."""

    @property
    def step(self) -> int:
        """The step that every member has reached."""
        return min(stack.step for _, stack in self.packed)

    def advance(self, goal: int, *, reference: Sequence[float] | None, deadline: float) -> bool:
        """Train up to step `goal`; return whether every stack got there before the deadline."""
        stacks = [stack for _, stack in self.packed]
        done = self.executor.advance(stacks, goal, reference=reference, deadline=deadline)
        self.packed = [(places, stack) for (places, _), stack in zip(self.packed, done, strict=True)]
        return not any(stack.stopped for stack in done)

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
