"""K multi-task networks as one module: encoders, a shared trunk, a head a task; every tensor has the member axis first.

Inputs with positions (pictures, texts) are pooled for a trunk that reads none. One that reads positions gets those of
the *main* input, the one that tasks answer by, and the other inputs pooled beside each of them.

Letters: K members, T tasks, M TabM's inner members, B rows, L positions, C columns of a block, F features, D width,
O outputs of a head, P all parameters of a member, padding included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Self, cast

import numpy as np
import torch
from pydantic import BeforeValidator, SerializeAsAny
from torch import Generator, Tensor, nn

from mtl_bento.columns._base import Column
from mtl_bento.encoders._base import ENCODERS, Encoder, EncoderSpec, has_positions, kind_of, mean_of_real
from mtl_bento.errors import SpecError, listing
from mtl_bento.heads._base import HEADS, Head, HeadSpec, Pooling
from mtl_bento.layers import PerMember, Random, Stacked
from mtl_bento.spec import MustMatch, Spec
from mtl_bento.tasks._base import Task
from mtl_bento.trunks._base import TRUNKS, Trunk, TrunkSizes, TrunkSpec

AnyEncoder = Annotated[EncoderSpec, BeforeValidator(ENCODERS.parse), SerializeAsAny()]
AnyTrunk = Annotated[TrunkSpec, BeforeValidator(TRUNKS.parse), SerializeAsAny()]
AnyHead = Annotated[HeadSpec, BeforeValidator(HEADS.parse), SerializeAsAny()]

MEAN_ROWS = 128
"""Rows of a block with positions whose features are held at once, where only their mean is wanted."""


class NetworkSpec(Spec):
    """One network: how each block is encoded, the trunk, and a head for each task."""

    encoders: dict[str, AnyEncoder]
    trunk: AnyTrunk
    heads: dict[str, AnyHead]
    offset: Annotated[bool, MustMatch] = False
    """Whether its outputs stand on the margins of boosted trees, to which those of its heads are added."""

    def stack_key(self) -> tuple[Any, ...]:
        """Return what two networks must have in common to share a stack."""
        parts = [*self.encoders.values(), self.trunk, *self.heads.values()]
        return (self.offset, *(part.stack_key() for part in parts))


@dataclass(frozen=True)
class Inputs:
    """What networks read: the columns of each block, and what its encoder learned of the training rows."""

    columns: dict[str, tuple[Column, ...]]
    fitted: dict[str, dict[str, Tensor]]

    @classmethod
    def fit(cls, columns: dict[str, tuple[Column, ...]], blocks: dict[str, Tensor]) -> Inputs:
        """Return inputs fitted on training rows, `blocks[b]` [N, C]."""
        fitted = {}
        for block, held in columns.items():
            encoder = ENCODERS.class_of(ENCODERS.spec_class(kind_of(block)))
            fitted[block] = encoder.fit(held, blocks[block])
        return cls(columns, fitted)

    def encoder(self, block: str) -> Encoder[Any]:
        """Return an encoder of a block for one member with the defaults: what it prepares is the same for all."""
        spec: Any = ENCODERS.spec_class(kind_of(block))
        return cast(Encoder[Any], _build(ENCODERS, [spec()], self.columns[block], self.fitted[block], [Generator()]))

    def features(self, encoded: Mapping[str, Tensor], prepared: Sequence[Tensor]) -> Tensor:
        """Return what trees read of rows, float32 [B, F], NaN where missing, on the device of what is prepared.

        Encoded blocks [B, C] side by side as they are, -1 of a category as NaN; of a block with positions, whose
        `prepared` [B, L, D] is read, the mean of its features over real positions. Tokens whose meaning each network
        learns for itself have none.
        """
        parts = []
        for (block, columns), rows in zip(self.columns.items(), prepared, strict=True):
            if has_positions(block):
                parts.append(self._means(block, rows))
            else:
                values = encoded[block].to(rows.device)
                parts.append(values.float() if columns[0].dtype != np.int64 else _codes(values))
        return torch.cat(parts, 1)

    def categorical(self) -> list[int]:
        """Return which of the columns that `features` returns hold categories."""
        places: list[int] = []
        start = 0
        for block, columns in self.columns.items():
            width = self._n_means(block) if has_positions(block) else sum(column.n_features for column in columns)
            if not has_positions(block) and columns[0].dtype == np.int64:
                places += range(start, start + width)
            start += width
        return places

    def _n_means(self, block: str) -> int:
        encoder = self.encoder(block)
        return 0 if list(encoder.parameters()) else encoder.n_features

    def _means(self, block: str, prepared: Tensor) -> Tensor:
        """Return the mean features of a block with positions, [B, L, D] -> [B, F]; NaN where no position is real."""
        encoder = self.encoder(block).to(device=prepared.device, dtype=prepared.dtype)
        if list(encoder.parameters()):
            return prepared.new_zeros(len(prepared), 0)
        means = []
        for rows in prepared.split(MEAN_ROWS):
            features, mask = encoder.unfold(rows)
            means.append(mean_of_real(features, mask).masked_fill(~mask.any(-1, keepdim=True), torch.nan))
        return torch.cat(means).float()

    def positions(self, tasks: Sequence[Task[Any]]) -> tuple[int, tuple[int, int] | None]:
        """Return how many positions a trunk reads that reads some, 0 where no input has any, and their grid."""
        encoders = {block: self.encoder(block) for block in self.columns if has_positions(block)}
        lengths = {block: encoders[block].length if block in encoders else 0 for block in self.columns}
        main = self.main(lengths, tasks)
        return (0, None) if main is None else (lengths[main], encoders[main].grid)

    def main(self, lengths: Mapping[str, int], tasks: Sequence[Task[Any]]) -> str | None:
        """Return the block whose positions a trunk reads, of those with `lengths` above 0; None where there is none.

        It is the one that tasks which answer by position name, else the first. Raises SpecError where they name several
        or one without positions, or need positions and no input has any.
        """
        by_position = [task for task in tasks if task.positional]
        held = {column.name: block for block, columns in self.columns.items() if lengths[block] for column in columns}
        named = {task.reads: task.name for task in by_position if task.reads is not None}
        if by_position and not held:
            raise SpecError(
                f"Target {by_position[0].name!r} answers by position, but no input is an image or a text; "
                "give it one (`inputs:` in mtl.yaml)."
            )
        if unknown := [name for name in named if name not in held]:
            raise SpecError(
                f"Target {named[unknown[0]]!r} speaks of {unknown[0]!r}, which is no input with positions; "
                f"allowed: {listing(map(repr, held))}."
            )
        if len(named) > 1:
            (one, first), (other, second) = list(named.items())[:2]
            raise SpecError(
                f"Target {first!r} answers by the positions of {one!r} and {second!r} by those of {other!r}; "
                "a network reads those of one input: search them apart."
            )
        return held[next(iter(named or held))] if held else None


@dataclass(frozen=True)
class Part:
    """One parameter of a network and whose it is."""

    name: str
    parameter: nn.Parameter
    shapes: list[tuple[int, ...]] | None
    """The true shape of each member's share of a stacked parameter; None where one member owns it."""
    member: int
    """The owner, where one member owns it."""
    decay: bool

    def share(self, values: Tensor, k: int) -> Tensor | None:
        """Return member k's share of values laid out like the parameter, at its true shape; None where it has none."""
        if self.shapes is None:
            return values if k == self.member else None
        # A member without the layer has no share, whether or not its neighbours have one.
        if k >= len(self.shapes) or 0 in self.shapes[k]:
            return None
        return values[k][tuple(slice(size) for size in self.shapes[k])]


