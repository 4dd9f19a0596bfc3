"""Shared bottom (Caruana, 1997): one multilayer perceptron whose last layer is every task's state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Generator, Tensor, nn

from mtl_bento.layers import ACTIVATIONS, Dropout, StackedLinear, narrowed
from mtl_bento.perceptron import perceptron
from mtl_bento.trunks._base import TRUNKS, Trunk, TrunkSizes, TrunkSpec


class MLPSpec(TrunkSpec):
    """Size of a shared-bottom trunk."""

    kind: Literal["mlp"] = "mlp"


class Layers(nn.Module):
    """`shared_depth` layers of linear map, activation and dropout for K members, narrowed as depth grows.

    Letters: K members, M TabM's inner members or a mixture's experts, B rows, F inputs, D width.

    Args:
        specs: one a member, deepest first.
        n_features: F.
        generators: one a member, for the initial weights.
        inner: M where each of them has weights of its own, 1 where they share.
    """

    def __init__(
        self, specs: Sequence[TrunkSpec], n_features: int, generators: Sequence[Generator], *, inner: int = 1
    ) -> None:
        super().__init__()
        depths = [spec.shared_depth for spec in specs]
        widest = max(spec.width for spec in specs)
        self.activation = ACTIVATIONS[specs[0].activation]
        self.linears, self.dropouts = nn.ModuleList(), nn.ModuleList()
        self.counts: list[int] = []
        for level in range(depths[0]):
            held = [spec for spec, depth in zip(specs, depths, strict=True) if depth > level]
            fan_in = [spec.width if level else n_features for spec in held]
            padded = (widest if level else n_features, widest)
            draws = generators[: len(held)]
            fan_out = [spec.width for spec in held]
            self.linears.append(StackedLinear(fan_in, fan_out, generators=draws, inner=inner, padded=padded))
            self.dropouts.append(Dropout([spec.dropout for spec in held]))
            self.counts.append(len(held))

    def forward(self, x: Tensor) -> Tensor:
        """x [K or 1, M, B, F] -> [K, M, B, D]."""
        if self.activation is torch.relu:
            return self._at_once(x)
        x = self._layer(0, x)
        for level in range(1, len(self.linears)):
            x = narrowed(x, self.counts[level], partial(self._layer, level))
        return x

    def _layer(self, level: int, x: Tensor) -> Tensor:
        out: Tensor = self.dropouts[level](self.activation(self.linears[level](x)))
        return out

    def _at_once(self, x: Tensor) -> Tensor:
        """Return the same for ReLU, all layers as one function."""
        linears = [cast(StackedLinear, linear) for linear in self.linears]
        members, inner = linears[0].weight.shape[:2]
        each, rows, n_features = (x.shape[1] if inner == 1 else 1), x.shape[2], x.shape[3]
        # Weights [G, F, D] and biases [G, 1, D]: a group is a member, or an inner member with weights of its own.
        weights = [linear.weight.flatten(0, 1) for linear in linears]
        biases = [linear.bias.flatten(0, 1) for linear in linears if linear.bias is not None]
        groups, width = len(weights[0]), weights[0].shape[2]
        x = x.expand(members, each * inner, rows, n_features).reshape(groups, each * rows, n_features)
        dropped = [
            cast(Dropout, dropout).at(len(weight), each * rows, width, x.dtype)
            for dropout, weight in zip(self.dropouts, weights, strict=True)
        ]
        return perceptron(x, weights, biases, dropped).view(members, each * inner, rows, width)


@TRUNKS.register(MLPSpec)
class MLP(Trunk[MLPSpec]):
    """Shared bottom, K members stacked."""

    def __init__(self, specs: Sequence[MLPSpec], sizes: TrunkSizes, generators: Sequence[Generator]) -> None:
        super().__init__(specs, sizes, generators)
        self.layers = Layers(specs, sizes.n_features, generators)

    def forward(self, features: Tensor) -> list[Tensor]:
        """features [K or 1, B, F] -> T of [K, 1, B, D], the same state for every task."""
        return [self.layers(features.unsqueeze(1))] * self.sizes.n_tasks
