"""Self-attention over the positions of an input (Vaswani et al., NeurIPS 2017): each position sees all of its row.

Ours normalises before each part (Xiong et al., ICML 2020), by the root mean square (Zhang and Sennrich, NeurIPS 2019)
over a member's true width, so that it trains without a warm-up; where a position lies is said twice: by a learned
vector, and by turning queries and keys by angles that grow along the row (Su et al., 2021), of which half the pairs
are for the rows and half for the columns of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from mtl_bento.layers import ACTIVATIONS, Dropout, StackedLinear, narrowed, stacked_product, uniform
from mtl_bento.spec import MustMatch
from mtl_bento.trunks._base import TRUNKS, Trunk, TrunkSizes, TrunkSpec

EPSILON = 1e-6
"""Added to a mean square, so that a position of zeros stays zeros."""
SLOWEST = 100.0
"""Positions after which the slowest pair has turned by one radian."""


class AttentionSpec(TrunkSpec):
    """Size of an attention trunk: a map to `width` at each position, then `shared_depth` layers."""

    kind: Literal["attention"] = "attention"
    head_size: Annotated[int, Field(ge=4, le=256, multiple_of=4), MustMatch] = 16
    """Units of one attention head; there are as many heads as cover `width`."""
    hidden: Annotated[int, Field(ge=1, le=8), MustMatch] = 2
    """How many times `width` the hidden units of a layer's second part are."""

    @property
    def copies(self) -> int:
        """How many times `width` numbers a layer makes of a position: queries, keys, values, their sum, the hidden."""
        return 4 + self.hidden


