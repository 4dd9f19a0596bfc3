"""Rows as tensors on a device: prepared blocks, labels, weights, and the splits that members learn from.

Letters: N rows, T tasks, C columns of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl_bento.encoders._base import ENCODERS
from mtl_bento.network import Inputs, Network
from mtl_bento.tasks._base import Task

UNFOLDED_BYTES = 2**29
"""Most that features of all rows may take in a process; beyond it, they are computed for each batch."""
UNFOLDED_ROWS = 2**16
"""Rows that are unfolded at once."""


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
    """Prepared blocks [N, C']."""
    targets: tuple[Tensor, ...]
    """Labels of each task, [N, ...]."""
    weights: Tensor | None
    """Row weights [N], or None where all are 1."""
    splits: tuple[Split, ...]
    trivial: Tensor
    """Loss of each task's best constant on the training rows, [T]: the unit of every loss here."""
    _kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What `unfolded` made last."""

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
    ) -> Dataset:
        """Return the dataset of encoded rows; `splits` are pairs of row indices (train, valid)."""
        prepared = []
        for block, columns in inputs.columns.items():
            spec = ENCODERS.spec_class(block)()
            encoder = ENCODERS.class_of(type(spec))([spec], columns, inputs.fitted[block], [torch.Generator()]).to(
                dtype
            )
            prepared.append(encoder.prepare(torch.from_numpy(blocks[block])).to(device))
        labels = tuple(torch.from_numpy(target) for target in targets)
        learned = torch.from_numpy(np.unique(np.concatenate([train for train, _ in splits])))
        trivial = [task.trivial_loss(label[learned]) for task, label in zip(tasks, labels, strict=True)]
        return cls(
            tasks=tuple(tasks),
            inputs=inputs,
            blocks=tuple(prepared),
            targets=tuple(label.to(device) for label in labels),
            weights=None if weights is None else torch.from_numpy(weights).to(device=device, dtype=dtype),
            splits=tuple(Split(_index(train, device), _index(valid, device)) for train, valid in splits),
            trivial=torch.tensor(trivial, device=device, dtype=dtype),
        )

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

    def take(self, values: Tensor, index: Tensor) -> Tensor:
        """Return rows `index` [K, B] of values [N, ...]: [K, B, ...]."""
        return values.index_select(0, index.reshape(-1)).view(*index.shape, *values.shape[1:])

    def inputs_of(self, index: Tensor) -> list[Tensor]:
        """Return the prepared blocks of rows `index` [K, B]: each [K, B, C']."""
        return [self.take(block, index) for block in self.blocks]

    def labels_of(self, index: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Return labels [K, B, ...] of each task and weights [K, B] of rows `index` [K, B]."""
        weights = None if self.weights is None else self.take(self.weights, index)
        return [self.take(target, index) for target in self.targets], weights

    def unfolded(self, network: Network) -> tuple[tuple[Tensor, ...], ...] | None:
        """Return what the encoders of a network read of every row, [N, C''], or None where that would be too much.

        It is kept until a network with other encoders comes.
        """
        key = tuple(spec.model_dump_json() for spec in network.specs[0].encoders.values())
        if self._kept.get("key") != key:
            self._kept.update(key=key, rows=self._unfold_all(network))
        rows: tuple[tuple[Tensor, ...], ...] | None = self._kept["rows"]
        return rows

    def _unfold_all(self, network: Network) -> tuple[tuple[Tensor, ...], ...] | None:
        one = network.unfold([block[:1] for block in self.blocks])
        n_rows = len(self.blocks[0])
        if n_rows * sum(part.numel() * part.element_size() for parts in one for part in parts) > UNFOLDED_BYTES:
            return None
        chunks = [network.unfold(held) for held in zip(*(b.split(UNFOLDED_ROWS) for b in self.blocks), strict=True)]
        joined = [[torch.cat(parts) for parts in zip(*block, strict=True)] for block in zip(*chunks, strict=True)]
        return tuple(tuple(parts) for parts in joined)


def _index(rows: np.ndarray, device: str | torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device)
