"""Cohorts: many members in training as one tensor program.

A *member* is one network in training: its hyperparameters, the loss weight of each task, the split that it learns
from, a seed. A *cohort* is K members whose tensors stack. `Cohort.advance` is a pure function of the cohort's state and
the dataset: budgets are counted in steps, never by the clock, and every random draw comes from a generator seeded by
what identifies the member (or, for dropout bits, the stack).

Letters: K members, T tasks, B rows of a batch, V rows of validation, S steps, P parameters of a member.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Generator, Tensor

from mtl_bento.captured import Captured
from mtl_bento.dataset import Dataset
from mtl_bento.network import Flat, Network, NetworkSpec, Trained
from mtl_bento.spec import MustMatch, Searched, Spec
from mtl_bento.tasks._base import Task
from mtl_bento.weighting._base import WEIGHTINGS, WeightingSpec
from mtl_bento.weighting.static import StaticWeightingSpec

AnyWeighting = Annotated[WeightingSpec, BeforeValidator(WEIGHTINGS.parse), SerializeAsAny()]

EVALUATIONS = 16
"""How often a full budget looks at the validation rows; each member keeps the weights of its best look."""
LOOKED_AT = 8_192
"""Validation rows that a look reads at most, evenly spaced; what is served is decided on all of them."""
VALID_CHUNK = 1024
"""Validation rows per forward pass, so that memory stays flat; fewer where they have positions."""
PLANNED_STEPS = 64
"""Steps whose row indices are drawn ahead and sent to the device at once."""


Stop = Callable[[], bool]
"""Whether to end training now: a deadline has passed, or somebody asked."""


def never() -> bool:
    """Return False: train to the end."""
    return False


class TrainingSpec(Spec):
    """How a member learns: AdamW (Loshchilov and Hutter, ICLR 2019) on clipped gradients."""

    lr: Annotated[float, Field(gt=0, le=1), Searched(5e-4, 1e-2, log=True)] = 2e-3
    """Highest learning rate; it rises over the first twentieth of the steps and falls along a cosine."""
    weight_decay: Annotated[float, Field(ge=0, le=10), Searched(1e-4, 0.3, log=True)] = 1e-2
    """Decoupled weight decay of weight matrices; biases, embeddings and scalings have none."""
    batch_size: Annotated[int, Field(ge=1), MustMatch] = 256
    """Rows a step."""
    steps: Annotated[int, Field(ge=1), MustMatch] = 2048
    """The whole budget."""
    weighting: Annotated[AnyWeighting, MustMatch] = StaticWeightingSpec()
    part_weight: Annotated[dict[str, Annotated[float, Field(gt=0)]], Searched(0.2, 5.0, log=True)] = {}
    """Weight of each part of a task's loss (`Task.parts`), by "<task>.<part>"; 1 where none is given."""

    label_weight: Annotated[float, Field(ge=0, le=1), MustMatch] = 1.0
    """Weight of the labels' loss at the first step, beside that against a teacher's answers (`Dataset.taught`); it
    rises linearly to 1 at the last (teacher annealing, Clark et al., ACL 2019). 1 is without a teacher."""

    def stack_key(self) -> tuple[Any, ...]:
        """Return what must agree in a stack: batch size, steps, labels' weight, and the weighting's own key."""
        return (self.batch_size, self.steps, self.label_weight, self.weighting.stack_key())


class MemberSpec(Spec):
    """One member, apart from its seed and split."""

    network: NetworkSpec
    training: TrainingSpec

    def stack_key(self) -> tuple[Any, ...]:
        """Return what two members must have in common to share a stack."""
        return (self.network.stack_key(), self.training.stack_key())


@dataclass(frozen=True)
class Member:
    """One network in training."""

    spec: MemberSpec
    seed: int
    split: int = 0
    """Which of the dataset's splits it learns from."""
    tasks: tuple[bool, ...] | None = None
    """The tasks that it is judged on; None is those whose loss it descends, all of them where that cannot be told."""
    until: int | None = None
    """The step whose weights it keeps, whatever validation rows say; None is that of its best look at them."""

    def plain(self) -> dict[str, Any]:
        """Return the member as JSON holds it."""
        return {"spec": self.spec.model_dump(mode="json")} | {
            name: getattr(self, name) for name in ("seed", "split", "tasks", "until")
        }

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        """Return the member of such JSON."""
        tasks = data["tasks"] and tuple(data["tasks"])
        return cls(MemberSpec.model_validate(data["spec"]), data["seed"], data["split"], tasks, data["until"])


