"""Texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from mtl_bento.backbones._base import BACKBONES, Modality
from mtl_bento.backbones.module import ModuleBackbone, ModuleBackboneSpec
from mtl_bento.columns.text import TextColumn
from mtl_bento.encoders._positions import BackboneEncoder
from mtl_bento.encoders.text import TextEncoder, TextEncoderSpec
from mtl_bento.errors import MissingExtraError, SpecError
from mtl_bento.testing import check_backbone, check_encoder

OWN = TextColumn(name="note", backbone="tokens", length=3, vocabulary=("good", "bad"))
ROWS = torch.tensor([[0, 1, -1], [2, -1, -1], [-1, -1, -1], [1, 1, 0]])


def encoder(column: TextColumn, values: Tensor, n: int = 1, **fields: Any) -> TextEncoder:
    spec = TextEncoderSpec.model_validate(fields)
    generators = [torch.Generator().manual_seed(k) for k in range(n)]
    return TextEncoder([spec] * n, [column], TextEncoder.fit([column], values), generators)


def test_each_network_learns_its_own_embeddings() -> None:
    built = encoder(OWN, ROWS, 2, embedding_width=4)
    assert (built.length, built.grid, built.n_features, built.n_pooled) == (3, None, 4, 4)
    prepared = built.prepare(ROWS)
    assert prepared.nan_to_num(-1).squeeze(-1).tolist() == ROWS.tolist()
    tokens, mask = built.unfold(prepared[None])
    assert mask[0].tolist() == (ROWS >= 0).tolist()
    features = built(tokens, mask)
    assert features.shape == (2, 4, 3, 4)
    for k in range(2):
        assert torch.equal(features[k, 0, 1], built.table[k, 1])
        assert torch.equal(features[k, 1, 0], built.table[k, 2])  # "other", of which V is one more than words


def test_a_token_that_training_never_saw_stays_at_zero() -> None:
    built = encoder(OWN, torch.tensor([[0, -1, -1]]), embedding_width=4)
    assert built.table[0].any(-1).tolist() == [True, False, False]


class CountingSpec(ModuleBackboneSpec):
    """A network whose features of a token are its number and the sum of its text."""

    kind: Literal["test_counting"] = "test_counting"
    modality: ClassVar[Modality] = "text"
    n_features: ClassVar[int] = 2

    def module(self) -> nn.Module:
        return Counting()


class Counting(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.view(len(tokens), -1)  # fails at no rows, as modules that split heads do
        sums = tokens.clamp_min(0).sum(1, keepdim=True)
        return torch.stack([tokens, sums.expand_as(tokens)], -1).float()


class CountingBackbone(ModuleBackbone):
    def __init__(self, spec: CountingSpec) -> None:
        super().__init__(spec)
        self.longest, self.n_tokens = 5, 8


@pytest.fixture
def counting() -> Iterator[TextColumn]:
    BACKBONES.kinds()
    BACKBONES.register(CountingSpec)(CountingBackbone)
    yield TextColumn(name="note", backbone="test_counting", length=3)
    del BACKBONES._specs["test_counting"], BACKBONES._classes[CountingSpec]


def test_features_of_a_backbone_are_standardised_over_all_tokens(counting: TextColumn) -> None:
    check_backbone(CountingSpec)
    built = encoder(counting, ROWS)
    real = torch.tensor([0, 1, 2, 1, 1, 0]).double()
    prepared = built.prepare(ROWS)
    expected = (real - real.mean()) / real.std(unbiased=False)
    torch.testing.assert_close(prepared[ROWS >= 0][:, 0], expected.float())
    assert prepared[ROWS < 0].isnan().all()


def test_a_backbone_of_texts_keeps_the_promises_of_an_encoder(counting: TextColumn) -> None:
    rows = ROWS.repeat(30, 1).numpy()
    check_encoder(TextEncoderSpec(), columns=[counting], values=rows)


def test_texts_longer_than_the_backbone_reads_are_refused(counting: TextColumn) -> None:
    longer = counting.model_copy(update={"length": 6})
    with pytest.raises(
        SpecError, match=r"'note': backbone 'test_counting' reads at most 5 tokens of a text, not 6; give"
    ):
        TextEncoder.fit([longer], torch.zeros(1, 6, dtype=torch.long))


def test_tokens_that_the_backbone_does_not_know_are_refused_in_training_and_read_as_its_last_in_serving(
    counting: TextColumn,
) -> None:
    with pytest.raises(
        SpecError, match=r"its tokenizer has a token 8, and backbone 'test_counting' knows those below 8; "
    ):
        TextEncoder.fit([counting], torch.tensor([[8, -1, -1]]))
    built = encoder(counting, ROWS)
    unknown, last = (built.prepare(torch.tensor([[token, -1, -1]])) for token in (30, 7))
    assert torch.equal(unknown[:, 0], last[:, 0])


def test_looked_up_features_are_those_kept_for_every_row() -> None:
    column = TextColumn(name="note", backbone="wordllama", length=3)
    try:
        built = encoder(column, ROWS)
    except MissingExtraError as error:
        pytest.skip(str(error))
    prepared = built.prepare(ROWS)
    assert prepared.shape == (4, 3, 1)  # the tokens: 256 numbers of each would be gigabytes
    features, mask = built.unfold(prepared)
    kept = BackboneEncoder.prepare(built, ROWS)
    assert features.shape == (4, 3, 256)
    torch.testing.assert_close(features[mask], kept[mask])
    assert not features[~mask].any()
    drawn, _ = built.unfold(prepared[[3, 0]].unsqueeze(0))
    assert torch.equal(drawn[0], features[[3, 0]])
