"""Texts into tokens, and where they stand."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_tokenizer

from mtl_bento.columns import text
from mtl_bento.columns.text import TextColumn
from mtl_bento.errors import ArtifactError, MissingExtraError, SchemaError, SpecError
from mtl_bento.schema import Schema
from mtl_bento.wire import Reader, cells_to_table

OWN = TextColumn(name="note", backbone="tokens", length=4, vocabulary=("to", "boston", "!", "去"))


def column_of(cells: Any) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(cells, pa.string())])


def learned(cells: Any, **options: Any) -> TextColumn:
    return TextColumn.chosen("note", column_of(cells), options)


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a tiny tokenizer; none is held yet."""
    monkeypatch.setattr(text, "_HELD", {})
    return tiny_tokenizer.write(tmp_path / "tokenizer.json")


def test_words_become_their_places_and_others_the_number_after() -> None:
    cells = column_of(["Boston to Boston!", "去哪 to", "", None, "   \n", "to to to to to to"])
    assert OWN.encode(cells).tolist() == [
        [1, 0, 1, 2],
        [3, 4, 0, -1],
        [-1] * 4,
        [-1] * 4,
        [-1] * 4,
        [0, 0, 0, 0],
    ]
    assert OWN.n_tokens == 5


def test_spans_are_those_of_the_tokens_that_are_kept() -> None:
    cells = ["  Fly to BOSTON !now", None, "İİ to"]
    spans = OWN.spans(column_of(cells))
    assert spans == [[(2, 5), (6, 8), (9, 15), (16, 17)], [], [(0, 2), (3, 5)]]
    assert cells[0] is not None
    assert [cells[0][start:end] for start, end in spans[0]] == ["Fly", "to", "BOSTON", "!"]
    # A letter that becomes two in lower case moves nothing.
    assert OWN.encode(column_of(cells))[2].tolist() == [4, 0, -1, -1]


