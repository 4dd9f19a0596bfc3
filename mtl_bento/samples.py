"""Small kinds with positions for the contract checks of `testing`: an encoder, a trunk and a task that need nothing.

Rows hold up to six tokens, -1 where there is none; a token's features are random and fixed. Nothing that is searched
or served imports this module.

Letters: K members, M TabM's inner members, B rows, L positions, F features, D width, V tokens, W learned numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Generator, Tensor

from mtl_bento.columns._base import Column
from mtl_bento.columns.image import ImageColumn
from mtl_bento.columns.text import TextColumn
from mtl_bento.columns.vector import VectorColumn
from mtl_bento.encoders._base import ENCODERS, Encoder, PositionsSpec, mean_of_real
from mtl_bento.layers import uniform
from mtl_bento.spec import MustMatch
from mtl_bento.tasks.regression import Regression, RegressionSpec
from mtl_bento.trunks._base import TRUNKS, Trunk, TrunkSizes, TrunkSpec
from mtl_bento.trunks.mlp import Layers

LENGTH, GRID = 6, (2, 3)
"""Positions of a row, and how they lie."""
N_TOKENS = 9
"""V."""
BLOCK = "sample_positions:places"
"""The block of the sample rows."""


class SamplePositionsSpec(PositionsSpec):
    """Tokens as fixed features, and learned ones beside them."""

    kind: Literal["sample_positions"] = "sample_positions"
    learned: Annotated[int, Field(ge=0, le=8), MustMatch] = 0
    """Learned numbers of a token W."""


@ENCODERS.register(SamplePositionsSpec)
class SamplePositions(Encoder[SamplePositionsSpec]):
    """Fixed features of tokens on a grid of 2 x 3, and learned ones where the spec asks for them."""

    vectors: Tensor
    table: Tensor
    length = LENGTH
    grid = GRID

    def __init__(
        self,
        specs: Sequence[SamplePositionsSpec],
        columns: Sequence[Column],
        fitted: dict[str, Tensor],
        generators: Sequence[Generator],
    ) -> None:
        super().__init__(specs, columns, fitted, generators)
        self.learned, n = specs[0].learned, len(specs)
        self.n_features = self.vectors.shape[1] + self.learned
        if self.learned:
            shapes = [(N_TOKENS, self.learned)] * n
            self.stack("table", shapes, [uniform(self.learned)] * n, generators, decay=False)

    @classmethod
    def fit(cls, columns: Sequence[Column], values: Tensor) -> dict[str, Tensor]:
        """Draw the fixed features, [V, 4]."""
        del columns, values
        return {"vectors": torch.randn(N_TOKENS, 4, generator=Generator().manual_seed(3))}

    def prepare(self, values: Tensor) -> Tensor:
        """Tokens [B, L] -> the token itself and its features [B, L, 5], NaN where there is none."""
        codes = values.clamp(0, N_TOKENS - 1)
        numbers = torch.cat([codes.unsqueeze(-1).to(self.vectors.dtype), self.vectors[codes]], -1)
        return numbers.masked_fill((values < 0).unsqueeze(-1), torch.nan)

    def forward(self, *unfolded: Tensor) -> Tensor:
        """Numbers [K or 1, B, L, 5] and mask -> features [K or 1, B, L, F]."""
        numbers, _ = unfolded
        fixed = numbers[..., 1:]
        if not self.learned:
            return fixed
        members = len(self.table)
        codes = numbers[..., 0].long().expand(members, -1, -1)
        vectors = torch.stack([self.table[k][codes[k]] for k in range(members)])
        return torch.cat([fixed.expand(members, -1, -1, -1), vectors], -1)


class SampleTrunkSpec(TrunkSpec):
    """Size of a trunk that reads each position by itself and the mean of all."""

    kind: Literal["sample_positional"] = "sample_positional"


@TRUNKS.register(SampleTrunkSpec)
class SampleTrunk(Trunk[SampleTrunkSpec]):
    """The layers of an MLP at each position, on its features and the mean of those that are real."""

    positional = True

    def __init__(self, specs: Sequence[SampleTrunkSpec], sizes: TrunkSizes, generators: Sequence[Generator]) -> None:
        super().__init__(specs, sizes, generators)
        self.layers = Layers(specs, 2 * sizes.n_features, generators)

    def forward(self, features: Tensor, mask: Tensor) -> list[Tensor]:  # type: ignore[override]
        """features [K or 1, B, L, F], mask [K or 1, B, L] -> T of [K, 1, B, L, D]."""
        mean = mean_of_real(features, mask).unsqueeze(2).expand_as(features)
        state: Tensor = self.layers(torch.cat([features, mean], -1).flatten(1, 2).unsqueeze(1))
        return [state.unflatten(2, features.shape[1:3])] * self.sizes.n_tasks


class SampleCells(Regression):
    """A number at each position: targets float32 [B, L], NaN where not known; answers [B, L]."""

    positional = True

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return the lists as they are, float32 [B, L]."""
        return np.array(values.to_pylist(), dtype=np.float32)

    def known(self, targets: Tensor) -> Tensor:
        """Return the rows with a known position."""
        return ~targets.isnan().all(-1)

    def row_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, L, 1], targets [K or 1, 1, B, L] -> mean squares of known positions [K, M, B]."""
        known = ~targets.isnan()
        errors = (outputs.squeeze(-1) - targets.nan_to_num(0.0).to(outputs.dtype)).square() * known
        return errors.sum(-1) / known.sum(-1).clamp_min(1)

    def soft_losses(self, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, L, 1], answers [K or 1, 1, B, L] -> mean squares of all positions [K, M, B]."""
        del targets
        return (outputs.squeeze(-1) - answers).square().mean(-1)

    def activate(self, outputs: Tensor) -> Tensor:
        """outputs [..., L, 1] -> numbers side by side [..., L]."""
        return outputs.flatten(-2)

    def answer_losses(self, answers: Tensor, targets: Tensor) -> Tensor:
        """answers [..., B, L], targets [..., B, L] -> mean squares [..., B], NaN where no position is known."""
        losses = self.row_losses(answers.unsqueeze(-1), targets)
        return torch.where(self.known(targets), losses, torch.nan)

    def calibrate(self, answers: np.ndarray, targets: Tensor, weights: np.ndarray | None = None) -> Self:
        """Return the task as it is: there is no interval by position."""
        del answers, targets, weights
        return self

    def trivial_loss(self, targets: Tensor) -> float:
        """Return the variance of the known positions."""
        return float(targets[~targets.isnan()].double().var(unbiased=False))