class Network(nn.Module):
    """K networks, deepest trunk first.

    Args:
        specs: one a member; all of one `stack_key`.
        inputs: columns and what encoders learned of them.
        tasks: the targets, in order.
        seeds: one a member, for its initial weights alone.
    """

    trunk: Trunk[Any]

    def __init__(
        self, specs: Sequence[NetworkSpec], inputs: Inputs, tasks: Sequence[Task[Any]], seeds: Sequence[int]
    ) -> None:
        super().__init__()
        self.specs, self.tasks, self.blocks = list(specs), list(tasks), list(inputs.columns)
        self.offset = specs[0].offset
        """Whether outputs stand on the margins of boosted trees."""
        generators = [Generator().manual_seed(seed) for seed in seeds]
        self.encoders = nn.ModuleList(
            _build(
                ENCODERS, [s.encoders[block] for s in specs], inputs.columns[block], inputs.fitted[block], generators
            )
            for block in self.blocks
        )
        encoders = [cast(Encoder[Any], encoder) for encoder in self.encoders]
        self._fixed = [not list(encoder.parameters()) for encoder in encoders]
        """Which blocks' features no gradient changes."""
        self.main = self._main(inputs)
        """The place of the block whose positions the trunk reads; None where it reads none."""
        self.trunk = _build(TRUNKS, [s.trunk for s in specs], self._sizes(encoders), generators)
        self.pooling = Pooling(self.trunk.widths, self.trunk.sizes.grid)
        self.heads = nn.ModuleList(
            _build(
                HEADS,
                [s.heads[task.name] for s in specs],
                self._read_by(task),
                task.n_outputs,
                self.trunk.inner,
                generators,
                *self._positions_of(task),
            )
            for task in tasks
        )
        self._joined: dict[tuple[int, ...], Callable[[Tensor], list[Tensor]]] | None = None
        """Heads of one state as one map, where parameters stay as they are; None where they do not."""

    def _main(self, inputs: Inputs) -> int | None:
        lengths = [cast(Encoder[Any], encoder).length for encoder in self.encoders]
        by_position = [task.name for task in self.tasks if task.positional]
        kind = self.specs[0].trunk.kind
        check_fits(kind, by_position=by_position, positions=any(lengths))
        if kind not in positional_trunks():
            return None
        main = inputs.main(dict(zip(self.blocks, lengths, strict=True)), self.tasks)
        return None if main is None else self.blocks.index(main)

    def _sizes(self, encoders: Sequence[Encoder[Any]]) -> TrunkSizes:
        if self.main is None:
            return TrunkSizes(sum(encoder.n_pooled for encoder in encoders), len(self.tasks))
        main = encoders[self.main]
        return TrunkSizes(sum(encoder.n_features for encoder in encoders), len(self.tasks), main.length, main.grid)

    def _read_by(self, task: Task[Any]) -> list[int]:
        """Return how many numbers of its state each member's head of a task reads."""
        pooled = self.main is not None and not task.positional
        return [width * self.pooling.n_each for width in self.trunk.widths] if pooled else self.trunk.widths

    def _positions_of(self, task: Task[Any]) -> tuple[Any, ...]:
        """Return length and grid for a head that reads neighbouring positions, of a task that answers by them."""
        head = HEADS.class_of(type(self.specs[0].heads[task.name]))
        return (self.length, self.trunk.sizes.grid) if head.positional and task.positional else ()

    @property
    def n_members(self) -> int:
        """K."""
        return len(self.specs)

    @property
    def length(self) -> int:
        """Positions L that the trunk reads, 0 where it reads none."""
        return self.trunk.sizes.length

    @property
    def most_positions(self) -> int:
        """Positions of the input that has most; 1 where none has any."""
        return max(1, *(cast(Encoder[Any], encoder).length for encoder in self.encoders))

    def rows_at_once(self, most: int) -> int:
        """Return how many rows to give at once where `most` would be right without positions, at least 16."""
        return rows_at_once(most, self.most_positions)

    def answer_sizes(self) -> list[int]:
        """Return how many numbers O' each task answers with; those of all positions, where it answers by position."""
        return answer_sizes(self.tasks, self.length)

    def prepare(self, blocks: dict[str, Tensor]) -> list[Tensor]:
        """Return what can be computed once per row: encoded blocks [B, C] -> prepared [B, C'], in order of `blocks`."""
        return [cast(Encoder[Any], e).prepare(blocks[name]) for name, e in zip(self.blocks, self.encoders, strict=True)]

    def unfold(self, prepared: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Return what `outputs` reads of prepared blocks [K or 1, B, C'], as far as no gradient changes it."""
        unfolded = [cast(Encoder[Any], e).unfold(values) for e, values in zip(self.encoders, prepared, strict=True)]
        # Pooled here where nothing is learned: once for all rows, not in each step.
        return [self._encoded(b, parts) if self._fixed[b] else parts for b, parts in enumerate(unfolded)]

    def _encoded(self, block: int, unfolded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the features of a block as the trunk reads them, [K or 1, B, F']; of the main one by position.

        These are features [K or 1, B, L, F] and mask [K or 1, B, L].
        """
        encoder = cast(Encoder[Any], self.encoders[block])
        features, mask = encoder(*unfolded), unfolded[-1]
        if not encoder.length:
            return (features,)
        if block == self.main:
            return _somewhere(features, mask)
        if self.main is None:
            return (encoder.pooled(features, mask),)
        return (mean_of_real(features, mask),)  # beside every position: side by side they would be too many

    def forward(self, prepared: Sequence[Tensor], margins: Tensor | None = None) -> list[Tensor]:
        """Prepared blocks [K or 1, B, C'] -> outputs [K, M, B, O] for each task; `margins` as `outputs` has them."""
        return self.outputs(self.unfold(prepared), margins)

    def outputs(self, unfolded: Sequence[tuple[Tensor, ...]], margins: Tensor | None = None) -> list[Tensor]:
        """Unfolded blocks, each [K or 1, B, C''] -> outputs [K, M, B, (L,) O] for each task.

        Offset networks need the trees' `margins` [K or 1, B, sum of O], all tasks side by side, and raise ValueError
        without; other networks read none.
        """
        encoded = [parts if self._fixed[b] else self._encoded(b, parts) for b, parts in enumerate(unfolded)]
        states = self._states(encoded)
        outputs: dict[int, Tensor] = {}
        for places in _alike(self.heads, states):
            outputs |= dict(zip(places, self._heads_at(tuple(places))(states[places[0]]), strict=True))
        shape = () if self.main is None else encoded[self.main][1].shape[1:]  # B, L
        held = [
            outputs[t].unflatten(2, shape) if task.positional and outputs[t].ndim == 4 else outputs[t]
            for t, task in enumerate(self.tasks)
        ]
        return self._on(margins, held) if self.offset else held

    def _on(self, margins: Tensor | None, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return outputs [K, M, B, (L,) O] on top of the margins of their rows: the same for all M, at all L."""
        if margins is None:
            raise ValueError("offset networks answer on top of the margins of trees; give them")
        parts = margins.unsqueeze(1).split([task.n_outputs for task in self.tasks], -1)  # [K or 1, 1, B, O]
        return [
            held + (part.unsqueeze(-2) if task.positional else part)
            for task, held, part in zip(self.tasks, outputs, parts, strict=True)
        ]

    def _states(self, encoded: Sequence[tuple[Tensor, ...]]) -> Sequence[Tensor]:
        """Return each task's state as its head reads it, T of [K, M, B, D].

        Of a task by position the rows are B * L, or B and L apart where its head reads neighbours.
        """
        if self.main is None:
            return cast(Sequence[Tensor], self.trunk(_joined([features for (features,) in encoded])))
        features, mask = encoded[self.main]
        others = [parts[0].unsqueeze(2) for b, parts in enumerate(encoded) if b != self.main]
        beside = [part.expand(-1, -1, features.shape[2], -1) for part in others]
        states = self.trunk(_joined([features, *beside]), mask)
        read: dict[tuple[int, bool, bool], Tensor] = {}
        each = zip(states, self.tasks, self.heads, strict=True)
        keys = [(id(state), t.positional, t.positional and cast(Head[Any], head).positional) for state, t, head in each]
        for key, state in zip(keys, states, strict=True):
            if key not in read:
                _, by_position, neighbours = key
                if by_position:
                    held = state * mask[:, None, :, :, None]
                    read[key] = held if neighbours else held.flatten(2, 3)
                else:
                    read[key] = self.pooling(state, mask)
        return [read[key] for key in keys]

    def _heads_at(self, places: tuple[int, ...]) -> Callable[[Tensor], list[Tensor]]:
        if self._joined is not None and places in self._joined:
            return self._joined[places]
        heads = [cast(Head[Any], self.heads[t]) for t in places]
        joined = type(heads[0]).joined(heads)
        if self._joined is not None:
            self._joined[places] = joined
        return joined

    def settle(self) -> Self:
        """Return the network ready to answer: its parameters stay as they are from now on."""
        self._joined = {}
        return self.eval().requires_grad_(False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_joined": None if self._joined is None else {}}  # functions cannot be pickled

    def _apply(self, *arguments: Any, **options: Any) -> Self:
        if self._joined is not None:
            self._joined.clear()  # it moves to another device or type
        return cast(Self, super()._apply(*arguments, **options))  # type: ignore[no-untyped-call]

    def answers(self, prepared: Sequence[Tensor], margins: Tensor | None = None) -> list[Tensor]:
        """Prepared blocks [K or 1, B, C'] -> answers averaged over M, [K, B, O'] for each task; `margins` as above."""
        return self.averaged(self(prepared, margins))

    def averaged(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs [K, M, B, O] -> answers averaged over M, [K, B, O'] for each task."""
        return [task.activate(out).mean(1) for task, out in zip(self.tasks, outputs, strict=True)]

    def parts(self) -> Iterator[Part]:
        """Yield every parameter and whose it is, those under weight decay first, in an order that the specs fix."""
        parts = list(self._parts())
        yield from (part for part in parts if part.decay)
        yield from (part for part in parts if not part.decay)

    def _parts(self) -> Iterator[Part]:
        for path, module in self.named_modules():
            if isinstance(module, Stacked):
                for name, shapes in module.shapes.items():
                    parameter = module.get_parameter(name)
                    yield Part(f"{path}.{name}", parameter, shapes, -1, name not in module.undecayed)
            elif isinstance(module, PerMember):
                for k, own in enumerate(module):
                    for name, parameter in own.named_parameters():
                        yield Part(f"{path}.{name}", parameter, None, k, parameter.ndim > 1)

    def member_state(self, k: int) -> dict[str, Tensor]:
        """Return member k's parameters at their true shapes, by name: the same names whichever stack it is in."""
        held = ((part.name, part.share(part.parameter, k)) for part in self.parts())
        return {name: share.detach().clone() for name, share in held if share is not None}

    def load_member(self, k: int, state: dict[str, Tensor]) -> None:
        """Set member k's parameters."""
        with torch.no_grad():
            for part in self.parts():
                if (share := part.share(part.parameter, k)) is not None:
                    if share.shape != state[part.name].shape:  # `copy_` would broadcast it
                        raise ValueError(
                            f"{part.name} has shape {tuple(state[part.name].shape)}, not {tuple(share.shape)}"
                        )
                    share.copy_(state[part.name])

    def set_generator(self, generator: Generator) -> None:
        """Give every module that draws in training the generator of its bits."""
        for module in self.modules():
            if isinstance(module, Random):
                module.generator = generator

    def n_parameters(self, k: int) -> int:
        """Return how many parameters member k has."""
        shares = (part.share(part.parameter, k) for part in self.parts())
        return sum(share.numel() for share in shares if share is not None)


@dataclass(frozen=True)
class Trained:
    """One trained member, apart from any stack: its spec and its parameters at their true shapes."""

    spec: NetworkSpec
    state: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        """Whether its parameters are numbers: those of a network that diverged are not."""
        return all(bool(tensor.isfinite().all()) for tensor in self.state.values())

    @property
    def n_parameters(self) -> int:
        """How many parameters it has."""
        return sum(tensor.numel() for tensor in self.state.values())

    def cpu(self) -> Trained:
        """Return the member with its parameters in the memory of the CPU."""
        return Trained(self.spec, {name: tensor.detach().cpu() for name, tensor in self.state.items()})


def stacks(members: Sequence[Trained], inputs: Inputs, tasks: Sequence[Task[Any]]) -> list[tuple[list[int], Network]]:
    """Return trained members as stacks for prediction: of each, the places in `members`, and the stack."""
    by_key: dict[Any, list[int]] = {}
    for k, member in enumerate(members):
        by_key.setdefault(member.spec.stack_key(), []).append(k)
    built = []
    for held in by_key.values():
        places = sorted(held, key=lambda k: -members[k].spec.trunk.shared_depth)
        network = Network([members[k].spec for k in places], inputs, tasks, [0] * len(places))
        for row, k in enumerate(places):
            network.load_member(row, members[k].state)
        built.append((places, network.settle()))
    return built


@dataclass
class Flat:
    """All parameters of a stack as one matrix [K, P], and their gradients as another: the optimiser's view.

    The parameters of the network become views of `data`, so that an optimiser step, a snapshot or a checkpoint is one
    tensor operation; `gradients` are the views of `grad` in the order of `parameters`. Weight decay is for the first
    `n_decayed` columns.
    """

    data: Tensor
    grad: Tensor
    n_decayed: int
    places: dict[str, tuple[int, int]]
    parts: list[Part] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, network: Network) -> Flat:
        """Move the parameters of a network into one matrix."""
        parts = list(network.parts())
        sizes: dict[str, int] = {}
        for part in parts:
            own = part.parameter.numel() if part.shapes is None else part.parameter[0].numel()
            sizes[part.name] = max(sizes.get(part.name, 0), own)
        ends, total = {}, 0
        for name, size in sizes.items():
            ends[name] = (total, total + size)
            total += size
        decayed = {part.name for part in parts if part.decay}
        example = parts[0].parameter
        data = torch.zeros(network.n_members, total, dtype=example.dtype, device=example.device)
        flat = cls(data, torch.zeros_like(data), sum(sizes[name] for name in decayed), ends)
        with torch.no_grad():
            for part in parts:
                view = flat.view(flat.data, part)
                view.copy_(part.parameter)
                part.parameter.data = view
                flat.parts.append(part)
                flat.parameters.append(part.parameter)
                flat.gradients.append(flat.view(flat.grad, part))
        return flat

    def read(self, matrix: Tensor, k: int) -> dict[str, Tensor]:
        """Return member k's share of a [K, P] matrix by parameter name, copied, at its true shapes."""
        shares = ((part.name, part.share(self.view(matrix, part), k)) for part in self.parts)
        return {name: share.clone() for name, share in shares if share is not None}

    def write(self, matrix: Tensor, k: int, state: dict[str, Tensor]) -> None:
        """Set member k's share of a [K, P] matrix."""
        for part in self.parts:
            if (share := part.share(self.view(matrix, part), k)) is not None:
                share.copy_(state[part.name])

    def view(self, matrix: Tensor, part: Part) -> Tensor:
        """Return the part of a [K, P] matrix that holds a parameter, in the parameter's shape."""
        start, end = self.places[part.name]
        shape = part.parameter.shape
        if part.shapes is None:
            return matrix[part.member, start : start + part.parameter.numel()].view(shape)
        return matrix[: shape[0], start:end].view(shape)


def _somewhere(features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return features [..., L, F], 0 where no position is, and the mask [..., L] with one position at least.

    Where a row has none, as its picture or text is missing, its other inputs would have nowhere to stand.
    """
    first = torch.arange(mask.shape[-1], device=mask.device) == 0
    return features * mask.unsqueeze(-1), mask | (first & ~mask.any(-1, keepdim=True))


def _joined(features: Sequence[Tensor]) -> Tensor:
    """Return features of all blocks side by side, [K or 1, B, (L,) F]."""
    if len(features) == 1:
        return features[0]  # `cat` would copy it
    members = max(part.shape[0] for part in features)
    return torch.cat([part.expand(members, *part.shape[1:]) for part in features], -1)


def _codes(values: Tensor) -> Tensor:
    """Return codes of categories as float32, NaN for -1."""
    return values.float().masked_fill(values < 0, torch.nan)


def rows_at_once(most: int, positions: int) -> int:
    """Return how many rows of so many positions to read at once where `most` would be right for 1, at least 16."""
    return max(min(16, most), most // positions)


def answer_sizes(tasks: Sequence[Task[Any]], length: int) -> list[int]:
    """Return how many numbers O' each task answers with, where those that answer by position have `length` of them."""
    shapes = [(length, t.n_outputs) if t.positional else (t.n_outputs,) for t in tasks]
    blank = [torch.zeros(1, 1, 1, *shape) for shape in shapes]
    return [task.activate(outputs).shape[-1] for task, outputs in zip(tasks, blank, strict=True)]


def positional_trunks() -> list[str]:
    """Return the kinds of trunk that read positions."""
    return [kind for kind, spec in TRUNKS.kinds().items() if TRUNKS.class_of(spec).positional]


def check_fits(trunk: str, *, by_position: Sequence[str], positions: bool) -> None:
    """Raise SpecError where a kind of trunk reads positions that no input has, or none, by which a task answers."""
    readers = positional_trunks()
    if by_position and trunk not in readers:
        raise SpecError(
            f"Trunk {trunk!r} reads no positions, by which target {by_position[0]!r} answers; "
            f"allowed: {listing(readers)}."
        )
    if trunk in readers and not positions:
        others = [kind for kind in TRUNKS.kinds() if kind not in readers]
        raise SpecError(
            f"Trunk {trunk!r} reads positions, but no input is an image or a text; allowed: {listing(others)}."
        )


def _alike(heads: nn.ModuleList, states: Sequence[Tensor]) -> list[list[int]]:
    """Return the tasks in groups of one kind of head on one state."""
    groups: dict[tuple[type, int], list[int]] = {}
    for t, (head, state) in enumerate(zip(heads, states, strict=True)):
        groups.setdefault((type(head), id(state)), []).append(t)
    return list(groups.values())


def _build(registry: Any, specs: Sequence[Spec], *sizes: Any) -> Any:
    return registry.class_of(type(specs[0]))(specs, *sizes)
