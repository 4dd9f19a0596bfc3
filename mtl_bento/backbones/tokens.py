"""No frozen network: each network of the search learns its own embedding of each token.

Letters: B rows, L tokens.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from torch import Tensor

from mtl_bento.backbones._base import BACKBONES, Backbone, BackboneSpec, Modality
from mtl_bento.errors import SpecError


class TokensSpec(BackboneSpec):
    """Learned embeddings."""

    kind: Literal["tokens"] = "tokens"
    modality: ClassVar[Modality] = "text"


@BACKBONES.register(TokensSpec)
class Tokens(Backbone[TokensSpec]):
    """Nothing that is known beforehand: D = 0."""

    by_token: ClassVar[bool] = True
    learned: ClassVar[bool] = True

    def __init__(self, spec: TokensSpec) -> None:
        super().__init__(spec)
        self.n_features = 0

    @classmethod
    def pretrained(cls, spec: TokensSpec) -> Self:
        """Return the backbone: it has no weights."""
        if spec.weights:
            raise SpecError(f"Backbone {spec.kind!r} has no weights; write `backbone: {spec.kind}`.")
        return cls(spec).frozen()

    def forward(self, values: Tensor) -> Tensor:
        """Tokens [B, L] -> [B, L, 0]."""
        return values.new_zeros(*values.shape, 0).float()