@pytest.mark.parametrize(
    ("cell", "tokens"),
    [
        ("don't", ["don", "'", "t"]),
        ("Übermaß, naïve", ["Übermaß", ",", "naïve"]),
        ("去波士顿ok", ["去", "波", "士", "顿", "ok"]),
        ("สวัสดี", list("สวัสดี")),
        ("Привет мир", ["Привет", "мир"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("👍🏽ok", ["👍", "🏽", "ok"]),
        ("a_b 3.5\t$", ["a_b", "3", ".", "5", "$"]),
    ],
)
def test_scripts_marks_and_emoji_are_split_by_what_they_are(cell: str, tokens: list[str]) -> None:
    column = OWN.model_copy(update={"length": 16})
    (spans,) = column.spans(column_of([cell]))
    assert [cell[start:end] for start, end in spans] == tokens


def test_a_vocabulary_holds_words_of_five_texts_the_most_frequent_first() -> None:
    cells = [
        "Red book",
        "red RED red",
        "red? Blue",
        "Red blue",
        "a red blue",
        "blue",
        "blue Müller Müller Müller Müller Müller",
    ]
    column = learned(cells, backbone="tokens")
    assert column.vocabulary == ("blue", "red")
    assert column.tokenizer == ""
    assert column.requires == ()
    assert column.files() == {}


def test_a_vocabulary_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MOST_WORDS", 2)
    assert learned(["c b a"] * 5 + ["c"], backbone="tokens").vocabulary == ("c", "a")


def test_the_length_covers_99_per_cent_of_the_texts() -> None:
    assert learned(["one two"] * 99 + ["one"], backbone="tokens").length == 2
    assert learned(["one two"] * 999 + ["w " * 90], backbone="tokens").length == 2
    assert learned(["one two"] * 50 + ["w " * 90] * 50, backbone="tokens").length == 90
    assert learned(["w " * 900], backbone="tokens").length == 128
    assert learned(["w " * 900], backbone="tokens", length=300).length == 300


def test_a_column_without_a_word_teaches_nothing() -> None:
    with pytest.raises(SchemaError, match="Column 'note' holds no text with a word in it; leave it out with `ignore:`"):
        learned(["", None, "  "], backbone="tokens")


def test_cells_that_are_no_text_are_refused_by_their_type() -> None:
    with pytest.raises(SchemaError, match="Column 'note' holds cells of type int64; give texts"):
        OWN.encode(pa.chunked_array([[1, 2]]))


def test_only_the_first_characters_of_a_long_text_are_read() -> None:
    long = "to " * 40_000
    assert OWN.encode(column_of([long])).tolist() == [[0, 0, 0, 0]]
    assert OWN.encode(column_of([" " * 200 + "to"])).tolist() == [[-1] * 4]  # 4 tokens are looked for in 128 characters


def test_a_tokenizer_is_read_from_the_file_that_is_named(tokenizer: Path) -> None:
    column = learned(["take me home", "take me"], backbone="mine", tokenizer=str(tokenizer))
    assert (column.length, column.requires, len(column.tokenizer)) == (3, ("tokenizers",), 64)
    cells = column_of(["take me home", "home  you", None, "", " \n"])
    # Neither cut to 2 nor filled up to 9, as the file says; and white space alone is no token.
    assert column.encode(cells).tolist() == [[1, 2, 3], [3, 0, -1], [-1] * 3, [-1] * 3, [-1] * 3]
    assert column.spans(cells) == [[(0, 4), (5, 7), (8, 12)], [(0, 4), (6, 9)], [], [], []]


def test_a_tokenizer_travels_in_the_model_folder(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = learned(["take me home"], backbone="mine", tokenizer=str(tokenizer))
    ((name, content),) = column.files().items()
    assert name == f"tokenizer-{column.tokenizer[:12]}.json"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).write_bytes(content)
    monkeypatch.setattr(text, "_HELD", {})  # as in the process of a service
    with pytest.raises(SpecError, match="There is no tokenizer for the text backbone 'mine'; name its file"):
        column.encode(column_of(["take"]))
    column.find_files(folder)
    assert column.encode(column_of(["take"])).tolist() == [[1, -1, -1]]


def test_another_tokenizer_in_the_model_folder_is_refused(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = learned(["take me home"], backbone="mine", tokenizer=str(tokenizer))
    ((name, content),) = column.files().items()
    (tmp_path / name).write_bytes(content.replace(b'"take": 1', b'"take": 3'))
    monkeypatch.setattr(text, "_HELD", {})
    with pytest.raises(ArtifactError, match="is another tokenizer; package the run anew"):
        column.find_files(tmp_path)


def test_another_version_of_the_package_is_refused(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_packaged", lambda _: tokenizer)
    monkeypatch.setitem(text.PACKAGES, "wordllama", ("numpy", ""))  # whose version is asked for
    column = TextColumn(name="note", tokenizer="0" * 64)
    with pytest.raises(
        ArtifactError, match=r"^numpy [\d.]+ has another tokenizer than the one that the texts were learn"
    ):
        column.encode(column_of(["take"]))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"backbone": "bert"},
            SpecError,
            "There is no tokenizer for the text backbone 'bert'; name its file, `tokenizer: ",
        ),
        (
            {"tokenizer": "no.json"},
            SpecError,
            "Input 'note': tokenizer 'no.json' cannot be read ([Errno 2] No such file",
        ),
        (
            {"lenght": 9},
            SpecError,
            "Input 'note': text has no option 'lenght'; did you mean 'length'? Allowed: backbone, ",
        ),
        ({"length": 0}, SpecError, "Input 'note': length: Input should be greater than or equal to 1."),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        learned(["take me home"], **options)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SpecError, match=r"t\.json' cannot be read \(Model missing.*\); give a tokenizer\.json of"):
        learned(["take me home"], tokenizer=str(tmp_path / "t.json"))


def test_without_the_package_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PACKAGES", {"wordllama": ("no-such-package", "x.json")})
    text._packaged.cache_clear()
    with pytest.raises(
        MissingExtraError, match=r"Texts for wordllama need the package no-such-package, which is not ins"
    ):
        learned(["take me home"])
    text._packaged.cache_clear()


@pytest.mark.parametrize(
    ("backbone", "tokens"),
    [
        ("wordllama", ["Fly", "to", "Boston", ",", "去", "波", *["👍"] * 4]),
        ("minilm", ["Fly", "to", "Boston", ",", "去", "波", "👍"]),
    ],
)
def test_tokens_of_the_shipped_tokenizers_cover_the_text_without_white_space(backbone: str, tokens: list[str]) -> None:
    try:
        importlib.metadata.distribution(text.PACKAGES[backbone][0])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("its package is not installed")
    column = learned(["Fly to  Boston, 去波 👍"], backbone=backbone)
    (spans,) = column.spans(column_of(["Fly to  Boston, 去波 👍"]))
    assert ["Fly to  Boston, 去波 👍"[start:end] for start, end in spans] == tokens
    assert (column.encode(column_of(["Fly to  Boston, 去波 👍"])) >= 0).sum() == len(tokens) == column.length


# Requests

SCHEMA = Schema(columns=(OWN,))


def ask(*cells: Any) -> list[tuple[Any, ...]]:
    return Reader(SCHEMA).read(json.dumps({"rows": [{"note": cell} for cell in cells]}).encode())


def test_a_request_holds_texts_of_up_to_100_000_characters() -> None:
    cells = ask("to Boston", None, "", "字" * 100_000)
    (block,) = SCHEMA.encode(cells_to_table(cells, SCHEMA)).values()
    assert block.tolist() == [[0, 1, -1, -1], [-1] * 4, [-1] * 4, [4] * 4]
    with pytest.raises(SchemaError, match=r"^rows\[1\]\.note: has 100,001 characters; send at most 100,000$"):
        ask(None, "x" * 100_001)


@pytest.mark.parametrize("cell", [5, True, ["a"]])
def test_what_is_no_text_is_refused(cell: Any) -> None:
    with pytest.raises(SchemaError, match=r"^rows\[0\]\.note: .* is not a text; send a text or null$"):
        ask(cell)


def test_half_an_emoji_is_refused() -> None:
    with pytest.raises(SchemaError, match="is not valid Unicode text"):
        Reader(SCHEMA).cells({"rows": [{"note": "\ud83d"}]})


def test_made_up_texts_are_of_known_words() -> None:
    rng = np.random.default_rng(0)
    for column, words in ((OWN, OWN.vocabulary), (TextColumn(name="x", tokenizer="0"), text.WORDS)):
        drawn = column.draw(rng).split()
        assert 3 <= len(drawn) <= 12
        assert set(drawn) <= set(words)


def test_every_text_is_a_block_of_its_own() -> None:
    assert (OWN.block, OWN.n_features) == ("text:note", 4)
    assert OWN.describe() == "text of up to 4 words of 4 known, for tokens"
    assert TextColumn(name="x", length=46).describe() == "text of up to 46 tokens, for wordllama"