def sample_rows(n: int) -> tuple[dict[str, tuple[Column, ...]], dict[str, np.ndarray], SampleCells, np.ndarray]:
    """Return rows of tokens, some short, some empty, as columns and values by block; a task of cells and its labels."""
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, N_TOKENS, (n, LENGTH))
    tokens[np.arange(LENGTH) >= rng.integers(0, LENGTH + 1, (n, 1))] = -1
    labels = np.where((tokens < 0) | (rng.random((n, LENGTH)) < 0.2), np.nan, np.sin(tokens)).astype(np.float32)
    columns: dict[str, tuple[Column, ...]] = {BLOCK: (VectorColumn(name="places", size=LENGTH),)}
    return columns, {BLOCK: tokens}, SampleCells(RegressionSpec(name="cells")), labels


def _pictures(n: int) -> tuple[tuple[Column, ...], np.ndarray]:
    """Return pictures of noise of 8 x 12 pixels, some missing, read as they are on a grid of 2 x 3."""
    column = ImageColumn(name="photo", backbone="pixels", size=(8, 12), grid=(2, 3))
    values = np.random.default_rng(4).integers(0, 256, (n, column.n_features), dtype=np.uint8)
    values[:, -1] = 1
    values[::7] = 0
    return (column,), values


def _texts(n: int) -> tuple[tuple[Column, ...], np.ndarray]:
    """Return texts of up to six words, some empty, of eight known words and others."""
    column = TextColumn(name="note", backbone="tokens", length=LENGTH, vocabulary=tuple("abcdefgh"))
    _, blocks, _, _ = sample_rows(n)
    return (column,), blocks[BLOCK]


OWN_ROWS: dict[str, Callable[[int], tuple[tuple[Column, ...], np.ndarray]]] = {"image": _pictures, "text": _texts}
"""Columns and values of the blocks that a column has to itself, by kind."""