@dataclass(frozen=True)
class Learned(Trained):
    """A trained network, and what trains it again."""

    member: Member
    step: int
    """At which it was as it is."""


@dataclass
class Best:
    """The best look at the validation rows so far, for each member."""

    score: Tensor
    losses: Tensor
    data: Tensor
    step: Tensor


@dataclass(frozen=True)
class MemberState:
    """One member in training: parameters, AdamW's moments and the best look so far, each at its true shapes."""

    tensors: dict[str, dict[str, Tensor]]
    """The matrices "data", "first", "second" and "best" -> parameter name -> tensor."""
    score: float
    losses: list[float]
    step: int
    """Of the best look; 0 before the first."""


@dataclass(frozen=True)
class Stack:
    """A cohort at rest: plain data, to be sent elsewhere, cut, merged or written down."""

    members: tuple[Member, ...]
    seed: int
    """Of the dropout bits of the whole stack."""
    step: int = 0
    states: tuple[MemberState, ...] = ()
    """State of each member; empty before the first step."""
    curve: tuple[tuple[int, list[list[float]]], ...] = ()
    """Every look at the validation rows since the stack was made: step, losses [K][T]."""
    stopped: bool = False
    """Whether the last `advance` was stopped on its way."""

    @property
    def losses(self) -> list[list[float]]:
        """Validation losses [K][T] at each member's best look."""
        return [state.losses for state in self.states]

    def trained(self, k: int) -> Learned:
        """Return member k as it was at its best look."""
        member, state = self.members[k], self.states[k]
        return Learned(member.spec.network, state.tensors["best"], member, state.step)


Planned = tuple[Tensor, Tensor, Tensor, int | None]
"""A step: rows [K, B], the share of the highest learning rate and that of the labels, each 0-dimensional, and how many
positions the longest row has, None where all are read whole."""
Runner = Callable[[Tensor, Tensor, Tensor, int | None], None]
"""What takes a planned step. Nothing keeps it: a graph holds memory of the device."""