class Layer(nn.Module):
    """Attention, then a hidden layer; each adds to what it reads, normalised. K members.

    Letters: K members, B rows, L positions, D width, H heads, S units of a head.

    Args:
        specs: the members that have this layer.
        widest: the padded width D.
        generators: one a member, for the initial weights.
    """

    share: Tensor

    def __init__(self, specs: Sequence[AttentionSpec], widest: int, generators: Sequence[Generator]) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[specs[0].activation]
        self.size = size = specs[0].head_size
        widths = [spec.width for spec in specs]
        # A padded head has keys and values of zeros: it answers zeros, and its weights see no gradient.
        held, hidden = [_heads(w, size) * size for w in widths], [spec.hidden * spec.width for spec in specs]
        made, unfolded = _heads(widest, size) * size, specs[0].hidden * widest

        def linear(fan_in: list[int], fan_out: list[int], *padded: int, bias: bool = True) -> StackedLinear:
            return StackedLinear(fan_in, fan_out, generators=generators, bias=bias, padded=(padded[0], padded[1]))

        self.reads = nn.ModuleList(linear(widths, held, widest, made, bias=False) for _ in range(3))
        self.writes = linear(held, widths, made, widest)
        self.first, self.second = linear(widths, hidden, widest, unfolded), linear(hidden, widths, unfolded, widest)
        # A unit is dropped at all positions of a row, or at none.
        self.dropout = Dropout([spec.dropout for spec in specs])
        self.count = len(specs)

    def forward(self, x: Tensor, share: Tensor, seen: Tensor, angles: Tensor) -> Tensor:
        """x [K, B, L, D], share [K, 1, 1, 1], seen [K * B, 1, 1, L], complex angles [L, 1, S / 2] -> the same as x."""
        x = x + self.dropout.by_row(self._attended(_normalised(x, share), seen, angles))
        return x + self.dropout.by_row(self._hidden(_normalised(x, share)))

    def _attended(self, x: Tensor, seen: Tensor, angles: Tensor) -> Tensor:
        members, rows, length, width = x.shape
        reads: list[Tensor] = [linear.weight for linear in cast(list[StackedLinear], self.reads)]
        made = reads[0].shape[-1]
        read = stacked_product(x.view(members, 1, rows * length, width), torch.cat(reads, -1), None)
        read = read.view(members * rows, length, 3, made // self.size, self.size)
        turned = _turned(read[:, :, :2].flatten(2, 3), angles)  # [K * B, L, 2 * H, S]
        query, key = (part.transpose(1, 2) for part in turned.chunk(2, 2))  # [K * B, H, L, S]
        value = read[:, :, 2].transpose(1, 2)
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        found = found.transpose(1, 2).reshape(members, 1, rows * length, made)
        out: Tensor = self.writes(found)
        return out.view(x.shape)

    def _hidden(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.activation(self.first(x.flatten(1, 2).unsqueeze(1))))
        return out.view(x.shape)


@TRUNKS.register(AttentionSpec)
class Attention(Trunk[AttentionSpec]):
    """Layers of self-attention, K members stacked; members agree on the size of a head, not on how many they have.

    Letters: K members, B rows, L positions, F inputs, D width.
    """

    positional: ClassVar[bool] = True
    places: Tensor
    share: Tensor
    angles: Tensor

    def __init__(self, specs: Sequence[AttentionSpec], sizes: TrunkSizes, generators: Sequence[Generator]) -> None:
        super().__init__(specs, sizes, generators)
        widest = max(self.widths)
        self.first = StackedLinear([sizes.n_features] * len(specs), self.widths, generators=generators)
        shapes = [(sizes.length, width) for width in self.widths]
        self.stack("places", shapes, [uniform(width) for width in self.widths], generators, decay=False)
        self.layers = nn.ModuleList(
            Layer(specs[: len(held)], widest, generators[: len(held)])
            for level in range(specs[0].shared_depth)
            if (held := [spec for spec in specs if spec.shared_depth > level])
        )
        share = 1 / torch.tensor(self.widths, dtype=torch.float64).view(-1, 1, 1, 1)
        self.register_buffer("share", share, persistent=False)
        self.register_buffer("angles", _angles(sizes, specs[0].head_size), persistent=False)

    def forward(self, features: Tensor, mask: Tensor) -> list[Tensor]:  # type: ignore[override]
        """features [K or 1, B, L, F], mask [K or 1, B, L] -> T of [K, 1, B, L, D], the same state for every task.

        Where there is no position the state is zero.
        """
        members, (rows, length) = len(self.specs), features.shape[1:3]
        x = self.first(features.flatten(1, 2).unsqueeze(1))  # [K, 1, B * L, D]
        x = x.view(members, rows, length, x.shape[-1]) + self.places[:, None, :length]
        share, angles = self.share.to(x.dtype), torch.view_as_complex(self.angles[:length].to(x.dtype))
        # A row without any position sees all of them instead of none, which would be NaN; its state is zero anyway.
        seen = (mask | ~mask.any(-1, keepdim=True)).expand(members, rows, length)
        for layer in cast(list[Layer], self.layers):
            count = layer.count
            keys = seen[:count].reshape(count * rows, 1, 1, length)
            x = narrowed(x, count, partial(layer, share=share[:count], seen=keys, angles=angles))
        return [(_normalised(x, share) * mask.unsqueeze(-1)).unsqueeze(1)] * self.sizes.n_tasks


def _heads(width: int, size: int) -> int:
    return -(-width // size)


def _normalised(x: Tensor, share: Tensor) -> Tensor:
    """Return x with a mean square of 1 over each member's true width, `share` being 1 / width."""
    return x * (x.square().sum(-1, keepdim=True) * share + EPSILON).rsqrt()


def _angles(sizes: TrunkSizes, head_size: int) -> Tensor:
    """Return cosine and sine of the angle of each position and pair of units, [L, 1, S / 2, 2]."""
    places = torch.arange(sizes.length, dtype=torch.float64).unsqueeze(1)
    sides = [places] if sizes.grid is None else [places // sizes.grid[1], places % sizes.grid[1]]
    n = head_size // 2 // len(sides)
    speeds = SLOWEST ** -(torch.arange(n, dtype=torch.float64) / n)
    angles = torch.cat([side * speeds for side in sides], 1).unsqueeze(1)
    # Not complex: a module that is moved to another precision would lose its sines.
    return torch.stack([angles.cos(), angles.sin()], -1)


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Return pairs of units turned: x [..., L, H, S], complex angles [L, 1, S / 2] -> the same shape as x."""
    pairs = torch.view_as_complex(x.unflatten(-1, (x.shape[-1] // 2, 2)))
    return torch.view_as_real(pairs * angles).flatten(-2)
