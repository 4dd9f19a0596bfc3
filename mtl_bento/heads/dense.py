"""A linear map, and beside it a hidden layer where the search gives it a width.

The linear path stays where there is a hidden layer (a skip connection), so that heads of width 0 and of any other
width share a stack without a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Generator, Tensor

from mtl_bento.heads._base import HEADS, Head, HeadSpec
from mtl_bento.layers import StackedLinear, joined
from mtl_bento.spec import Searched


class DenseHeadSpec(HeadSpec):
    """Size of a dense head."""

    kind: Literal["dense"] = "dense"
    width: Annotated[int, Field(ge=0, le=4096), Searched(choices=(0, 32, 64))] = 0
    """Units of the hidden layer; 0 is a linear head."""


@HEADS.register(DenseHeadSpec)
class DenseHead(Head[DenseHeadSpec]):
    """outputs = linear(state) + second(relu(first(state))), K members stacked.

    The hidden layer is shared by TabM's inner members, the output layers are their own.
    """

    def __init__(
        self,
        specs: Sequence[DenseHeadSpec],
        fan_in: Sequence[int],
        n_outputs: int,
        inner: int,
        generators: Sequence[Generator],
    ) -> None:
        super().__init__(specs, fan_in, n_outputs, inner, generators)
        outputs, widths = [n_outputs] * len(specs), [spec.width for spec in specs]
        self.linear = StackedLinear(fan_in, outputs, inner=inner, generators=generators)
        self.hidden = any(widths)
        if self.hidden:
            self.first = StackedLinear(fan_in, widths, generators=generators)
            self.second = StackedLinear(widths, outputs, inner=inner, bias=False, generators=generators)

    def forward(self, state: Tensor) -> Tensor:
        """state [K, M, B, D] -> outputs [K, M, B, O]."""
        return self.together([self], state)[0]

    @classmethod
    def together(cls, heads: Sequence[Self], state: Tensor) -> list[Tensor]:
        """Return the outputs of several heads of one state, their first layers as one product."""
        return cls.joined(heads)(state)

    @classmethod
    def joined(cls, heads: Sequence[Self]) -> Callable[[Tensor], list[Tensor]]:
        """Return `together` for heads whose parameters stay as they are."""
        linear = joined([head.linear for head in heads])
        deep = [(place, head) for place, head in enumerate(heads) if head.hidden]
        first = joined([head.first for _, head in deep], change=torch.relu) if deep else None

        def together(state: Tensor) -> list[Tensor]:
            outputs = linear(state)
            hidden = first(state) if first else []
            for (place, head), units in zip(deep, hidden, strict=True):
                outputs[place] = outputs[place] + head.second(units)
            return outputs

        return together