class Cohort:
    """K members in training: a stack at work.

    Args:
        stack: members of one `stack_key`; they must lie deepest first.
        dataset: rows, tasks and splits.
        reference: loss of each task [T], in units of the trivial predictor's, by which scores are divided; or ones.
    """

    def __init__(self, stack: Stack, dataset: Dataset, *, reference: Sequence[float] | None = None) -> None:
        self.members = stack.members
        if len({m.spec.stack_key() for m in self.members}) != 1:
            raise ValueError("members of one cohort must agree on every field that is marked to match")
        specs = [m.spec for m in self.members]
        self.training = specs[0].training
        self.seed, self.step = stack.seed, stack.step
        self.network = Network(
            [s.network for s in specs], dataset.inputs, dataset.tasks, [m.seed for m in self.members]
        )
        names = [task.name for task in dataset.tasks]
        weighting_class = WEIGHTINGS.class_of(type(self.training.weighting))
        self.weighting: Any = weighting_class([s.training.weighting for s in specs], names)
        # Part of the network while it trains: what a weighting learns is trained, kept and restacked like the rest.
        self.network.add_module("weighting", self.weighting)
        self.network.to(device=dataset.device, dtype=dataset.dtype)
        self.unfolded = dataset.unfolded(self.network)
        self.learned = _learned_rows(self.members, dataset)
        self._pool, self._starts = _pooled(self.learned)
        self._epochs = [Epochs(len(rows), m.seed) for m, rows in zip(self.members, self.learned, strict=True)]
        ends = self._line_ends(dataset)
        self.ends = None if ends is None else [ends[rows.cpu()] for rows in self.learned]
        """How many positions each training row of each member has, on the host; None where all have as many."""
        self._looked = self._validation_rows(dataset)
        self.flat = Flat.of(self.network)
        self.first, self.second = torch.zeros_like(self.flat.data), torch.zeros_like(self.flat.data)
        self.counter = torch.full((), float(self.step), device=dataset.device)
        self._delta = torch.zeros_like(self.flat.data)
        self._columns(dataset)
        self.part_weights = [_part_weights(specs, task, dataset) for task in dataset.tasks]
        self.judged = torch.tensor([judged_tasks(m, names) for m in self.members], device=dataset.device)
        self.unit = torch.ones_like(dataset.trivial) if reference is None else dataset.trivial.new_tensor(reference)
        n = len(self.members)
        self.best = Best(
            torch.full((n,), math.inf, device=dataset.device, dtype=dataset.dtype),
            torch.full((n, len(names)), math.inf, device=dataset.device, dtype=dataset.dtype),
            self.flat.data.clone(),
            torch.zeros(n, dtype=torch.long, device=dataset.device),
        )
        self._until = [m.until for m in self.members if m.until is not None]
        if self._until and len(self._until) < n:
            raise ValueError("members of one cohort keep given steps, or all of them their best looks")
        if self.training.label_weight < 1 and dataset.taught is None:
            raise ValueError("students learn from a teacher's answers; give the dataset some")
        cared = [task.spec.weight for task in dataset.tasks]
        self.cared = torch.tensor(cared, device=dataset.device, dtype=dataset.dtype) * self.judged  # [K, T]
        self.curve = list(stack.curve)
        self._looks: list[tuple[int, Tensor]] = []
        """Looks [K, T] of this sitting, left on the device: reading them would make the host wait for it."""
        for k, state in enumerate(stack.states):
            self._restore(k, state)

    def _matrices(self) -> dict[str, Tensor]:
        return {"data": self.flat.data, "first": self.first, "second": self.second, "best": self.best.data}

    @torch.no_grad()
    def _restore(self, k: int, state: MemberState) -> None:
        for name, matrix in self._matrices().items():
            self.flat.write(matrix, k, state.tensors[name])
        self.best.score[k] = state.score
        self.best.losses[k] = torch.tensor(state.losses, dtype=self.best.losses.dtype)
        self.best.step[k] = state.step

    def stack(self, *, stopped: bool = False) -> Stack:
        """Return the cohort at rest."""
        scores, losses, at = self.best.score.tolist(), self.best.losses.tolist(), self.best.step.tolist()
        self.curve += [(step, found.tolist()) for step, found in self._looks]
        self._looks.clear()
        states = tuple(
            MemberState(
                {n: self.flat.read(matrix, k) for n, matrix in self._matrices().items()}, scores[k], losses[k], at[k]
            )
            for k in range(len(self.members))
        )
        return Stack(self.members, self.seed, self.step, states, tuple(self.curve), stopped)

    def _columns(self, dataset: Dataset) -> None:
        """Lay out each member's rates as columns [K, 1]."""

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=dataset.device, dtype=dataset.dtype).view(-1, 1)

        self.lr = column([m.spec.training.lr for m in self.members])
        self.weight_decay = column([m.spec.training.weight_decay for m in self.members])

    def advance(self, dataset: Dataset, goal: int, *, stop: Stop = never) -> bool:
        """Train up to step `goal`, looking at the validation rows on the way; return whether `stop` came first.

        `stop` is asked every 64 steps: it may end a call, never change what a finished one computed.
        """
        goal = min(goal, self.training.steps, max(self._until, default=goal))
        every = max(1, self.training.steps // EVALUATIONS)
        generator = Generator(dataset.device).manual_seed(stable_seed(self.seed, "dropout", self.step))
        self.network.set_generator(generator)
        run = self._runner(dataset, generator)
        while self.step < goal:
            ahead = [until for until in self._until if until > self.step]
            look = min(goal, (self.step // every + 1) * every, *ahead)
            if not self._train(dataset, run, look, stop):
                return True
            self._look(dataset)
        return False

    def _train(self, dataset: Dataset, run: Runner, goal: int, stop: Stop) -> bool:
        self.network.train()
        while self.step < goal:
            if stop():
                return False
            for planned in self._plan(dataset, min(goal - self.step, PLANNED_STEPS)):
                run(*planned)
                self.step += 1
        return True

    def _runner(self, dataset: Dataset, generator: Generator) -> Runner:
        """Return what runs a planned step: on a GPU a graph of its kernels, all steps having the same shapes there."""
        if dataset.device.type != "cuda":
            return partial(self._step, dataset)
        captured = Captured(partial(self._step, dataset, length=None), generator, self.network.set_generator)
        return lambda index, pace, share, length: captured(index, pace, share)

    def _line_ends(self, dataset: Dataset) -> Tensor | None:
        """Return how many positions each row of the dataset has [N], on the host; None where all are read whole.

        So they are on a GPU, where a graph needs all steps to have the same shapes.
        """
        main = self.network.main
        return None if main is None or dataset.device.type == "cuda" else dataset.ends[main]

    def _plan(self, dataset: Dataset, steps: int) -> list[Planned]:
        """Return the next steps: a member's epochs are permutations of its rows, a function of seed and step alone."""
        drawn = [epochs.rows(self.training.batch_size, self.step, steps) for epochs in self._epochs]
        places = torch.from_numpy(np.stack(drawn, 1))
        longest = [None] * steps if self.ends is None else _longest(self.ends, places)
        ahead = range(self.step, self.step + steps)
        paces = dataset.trivial.new_tensor([schedule(step, self.training.steps) for step in ahead], device="cpu")
        shares = dataset.trivial.new_tensor([label_share(step, self.training) for step in ahead], device="cpu")
        places, paces, shares = (_sent(held, dataset.device) for held in (places, paces, shares))
        index = self._pool[places + self._starts]  # [S, K, B]
        return list(zip(index, paces, shares, longest, strict=True))

    def _outputs(self, dataset: Dataset, index: Tensor, length: int | None) -> list[Tensor]:
        """Return outputs [K, M, B, O] of each task for rows [K or 1, B], cut to `length` positions."""
        margins = dataset.margins_of(index, self.network)
        cuts = [length if block == self.network.main else None for block in range(len(dataset.blocks))]
        if self.unfolded is None:
            taken = [dataset.take(block, index, cut) for block, cut in zip(dataset.blocks, cuts, strict=True)]
            return self.network.outputs(self.network.unfold(taken), margins)
        unfolded = [
            tuple(dataset.take(part, index, cut) for part in parts)
            for parts, cut in zip(self.unfolded, cuts, strict=True)
        ]
        return self.network.outputs(unfolded, margins)

    def _labels(self, dataset: Dataset, index: Tensor, length: int | None) -> list[Tensor]:
        """Return labels [K, B, ...] of each task, those by position cut alike."""
        each = zip(dataset.tasks, dataset.targets, strict=True)
        return [dataset.take(held, index, length if task.positional else None) for task, held in each]

    def _step(self, dataset: Dataset, index: Tensor, pace: Tensor, share: Tensor, length: int | None) -> None:
        outputs = self._outputs(dataset, index, length)
        losses = []
        labels = self._labels(dataset, index, length)
        each = zip(dataset.tasks, outputs, labels, dataset.label_weights, self.part_weights, strict=True)
        for task, out, own, weights, parts in each:
            weight = None if weights is None else dataset.take(weights, index)
            losses.append(task.mean_loss(out, own, weight, parts))
        if self.training.label_weight < 1:
            taught = self._taught(dataset, index, length, outputs, labels)
            losses = [share * label + (1 - share) * soft for label, soft in zip(losses, taught, strict=True)]
        objective = self.weighting(torch.stack(losses, -1) / dataset.trivial).sum()
        gradients = torch.autograd.grad(objective, self.flat.parameters)
        torch._foreach_copy_(self.flat.gradients, gradients)
        self._descend(pace)

    def _taught(
        self, dataset: Dataset, index: Tensor, length: int | None, outputs: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return each task's loss [K] against the teacher's answers on rows [K or 1, B], labelled or not."""
        assert dataset.taught is not None
        weights = None if dataset.weights is None else dataset.take(dataset.weights, index)
        taught = []
        for task, said, label in zip(dataset.tasks, dataset.taught, dataset.targets, strict=True):
            # The numbers of a position lie together.
            cut = None if length is None or not task.positional else said.shape[1] // label.shape[1] * length
            taught.append(dataset.take(said, index, cut))
        each = zip(dataset.tasks, outputs, taught, labels, self.part_weights, strict=True)
        return [task.soft_loss(out, said, y, weights, parts) for task, out, said, y, parts in each]

    @torch.no_grad()
    def _descend(self, pace: Tensor) -> None:
        """One AdamW step of all members: rates differ by member, so Adam steps at rate 1 into a buffer first."""
        norm = self.flat.grad.norm(dim=1, keepdim=True)
        self.flat.grad.mul_((1.0 / (norm + 1e-6)).clamp(max=1.0))
        lr, n = pace * self.lr, self.flat.n_decayed
        self.flat.data[:, :n].mul_(1 - lr * self.weight_decay)
        self._delta.zero_()
        self.counter += 1
        # The kernel of torch.optim.AdamW(fused=True); through the class it would take one parameter group a member.
        torch._fused_adamw_(
            [self._delta], [self.flat.grad], [self.first], [self.second], [], [self.counter],
            lr=1.0, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip
        self.flat.data.addcmul_(self._delta, lr)

    @torch.no_grad()
    def _look(self, dataset: Dataset) -> None:
        """Judge every member on its validation rows and keep the weights of those that were never better.

        Members whose step is given keep those of that step, and are not judged.
        """
        if self._until:
            self._keep(torch.tensor([until == self.step for until in self._until], device=dataset.device))
            return
        losses = self.losses(dataset)
        # A task without labels in this split's validation rows does not count.
        weight = torch.where(losses.isnan(), 0.0, self.cared)
        score = (losses.nan_to_num(0.0) / self.unit * weight).sum(-1) / weight.sum(-1).clamp_min(1e-12)
        score = torch.where(score.isfinite(), score, torch.inf)
        better = score < self.best.score
        self.best.score = torch.where(better, score, self.best.score)
        self.best.losses = torch.where(better.unsqueeze(-1), losses, self.best.losses)
        self._keep(better)
        self._looks.append((self.step, losses))

    def _keep(self, wanted: Tensor) -> None:
        """Keep the weights of the members that are wanted, bool [K], as they are now."""
        self.best.data = torch.where(wanted.unsqueeze(-1), self.flat.data, self.best.data)
        self.best.step = torch.where(wanted, self.step, self.best.step)

    @torch.no_grad()
    def losses(self, dataset: Dataset) -> Tensor:
        """Return each member's mean loss on its validation rows, M averaged first, in units of the trivial [K, T].

        NaN for a task that has no label there.
        """
        total: Tensor | float = 0.0
        count: Tensor | float = 0.0
        self.network.eval()
        for index, held, length in self._looked:
            targets = self._labels(dataset, index, length)
            weights = None if dataset.weights is None else dataset.take(dataset.weights, index)
            answers = self.network.averaged(self._outputs(dataset, index, length))
            pairs = list(zip(dataset.tasks, answers, targets, strict=True))
            losses = torch.stack([task.answer_losses(a, y) for task, a, y in pairs])  # [T, K, V]
            known = torch.stack([(task.known(y) & held).expand(losses.shape[1:]) for task, _, y in pairs])
            w = known.to(losses.dtype) if weights is None else known * weights
            total = total + (torch.where(known, losses, 0.0) * w).sum(-1)
            count = count + w.sum(-1)
        assert isinstance(total, Tensor)
        assert isinstance(count, Tensor)
        # A member that diverged answers NaN: that is the worst loss there is, not a task without labels.
        losses = torch.where(count > 0, (total / count).nan_to_num(nan=math.inf, posinf=math.inf), torch.nan)
        return losses.T / dataset.trivial

    def _validation_rows(self, dataset: Dataset) -> list[tuple[Tensor, Tensor, int | None]]:
        """Return the rows that each member is judged on, some at a time.

        Of each part: the rows [K or 1, V], which of them are no filling, and how many positions the longest has.
        """
        splits = [m.split for m in self.members]
        rows = [looked_at(dataset.splits[split].valid) for split in (splits if len(set(splits)) > 1 else splits[:1])]
        ends = self._line_ends(dataset)
        if ends is not None:  # texts of like length together
            rows = [held[ends[held.cpu()].argsort(stable=True).to(held.device)] for held in rows]
        index = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        sizes = torch.tensor([len(held) for held in rows], device=index.device)
        real = torch.arange(index.shape[1], device=index.device) < sizes.unsqueeze(1)
        at_once = self.network.rows_at_once(VALID_CHUNK)
        parts = zip(index.split(at_once, 1), real.split(at_once, 1), strict=True)
        if ends is None:
            return [(part, held, None) for part, held in parts]
        # There are none where a member is trained again on all rows.
        return [(part, held, max([1, *ends[part.cpu()].flatten().tolist()])) for part, held in parts]


def lined_up(members: Sequence[Member]) -> tuple[Member, ...]:
    """Return members as a stack holds them: deepest first, since it narrows as depth grows; else in their order."""
    return tuple(sorted(members, key=lambda member: -member.spec.network.trunk.shared_depth))


def advance(
    stack: Stack,
    dataset: Dataset,
    goal: int,
    *,
    reference: Sequence[float] | None = None,
    stop: Stop = never,
) -> Stack:
    """Return a stack trained up to step `goal`: a pure function of the stack and the dataset, wherever it runs."""
    cohort = Cohort(stack, dataset, reference=reference)
    stopped = cohort.advance(dataset, goal, stop=stop)
    return cohort.stack(stopped=stopped)


def restack(stacks: Sequence[Stack], kept: Sequence[Sequence[int]], *, seed: int) -> Stack:
    """Return one stack of the kept members of several at the same step, weights and moments with them."""
    if len({stack.step for stack in stacks}) > 1:
        raise ValueError(f"stacks must be at the same step to become one, not at {[stack.step for stack in stacks]}")
    pairs = [(s.members[k], s.states[k]) for s, places in zip(stacks, kept, strict=True) for k in places]
    pairs.sort(key=lambda pair: -pair[0].spec.network.trunk.shared_depth)
    members, states = zip(*pairs, strict=True)
    return Stack(members, seed, stacks[0].step, states)


def _learned_rows(members: Sequence[Member], dataset: Dataset) -> list[Tensor]:
    """Return the training rows of each member: those without a label of any task that it descends teach it nothing.

    A student is taught by every row.
    """
    if members[0].spec.training.label_weight < 1:
        return [dataset.splits[m.split].train for m in members]
    names = [task.name for task in dataset.tasks]
    found: dict[Any, Tensor] = {}
    asked = [(m.split, tuple(m.spec.training.weighting.weight(name) > 0 for name in names)) for m in members]
    for key in asked:
        if key not in found:
            found[key] = dataset.learned(*key)
    return [found[key] for key in asked]


def _pooled(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return all different rows one after another, and where those of each member begin [K, 1]."""
    distinct = list({id(held): held for held in rows}.values())
    begins = dict(zip(map(id, distinct), np.cumsum([0, *map(len, distinct)]).tolist(), strict=False))
    return torch.cat(distinct), torch.tensor([begins[id(held)] for held in rows], device=rows[0].device).view(-1, 1)


def _longest(ends: Sequence[Tensor], places: Tensor) -> list[int | None]:
    """Return how many positions the longest row of each step has: ends [n] of each member's rows, places [S, K, B]."""
    each = [held[places[:, k]] for k, held in enumerate(ends)]
    longest: list[int | None] = torch.stack(each, 1).amax((1, 2)).clamp_min(1).tolist()
    return longest


def looked_at(rows: Tensor) -> Tensor:
    """Return the validation rows that looks read: all, or an evenly spaced part of many."""
    return rows[:: -(-len(rows) // LOOKED_AT)] if len(rows) > LOOKED_AT else rows


def _part_weights(specs: Sequence[MemberSpec], task: Task[Any], dataset: Dataset) -> Tensor | None:
    """Return each member's weight of each part of a task's loss [K, P]; None where all are 1."""
    weights = [[spec.training.part_weight.get(f"{task.name}.{part}", 1.0) for part in task.parts] for spec in specs]
    if all(weight == 1 for row in weights for weight in row):
        return None
    return torch.tensor(weights, device=dataset.device, dtype=dataset.dtype)


def judged_tasks(member: Member, names: Sequence[str]) -> list[bool]:
    """Return which tasks a member is judged on."""
    if member.tasks is not None:
        return list(member.tasks)
    return [member.spec.training.weighting.weight(name) > 0 for name in names]


def schedule(step: int, steps: int) -> float:
    """Return the share of the highest learning rate at a step: a short rise, then half a cosine down to nothing."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def label_share(step: int, training: TrainingSpec) -> float:
    """Return the share of the labels in a loss at a step, the teacher's answers having the rest."""
    return training.label_weight + (1 - training.label_weight) * step / training.steps


class Epochs:
    """Places in a member's training rows: epochs are permutations laid end to end, a function of the seed alone."""

    def __init__(self, n_rows: int, seed: int) -> None:
        self.n_rows, self.seed = n_rows, seed
        self._held: dict[int, np.ndarray] = {}
        """The epochs of the last plan: the next begins in one of them."""

    def rows(self, batch_size: int, step: int, steps: int) -> np.ndarray:
        """Return the batches of some steps, [steps, batch_size]."""
        start, end, n = step * batch_size, (step + steps) * batch_size, self.n_rows
        epochs = range(start // n, (end - 1) // n + 1)
        self._held = {epoch: self._held[epoch] if epoch in self._held else self._permutation(epoch) for epoch in epochs}
        parts = [self._held[epoch][max(start - epoch * n, 0) : end - epoch * n] for epoch in epochs]
        return np.concatenate(parts).reshape(steps, batch_size)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.n_rows)


def _sent(held: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on the device; the copy need not wait for what a GPU is doing."""
    return held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held.to(device)


def stable_seed(*parts: Any) -> int:
    """Return a seed of 63 bits that depends on the parts alone, the same in every process and on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
