"""WordLlama: embeddings of 32,000 tokens in 256 numbers, from a large language model's, made for similarity of texts.

Two files of the package wordllama are all that is read: its weights here, its tokenizer by the text column. The
package itself is not imported, since it wants `requests` and compiled code.

Letters: B rows, L tokens, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from mtl_bento.backbones._base import BACKBONES, Backbone, BackboneSpec, Modality, fill, packaged, read_weights

PACKAGE, FILE = "wordllama", "wordllama/weights/l2_supercat_256.safetensors"
N_TOKENS, WIDTH = 32_000, 256


class WordLlamaSpec(BackboneSpec):
    """WordLlama's token embeddings."""

    kind: Literal["wordllama"] = "wordllama"
    modality: ClassVar[Modality] = "text"


@BACKBONES.register(WordLlamaSpec)
class WordLlama(Backbone[WordLlamaSpec]):
    """A lookup: the same numbers for a token wherever it stands; D = 256."""

    by_token: ClassVar[bool] = True

    def __init__(self, spec: WordLlamaSpec) -> None:
        super().__init__(spec)
        self.n_features, self.n_tokens = WIDTH, N_TOKENS
        # In 16 bits, as the package keeps them: half the memory of a service.
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(N_TOKENS, WIDTH, dtype=torch.float16))

    @classmethod
    def pretrained(cls, spec: WordLlamaSpec) -> Self:
        """Return the backbone with the package's embeddings, or those of a file laid out alike."""
        path = Path(spec.weights) if spec.weights else packaged(PACKAGE, FILE, extra="text", kind=spec.kind)
        built = cls(spec)
        fill(built, read_weights(path, kind=spec.kind), kind=spec.kind, source=path)
        return built.frozen()

    def forward(self, values: Tensor) -> Tensor:
        """Tokens [B, L] -> [B, L, 256]."""
        looked_up: Tensor = self.embedding(values.clamp_min(0))
        return looked_up.float()
