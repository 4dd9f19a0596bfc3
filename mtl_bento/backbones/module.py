"""An ordinary torch module as a backbone, from a package of the user's.

    class MySpec(ModuleBackboneSpec):
        kind: Literal["mine"] = "mine"
        modality: ClassVar[Modality] = "image"
        n_features: ClassVar[int] = 256

        def module(self) -> nn.Module:     # shares of white [B, 3, rows, columns] -> [B, 256, r, c]
            return MyNetwork()             # of texts: tokens int64 [B, L], -1 for none -> [B, L, n_features]

    BACKBONES.register(MySpec)(ModuleBackbone)

`backbone: mine:weights.pth` fills it from a file of its state; without one it is used as `module` returns it.

Letters: B rows, L tokens, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mtl_bento.backbones._base import Backbone, BackboneSpec, fill, read_weights
from mtl_bento.backbones._maps import scaled
from mtl_bento.errors import SpecError


class ModuleBackboneSpec(BackboneSpec):
    """A backbone whose network is an ordinary module; subclass it, give it a `kind` and write `module`."""

    n_features: ClassVar[int]
    """Features D of a position."""

    @abstractmethod
    def module(self) -> nn.Module:
        """Return the module: of pictures to a map [B, D, r, c], of texts to features [B, L, D]."""


class ModuleBackbone(Backbone[ModuleBackboneSpec]):
    """The module of a spec, in evaluation mode."""

    def __init__(self, spec: ModuleBackboneSpec) -> None:
        super().__init__(spec)
        self.n_features = spec.n_features
        self.module = spec.module()

    @classmethod
    def pretrained(cls, spec: ModuleBackboneSpec) -> Self:
        """Return the backbone with the weights of the file that its spec names, or as the module comes."""
        built = cls(spec)
        if spec.weights:
            fill(built.module, read_weights(spec.weights, kind=spec.kind), kind=spec.kind, source=spec.weights)
        return built.frozen()

    def forward(self, values: Tensor) -> Tensor:
        """Pixels or tokens -> what the module answers; raises SpecError where that has another number of features."""
        if not len(values):  # where all pictures or texts of a request are missing; many modules fail at no rows
            return self.forward(values.new_zeros(1, *values.shape[1:]))[:0]
        images = self.spec.modality == "image"
        given = scaled(values, (0.0,) * 3, (1.0,) * 3, torch.float32) if images else values
        answer: Tensor = self.module(given)
        wanted = "[B, D, r, c]" if images else "[B, L, D]"
        if answer.dim() != (4 if images else 3) or answer.shape[1 if images else 2] != self.n_features:
            raise SpecError(
                f"Backbone {self.spec.kind!r}: its module answers {list(answer.shape)}, not {wanted} "
                f"with D = {self.n_features}."
            )
        return answer
