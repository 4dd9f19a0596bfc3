"""Rows as tensors on a device: prepared blocks, labels, weights, and the splits that members learn from.

Letters: N rows, T tasks, C columns of a block, L positions, D numbers of a position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl_bento.encoders._base import Encoder
from mtl_bento.errors import SchemaError
from mtl_bento.network import Inputs, Network
from mtl_bento.tasks._base import Task

UNFOLDED_BYTES = 2**29
"""Most that features of all rows may take in a process; beyond it, they are computed for each batch."""
UNFOLDED_ROWS = 2**16
"""Rows that are unfolded at once, where they have no positions."""
PREPARED_ROWS = 128
"""Rows of pictures or texts that are prepared at once: what a backbone takes, and what an interruption loses."""

Progress = Callable[[str, int, int], None]
"""Told of a block whose rows are prepared some at a time: its name, how many rows are done, how many there are."""
Cache = Callable[[str, Callable[[], Tensor]], Tensor]
"""Given a key and what computes prepared rows [B, L, D]: those kept under the key, or computed and kept now.

The key is 64 hexadecimal digits that change with the rows, the column and all that was fitted, the backbone included.
"""


@dataclass(frozen=True)
class Split:
    """The rows that a member learns from and those that it is judged on: indices [n] int64 on the device."""

    train: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Dataset:
    """Everything that training reads, resident on one device.

    One split is a holdout; several are folds, and their `valid` rows do not overlap.
    """

    tasks: tuple[Task[Any], ...]
    inputs: Inputs
    blocks: tuple[Tensor, ...]
    """Prepared blocks [N, C'], or [N, L, D] by position."""
    targets: tuple[Tensor, ...]
    """Labels of each task, [N, ...]."""
    weights: Tensor | None
    """Row weights [N], or None where all are 1."""
    splits: tuple[Split, ...]
    trivial: Tensor
    """Loss of each task's best constant on the training rows, [T]: the unit of every loss here."""
    margins: Tensor | None = None
    """What boosted trees say of each row, out of fold, as the outputs of all heads side by side: [N, sum of O], 0 for a
    task without trees; read by offset networks alone. None where there are no trees."""
    taught: tuple[Tensor, ...] | None = None
    """What a teacher answers on each row, [N, O'] a task; read by students alone (`TrainingSpec.label_weight`)."""
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What `unfolded` made last, by what it depends on, with the bytes it takes."""

    @classmethod
    def build(
        cls,
        tasks: Sequence[Task[Any]],
        inputs: Inputs,
        blocks: dict[str, np.ndarray],
        targets: Sequence[np.ndarray],
        splits: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        weights: np.ndarray | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        progress: Progress | None = None,
        cache: Cache | None = None,
    ) -> Dataset:
        """Return the dataset of encoded rows; `splits` are pairs of row indices (train, valid).

        Raises SpecError or SchemaError, before anything is prepared, where tasks answer by positions that no input has.
        """
        encoders = {block: inputs.encoder(block).to(dtype) for block in inputs.columns}
        _check_positions(tasks, inputs, encoders, targets)
        prepared = [
            _by_position(block, encoder, inputs, blocks[block], torch.device(device), dtype, progress, cache)
            if encoder.length
            else encoder.prepare(torch.from_numpy(blocks[block])).to(device)
            for block, encoder in encoders.items()
        ]
        labels = tuple(torch.from_numpy(target) for target in targets)
        learned = torch.from_numpy(np.unique(np.concatenate([train for train, _ in splits])))
        trivial = [task.trivial_loss(label[learned]) for task, label in zip(tasks, labels, strict=True)]
        return cls(
            tasks=tuple(tasks),
            inputs=inputs,
            blocks=tuple(prepared),
            targets=tuple(label.to(device) for label in labels),
            weights=None if weights is None else torch.from_numpy(weights).to(device=device, dtype=dtype),
            splits=_splits(splits, device),
            trivial=torch.tensor(trivial, device=device, dtype=dtype),
        )

    def with_margins(self, margins: np.ndarray | Tensor) -> Dataset:
        """Return the dataset with the margins of trees, [N, sum of O]; raises ValueError where they have another shape.

        All else is shared with this one.
        """
        shape = (len(self.blocks[0]), sum(task.n_outputs for task in self.tasks))
        if tuple(margins.shape) != shape:
            raise ValueError(f"margins of trees have shape {tuple(margins.shape)}, not {shape}")
        return replace(self, margins=torch.as_tensor(margins).to(device=self.device, dtype=self.dtype))

    def with_splits(self, splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> Dataset:
        """Return the dataset with other splits, pairs of row indices (train, valid); all else is shared with this."""
        return replace(self, splits=_splits(splits, self.device))

    def with_teacher(self, answers: Sequence[np.ndarray]) -> Dataset:
        """Return the dataset with a teacher's answers, [N, O'] a task; all else is shared with this one.

        What it says of positions that a row does not have is NaN.
        """
        held = [torch.from_numpy(np.array(own)).to(device=self.device, dtype=self.dtype) for own in answers]
        lengths = {block: self.inputs.encoder(block).length for block in self.inputs.columns}
        main = self.inputs.main(lengths, self.tasks)
        ends = None if main is None else self.ends[list(self.inputs.columns).index(main)]
        for task, own, label in zip(self.tasks, held, self.targets, strict=True):
            if task.positional and ends is not None:
                n = label.shape[1]
                beyond = torch.arange(n, device=self.device) >= ends.to(self.device).unsqueeze(1)  # [N, L]
                own.view(len(own), n, -1)[beyond] = torch.nan
        return replace(self, taught=tuple(held))

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self.trivial.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of training."""
        return self.trivial.dtype

    @cached_property
    def label_weights(self) -> tuple[Tensor | None, ...]:
        """Weight of each task's labels in its loss [N], 0 where missing; None where all are 1."""
        each = [task.label_weights(label, self.weights) for task, label in zip(self.tasks, self.targets, strict=True)]
        return tuple(None if weight is None else weight.to(self.dtype) for weight in each)

    @cached_property
    def ends(self) -> tuple[Tensor | None, ...]:
        """Places after the last real position of each row, int64 [N] on the host; None of a block that is no line."""
        return tuple(
            _ends(rows) if (encoder := self.inputs.encoder(block)).length and encoder.grid is None else None
            for block, rows in zip(self.inputs.columns, self.blocks, strict=True)
        )

    def learned(self, split: int, tasks: Sequence[bool]) -> Tensor:
        """Return the training rows of a split that have a label of one of those tasks [T]; all where none has one."""
        rows = self.splits[split].train
        each = zip(self.tasks, self.targets, tasks, strict=True)
        known = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        for task, label, asked in each:
            if asked:
                known |= task.known(label[rows])
        return rows[known] if 0 < int(known.sum()) < len(rows) else rows

    def take(self, values: Tensor, index: Tensor, length: int | None = None) -> Tensor:
        """Return rows `index` [K, B] of values [N, ...]: [K, B, ...]; of values [N, n, ...] the first `length` of n."""
        rows = values.index_select(0, index.reshape(-1)).view(*index.shape, *values.shape[1:])
        return rows if length is None else rows[:, :, :length].contiguous()

    def inputs_of(self, index: Tensor) -> list[Tensor]:
        """Return the prepared blocks of rows `index` [K, B]: each [K, B, C'], or [K, B, L, D]."""
        return [self.take(block, index) for block in self.blocks]

    def margins_of(self, index: Tensor, network: Network) -> Tensor | None:
        """Return the margins of rows `index` [K, B] for a network that stands on them: [K, B, sum of O]; else None."""
        return self.take(self.margins, index) if network.offset and self.margins is not None else None

    def labels_of(self, index: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Return labels [K, B, ...] of each task and weights [K, B] of rows `index` [K, B]."""
        weights = None if self.weights is None else self.take(self.weights, index)
        return [self.take(target, index) for target in self.targets], weights

    def unfolded(self, network: Network) -> tuple[tuple[Tensor, ...], ...] | None:
        """Return what a network reads of every row, each [N, C''], or None where that would be too much.

        It is kept, for networks with other encoders or other trunks too, while all together is not too much.
        """
        key = (network.main, *(spec.model_dump_json() for spec in network.specs[0].encoders.values()))
        if key not in self._kept:
            one = network.unfold([block[None, :1] for block in self.blocks])
            size = len(self.blocks[0]) * sum(part.numel() * part.element_size() for parts in one for part in parts)
            if size > UNFOLDED_BYTES:
                return None
            while sum(held for held, _ in self._kept.values()) + size > UNFOLDED_BYTES:
                self._kept.pop(next(iter(self._kept)))  # the oldest
            self._kept[key] = size, self._unfold_all(network)
        rows: tuple[tuple[Tensor, ...], ...] = self._kept[key][1]
        return rows

    @torch.no_grad()
    def _unfold_all(self, network: Network) -> tuple[tuple[Tensor, ...], ...]:
        at_once = network.rows_at_once(UNFOLDED_ROWS)
        chunks = [
            network.unfold([block.unsqueeze(0) for block in held])
            for held in zip(*(block.split(at_once) for block in self.blocks), strict=True)
        ]
        joined = [[torch.cat(parts, 1)[0] for parts in zip(*block, strict=True)] for block in zip(*chunks, strict=True)]
        return tuple(tuple(parts) for parts in joined)


def _check_positions(
    tasks: Sequence[Task[Any]], inputs: Inputs, encoders: dict[str, Encoder[Any]], targets: Sequence[np.ndarray]
) -> None:
    """Raise SpecError or SchemaError where a task answers by positions that no input, or not its input, has."""
    main = inputs.main({block: encoder.length for block, encoder in encoders.items()}, tasks)
    for task, labels in zip(tasks, targets, strict=True):
        if main is not None and task.positional and labels.shape[1] != encoders[main].length:
            name = inputs.columns[main][0].name
            raise SchemaError(
                f"Target {task.name!r} has {labels.shape[1]} cells a row, but its input {name!r} has "
                f"{encoders[main].length} positions; give both one shape, or search those targets apart."
            )


def _by_position(
    block: str,
    encoder: Encoder[Any],
    inputs: Inputs,
    values: np.ndarray,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None,
    cache: Cache | None,
) -> Tensor:
    """Return the prepared rows of a block with positions, [N, L, D] on the device: some rows at a time."""
    encoder = encoder.to(device)
    base = _digest(block, inputs) if cache is not None else None
    whole: Tensor | None = None
    for start in range(0, len(values), PREPARED_ROWS):
        rows = torch.from_numpy(values[start : start + PREPARED_ROWS])
        with torch.no_grad():
            if cache is None or base is None:
                part = encoder.prepare(rows.to(device))
            else:
                key = base.copy()
                key.update(f"{dtype}{rows.dtype}{tuple(rows.shape)}".encode() + rows.numpy().tobytes())
                part = cache(key.hexdigest(), lambda rows=rows: encoder.prepare(rows.to(device)).cpu())  # type: ignore[misc]
        if whole is None:
            whole = torch.empty(len(values), *part.shape[1:], dtype=part.dtype, device=device)
        whole[start : start + len(rows)] = part
        if progress is not None:
            progress(block, start + len(rows), len(values))
    assert whole is not None
    return whole


def _digest(block: str, inputs: Inputs) -> Any:
    """Return a hash, to go on with, of what the preparation of a block depends on besides its rows."""
    sha = hashlib.sha256(block.encode())
    for column in inputs.columns[block]:
        sha.update(column.model_dump_json().encode())
    for name, value in sorted(inputs.fitted[block].items()):
        sha.update(f"{name}{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().cpu().numpy().tobytes())
    return sha


def _splits(splits: Sequence[tuple[np.ndarray, np.ndarray]], device: str | torch.device) -> tuple[Split, ...]:
    return tuple(Split(_index(train, device), _index(valid, device)) for train, valid in splits)


def _ends(rows: Tensor) -> Tensor:
    """Return the place after the last real position of prepared rows [N, L, D], 0 where there is none: [N]."""
    places = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    parts = [(~part.isnan().any(-1) * places).amax(1) for part in rows.split(PREPARED_ROWS)]
    return torch.cat(parts).cpu()


def _index(rows: np.ndarray, device: str | torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device)
