"""Boosted trees as tensors: one LightGBM booster, compiled by `mtl_bento_search.trees` and evaluated by torch alone.

Every split asks one thing, whether a number is at most a threshold; what differs between splits is settled once a row,
in the *columns* that they read. A column is a feature whose missing cells are put below all thresholds, or left NaN,
which is at most none of them, as the splits that read it send them; or one set of categories: 0 where the row's is in
it, 1 where it is not. All trees are then descended together, a level at a time; the children of a node lie side by
side, and a leaf is its own right child.

Letters: B rows, F features, C columns, I iterations, O outputs, Q nodes of all trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ZERO = 1e-35
"""Numbers of at most this size are zero to LightGBM (`kZeroThreshold`)."""
CELLS = 2**22
"""Numbers that are held at once for some rows: columns, and places in all trees."""
CACHED = 2**16
"""The same on a CPU, where what stays in its cache is twice as fast."""
FARTHEST = 2.0**31 - 128
"""The largest float32 that is a category: beyond it there is none."""


@dataclass(frozen=True)
class Forest:
    """The trees of one task from one split of the rows.

    All that it is, `tensors`: `number_source`, `number_zero`, `number_missing` [numeric columns]: the feature, whether
    its zeros are missing too, and where missing cells go (int8: 0 as the number 0 does, 1 left, 2 right);
    `set_source`, `set_start`, `set_words` [sets]: the feature, and where the set's bits lie in `words` (int32);
    `column`, `threshold`, `right` [Q]: what a node reads, and its right child, the left one being the next;
    `value` [Q] float64; `roots` [I, O]; `depth` []; `bias` [O] float64.
    """

    task: str
    tensors: dict[str, Tensor]

    def cpu(self) -> Forest:
        """Return the forest in the memory of the CPU."""
        return Forest(self.task, {name: tensor.cpu() for name, tensor in self.tensors.items()})

    @property
    def n_outputs(self) -> int:
        """O."""
        return len(self.tensors["bias"])

    @property
    def n_trees(self) -> int:
        """How many trees it has."""
        return self.tensors["roots"].numel()

    def to(self, device: str | torch.device) -> Forest:
        """Return the forest on a device."""
        return Forest(self.task, {name: tensor.to(device) for name, tensor in self.tensors.items()})

    @torch.no_grad()
    def margins(self, features: Tensor) -> Tensor:
        """Features [B, F], NaN where missing -> raw predictions [B, O] float32, LightGBM's own to 1e-6.

        They are in the space of the head's outputs: `Task.activate` makes them answers.
        """
        cells = CACHED if features.device.type == "cpu" else CELLS
        at_once = max(1, cells // max(self._n_columns, self.n_trees, 1))
        return torch.cat([self._margins(rows.float()) for rows in features.split(at_once)])

    @property
    def _n_columns(self) -> int:
        return len(self.tensors["number_source"]) + len(self.tensors["set_source"])

    @cached_property
    def _tables(self) -> dict[str, Tensor]:
        """The tensors as torch indexes by them."""
        table = {name: t.long() if t.dtype == torch.int32 else t for name, t in self.tensors.items()}
        leaf = table["right"] == torch.arange(len(table["right"]), device=table["right"].device)
        table["threshold"] = table["threshold"].masked_fill(leaf, torch.nan)  # nothing is at most NaN
        stands = torch.tensor([0.0, -torch.inf, torch.nan], device=leaf.device)
        return table | {"missing": stands[table["number_missing"].long()]}

    @cached_property
    def _depth(self) -> int:
        return int(self.tensors["depth"])

    def _margins(self, features: Tensor) -> Tensor:
        table = self._tables
        columns = torch.cat([self._numbers(features), self._outside(features)], 1)  # [B, C]
        node = table["roots"].flatten().expand(len(features), -1)  # [B, I * O]
        for _ in range(self._depth):
            to_left = columns.gather(1, table["column"][node]) <= table["threshold"][node]
            node = table["right"][node] + to_left
        leaves = table["value"][node].view(len(features), *table["roots"].shape)  # [B, I, O]
        margins: Tensor = leaves.sum(1) + table["bias"]
        return margins.float()

    def _numbers(self, features: Tensor) -> Tensor:
        """Return the numeric columns [B, C]."""
        table = self._tables
        numbers = features.index_select(1, table["number_source"])
        numbers = numbers.masked_fill(numbers.abs() <= ZERO, 0.0)
        missing = numbers.isnan() | ((numbers == 0) & table["number_zero"])
        filled: Tensor = torch.where(missing, table["missing"], numbers)
        return filled

    def _outside(self, features: Tensor) -> Tensor:
        """Return 1 where the category of a row is not in a set, 0 where it is: [B, sets]."""
        table = self._tables
        if not len(table["set_source"]):
            return features[:, :0]
        # Towards zero, as LightGBM takes a number for a category; a missing one is in no set.
        codes = features.nan_to_num(-1.0).clamp(-1.0, FARTHEST).long().index_select(1, table["set_source"])
        word = codes >> 5
        known = (codes >= 0) & (word < table["set_words"])
        bits = table["words"][table["set_start"] + torch.where(known, word, 0)] >> (codes & 31)
        return 1.0 - (known & (bits & 1).bool()).float()
