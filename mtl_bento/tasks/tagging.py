"""Names in a text: spans of characters with a label, learned as BIO tags of its words.

A word is what the labels are given for: where they are tags a word, what lies between spaces; where they are spans of
characters, a run of letters and digits, or one sign (one letter in scripts without spaces). Its tag is asked of its
first token; words that share a token are one. Words beyond the last token that the text column keeps are never tagged,
and count as missed.

Letters: K members, M TabM's inner members, B rows, L positions (tokens), U words, E labels, C = 1 + 2 E tags.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa

from mtl_bento.columns._base import Column
from mtl_bento.errors import SchemaError, SpecError, listing
from mtl_bento.table import plain
from mtl_bento.tasks._base import TASKS, TaskSpec, shortest
from mtl_bento.tasks._cells import all_alike, all_missing, lists, refusal
from mtl_bento.tasks._positions import PositionsTask

Span = tuple[int, int]
WANTED = (
    'give a tag for each word between spaces, such as ["O", "O", "B-city", "I-city"] for "flights to New York", '
    'or spans of characters, such as [{"start": 11, "end": 19, "label": "city"}]; null where it is not labelled'
)
CHUNK = 1024
"""Rows that are decoded at once."""
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORDS = {
    "spaced": re.compile(r"\S+"),
    "signs": re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+|[^\w\s]"),
}
"""How a text falls into words."""


class Entity(NamedTuple):
    """A labelled span of characters, the end not included."""

    label: str
    start: int
    end: int


class Tagged(NamedTuple):
    """A text as metrics read it."""

    entities: frozenset[Entity]
    tags: tuple[str, ...]
    """A BIO tag for each word between spaces."""


class TaggingSpec(TaskSpec):
    """Labelled spans of a text."""

    kind: Literal["tagging"] = "tagging"
    text: str | None = None
    """The input column that the spans lie in, where there are several texts."""
    levels: tuple[str, ...] = ()
    """The labels of spans; learned where not given."""
    words: Literal["spaced", "signs"] | None = None
    """What carries a tag: what lies between spaces, or runs of letters and single signs; learned from the labels."""


@dataclass(frozen=True)
class Text:
    """One text and its words."""

    text: str
    words: list[Span]
    tokens: list[int]
    """The position of each word's token, -1 for one that the text column cut off."""


@TASKS.register(TaggingSpec)
class Tagging(PositionsTask[TaggingSpec]):
    """Cross-entropy in nats, averaged over a text's words; answers are probabilities of tags [B, L * C].

    Tags are O, then B and I of each label. Answers are the likeliest tags in which an I follows its own B or I.
    """

    metrics = ("entity_f1", "token_accuracy")
    _texts: list[Text] | None = None
    """The texts of the rows that it is placed on."""
    _length = 0

    @property
    def reads(self) -> str | None:
        """The text."""
        return self.spec.text

    def settled(self, columns: Sequence[Column]) -> Self:
        """Return the task with its text named; raises SpecError where no input is the text."""
        return self.with_spec(text=_text_column(self.spec, columns).name)

    def suited(self, column: Column, table: pa.Table, rows: np.ndarray) -> Column:
        """Return a text of at least as many tokens as the longest that is labelled, within the column's bound.

        A word whose tokens are cut off can be found in no answer; a class is read off the first tokens well enough.
        """
        covering = getattr(column, "covering", None)
        if covering is None:
            return column
        training = table.select([column.name, self.name]).take(pa.array(rows))
        return covering(training[column.name].filter(training[self.name].is_valid()))  # type: ignore[no-any-return]

    def describe(self) -> str:
        """Return "spans of a text: city, person"."""
        return f"spans of a text: {super().describe()}"

    def place(self, table: pa.Table, columns: Sequence[Column]) -> Self:
        """Return the task for the texts of a table; raises SpecError where no input is the text."""
        column: Any = _text_column(self.spec, columns)
        values = table[column.name] if column.name in table.column_names else pa.chunked_array([pa.nulls(len(table))])
        texts = [text or "" for text in plain(values).to_pylist()]
        words = WORDS[self.spec.words or "spaced"]
        placed = type(self)(self.spec)
        placed._length = column.length
        placed._texts = [_read(text, spans, words) for text, spans in zip(texts, column.spans(values), strict=True)]
        return placed

    @classmethod
    def recognises(cls, values: pa.ChunkedArray) -> bool:
        """Return whether every cell is a list of spans or of BIO tags, some with several (one may be a class)."""
        try:
            cells = [cell for cell in _labels("", values) if cell is not None]
        except SchemaError:
            return False
        return any(len(cell.given) > 1 or cell.spans for cell in cells) and any(cell.labels for cell in cells)

    @classmethod
    def survey(cls, spec: TaggingSpec, values: pa.ChunkedArray) -> TaggingSpec:
        """Return the spec with all labels of spans as levels, where it names none."""
        if spec.levels:
            return spec
        labels = [label for cell in _labels(spec.name, values) if cell is not None for label in cell.labels]
        return spec.model_copy(update={"levels": tuple(sorted(set(labels)))})

    @classmethod
    def fit(cls, spec: TaggingSpec, values: pa.ChunkedArray) -> TaggingSpec:
        """Return the spec with levels, and what a word is; SchemaError where there is nothing to learn."""
        spec = cls.survey(spec, values)
        cells = [cell for cell in _labels(spec.name, values) if cell is not None]
        if not cells:
            raise all_missing(spec.name)
        if not any(cell.labels for cell in cells):
            raise all_alike(spec.name, "without a span")
        if all(cell == cells[0] for cell in cells):
            raise all_alike(spec.name, str(cells[0].given)[:60])
        if unknown := [label for cell in cells for label in cell.labels if label not in spec.levels]:
            raise SchemaError(_unknown(spec, unknown[0]))
        tags = any(cell.tags is not None for cell in cells)
        return spec.model_copy(update={"words": spec.words or ("spaced" if tags else "signs")})

    @property
    def n_classes(self) -> int:
        """O, and two tags a label."""
        return 1 + 2 * len(self.spec.levels)

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return tags, int64 [B, L]: -1 at tokens that begin no word, and where the text is not labelled."""
        codes = np.full((len(values), self._length), -1, dtype=np.int64)
        places = {label: place for place, label in enumerate(self.spec.levels)}
        for row, (entities, text) in enumerate(zip(self._entities(values), self._placed(len(values)), strict=True)):
            if entities is None:
                continue
            for token, (begins, label) in zip(text.tokens, _tags(text.words, entities), strict=True):
                if token >= 0:
                    codes[row, token] = 0 if label is None else 2 * places[label] + (1 if begins else 2)
        return codes

    def truth(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return `Tagged` labels, object [B], None where the text is not labelled."""
        texts = self._placed(len(values))
        return _objects(
            None if entities is None else _tagged(text.text, entities)
            for entities, text in zip(self._entities(values), texts, strict=True)
        )

    def scored(self, answers: np.ndarray) -> np.ndarray:
        """Return `Tagged` answers, object [B]."""
        texts = self._placed(len(answers))
        found = self._decoded(answers)
        return _objects(_tagged(t.text, [e for e, _ in spans]) for t, spans in zip(texts, found, strict=True))

    def scored_columns(self, columns: Mapping[str, pa.ChunkedArray]) -> np.ndarray:
        """Return the same from the column of answers."""
        return self.truth(columns[self.name])

    def values(self, answers: np.ndarray) -> pa.Array:
        """Return the spans of each text as JSON."""
        return pa.array([json.dumps(row["value"], ensure_ascii=False) for row in self.rows(answers)], pa.large_string())

    def columns(self, answers: np.ndarray) -> dict[str, pa.Array]:
        """Return nothing beside the value, which has the probabilities."""
        del answers
        return {}

    def rows(self, answers: np.ndarray) -> list[dict[str, Any]]:
        """Return the spans of each text: label, start, end, text, and the probability of the least sure word."""
        texts, found = self._placed(len(answers)), self._decoded(answers)
        numbers = iter(shortest(np.array([p for spans in found for _, p in spans])))
        return [
            {"value": [_answer(entity, text.text, next(numbers)) for entity, _ in spans]}
            for text, spans in zip(texts, found, strict=True)
        ]

    def said(self, values: pa.ChunkedArray) -> list[Any]:
        """Return the spans of each text: label, start, end; null where it is not labelled."""
        return [None if found is None else [e._asdict() for e in found] for found in self._entities(values)]

    def card(self) -> dict[str, Any]:
        """Return the fields of the spec, and the labels of spans."""
        return super().card() | {"classes": list(self.spec.levels)}

    def _placed(self, n_rows: int) -> list[Text]:
        if self._texts is None or len(self._texts) != n_rows:
            raise ValueError(f"target {self.name!r}: `place` the task on the table of these {n_rows} rows first")
        return self._texts

    def _entities(self, values: pa.ChunkedArray) -> Iterable[list[Entity] | None]:
        """Yield the spans of each label; raises SchemaError where they do not fit the text."""
        texts = self._placed(len(values))
        for row, (cell, text) in enumerate(zip(_labels(self.name, values), texts, strict=True)):
            entities = None if cell is None else _spans(self.name, row, cell, text.text)
            if unknown := [e.label for e in entities or () if e.label not in self.spec.levels]:
                raise SchemaError(_unknown(self.spec, unknown[0]))
            yield entities

    def _decoded(self, answers: np.ndarray) -> list[list[tuple[Entity, float]]]:
        """Return the spans of each text, and the probability of the least sure word's tag."""
        texts = self._placed(len(answers))
        found: list[list[tuple[Entity, float]]] = []
        for start in range(0, len(answers), CHUNK):
            part = texts[start : start + CHUNK]
            table = self.table(answers[start : start + CHUNK])
            widest = max(len(text.words) for text in part)
            shares = np.zeros((len(part), widest, self.n_classes), dtype=table.dtype)
            shares[..., 0] = 1  # words without a token, and filling, are O
            for row, text in enumerate(part):
                held = np.flatnonzero(np.array(text.tokens, dtype=np.int64) >= 0)
                shares[row, held] = table[row, np.array(text.tokens, dtype=np.int64)[held]]
            codes = likeliest(shares)
            sure = np.take_along_axis(shares, codes[..., None], -1)[..., 0]
            found += [self._named(text, codes[row], sure[row]) for row, text in enumerate(part)]
        return found

    def _named(self, text: Text, codes: np.ndarray, sure: np.ndarray) -> list[tuple[Entity, float]]:
        found: list[tuple[Entity, float]] = []
        for (start, end), code, p in zip(text.words, codes.tolist(), sure.tolist(), strict=False):
            if code == 0:
                continue
            if code % 2 == 1:
                found.append((Entity(self.spec.levels[code // 2], start, end), p))
            else:
                entity, least = found[-1]
                found[-1] = (entity._replace(end=end), min(least, p))
        return found


def likeliest(shares: np.ndarray) -> np.ndarray:
    """Return the likeliest tags [B, U] in which an I follows its own B or I, by their probabilities [B, U, C].

    Viterbi's algorithm; since only I asks for what comes before, it takes C steps a word, not C squared.
    """
    n_rows, n_words, n_tags = shares.shape
    logs = np.log(np.maximum(shares, 1e-12))
    begins, insides = np.arange(1, n_tags, 2), np.arange(2, n_tags, 2)
    came = np.zeros((n_rows, n_words, n_tags), dtype=np.int64)
    score = np.zeros((n_rows, n_tags))
    for word in range(n_words):
        best = score.argmax(1)
        before = np.repeat(best[:, None], n_tags, 1)
        before[:, insides] = np.where(score[:, begins] >= score[:, insides], begins, insides)
        reached = np.take_along_axis(score, before, 1)
        if word == 0:
            reached[:, insides] = -np.inf
        came[:, word] = before
        score = reached + logs[:, word]
    codes = np.zeros((n_rows, n_words), dtype=np.int64)
    last = score.argmax(1)
    for word in range(n_words - 1, -1, -1):
        codes[:, word] = last
        last = came[np.arange(n_rows), word, last]
    return codes


@dataclass(frozen=True)
class _Label:
    """One label cell: BIO tags, or spans."""

    given: Any
    tags: list[str] | None
    spans: list[Entity]

    @property
    def labels(self) -> list[str]:
        """The labels of its spans."""
        return [e.label for e in self.spans] if self.tags is None else [tag[2:] for tag in self.tags if tag != "O"]


def _labels(name: str, values: pa.ChunkedArray) -> Iterable[_Label | None]:
    """Yield each label, None where missing; raises SchemaError where a cell is neither tags nor spans."""
    for row, cell in enumerate(lists(values)):
        yield None if cell is None else _label(name, row, cell)


def _label(name: str, row: int, cell: Any) -> _Label:
    given = cell.split() if isinstance(cell, str) else cell
    if not isinstance(given, list):
        raise refusal(name, row, cell, wrong="is neither tags nor spans", wanted=WANTED)
    if all(isinstance(item, dict) for item in given):
        return _Label(given, None, [_entity(name, row, item) for item in given])
    for tag in given:
        if not isinstance(tag, str) or not re.fullmatch(r"O|[BI]-.+", tag):
            raise refusal(name, row, tag, wrong="is no tag (O, B-label or I-label)", wanted=WANTED)
    return _Label(given, given, [])


def _entity(name: str, row: int, span: Any) -> Entity:
    label, start, end = span.get("label"), span.get("start"), span.get("end")
    if not (isinstance(label, str) and label and _is_place(start) and _is_place(end) and 0 <= start < end):
        raise refusal(name, row, span, wrong="is no span", wanted=WANTED)
    return Entity(label, int(start), int(end))


def _is_place(number: Any) -> bool:
    """Return whether it counts characters; pandas makes floats of whole numbers."""
    return isinstance(number, int) or (isinstance(number, float) and number.is_integer())


def _spans(name: str, row: int, cell: _Label, text: str) -> list[Entity]:
    """Return the spans of a label in its text; raises SchemaError where the two do not fit together."""
    if cell.tags is None:
        spans = sorted(cell.spans, key=lambda span: span.start)
        for span in spans[-1:]:
            if span.end > len(text):
                wrong = f"ends beyond the text of {len(text)} characters"
                raise refusal(name, row, span._asdict(), wrong=wrong, wanted=WANTED)
        for span, after in pairwise(spans):
            if after.start < span.end:
                raise refusal(name, row, span._asdict(), wrong="overlaps the next span", wanted=WANTED)
        return spans
    words = [match.span() for match in WORDS["spaced"].finditer(text)]
    if len(words) != len(cell.tags):
        wrong = f"holds {len(cell.tags)} tags for {len(words)} words ({text[:40]!r})"
        raise refusal(name, row, cell.given, wrong=wrong, wanted=WANTED)
    found: list[Entity] = []
    label = ""  # of the span that the next I goes on with
    for (start, end), tag in zip(words, cell.tags, strict=True):
        if tag[0] == "I" and tag[2:] == label:
            found[-1] = found[-1]._replace(end=end)
        elif tag != "O":  # an I that goes on with nothing begins a span, as CoNLL's scorer reads it
            found.append(Entity(tag[2:], start, end))
        label = tag[2:]
    return found


def _read(text: str, spans: Sequence[Span], pattern: re.Pattern[str]) -> Text:
    """Return the words of a text and the first token of each; words of one token are one word."""
    words: list[Span] = []
    tokens: list[int] = []
    ends = [end for _, end in spans]
    for match in pattern.finditer(text):
        start, end = match.span()
        token = bisect_right(ends, start)  # the first that ends behind the word's first character
        held = token < len(spans) and spans[token][0] < end
        if held and tokens and tokens[-1] == token:
            words[-1] = (words[-1][0], end)
        else:
            words.append((start, end))
            tokens.append(token if held else -1)
    return Text(text, words, tokens)


def _tags(words: Sequence[Span], entities: Sequence[Entity]) -> list[tuple[bool, str | None]]:
    """Return for each word whether a span begins in it, and the span's label: None outside of all."""
    tags: list[tuple[bool, str | None]] = []
    place, last = 0, -1
    for start, end in words:
        while place < len(entities) and entities[place].end <= start:
            place += 1
        inside = place < len(entities) and entities[place].start < end
        tags.append((place != last, entities[place].label) if inside else (False, None))
        last = place if inside else last
    return tags


def _tagged(text: str, entities: Sequence[Entity]) -> Tagged:
    words = [match.span() for match in WORDS["spaced"].finditer(text)]
    tags = ("O" if label is None else f"{'B' if begins else 'I'}-{label}" for begins, label in _tags(words, entities))
    return Tagged(frozenset(entities), tuple(tags))


def _answer(entity: Entity, text: str, probability: float) -> dict[str, Any]:
    return {**entity._asdict(), "text": text[entity.start : entity.end], "probability": probability}


def _text_column(spec: TaggingSpec, columns: Sequence[Column]) -> Column:
    texts = {column.name: column for column in columns if hasattr(column, "spans")}
    if spec.text is None and len(texts) == 1:
        return next(iter(texts.values()))
    if spec.text in texts:
        return texts[spec.text]
    what = f"{spec.text!r} is no text input" if spec.text is not None else "it does not say which text it tags"
    remedy = (
        f"texts are {listing(map(repr, texts))}" if texts else "no input is a text; name one, `inputs: {note: text}`"
    )
    raise SpecError(f"Target {spec.name!r}: {what}; {remedy}; write `{spec.name}: {{kind: tagging, text: NAME}}`.")


def _unknown(spec: TaggingSpec, label: str) -> str:
    return (
        f"Target {spec.name!r} holds the label {label!r}, which is not one of its levels ({listing(spec.levels)}). "
        "Correct or clear those cells, or add it to `levels` and search again."
    )


def _objects(rows: Iterable[Tagged | None]) -> np.ndarray:
    """Return rows as an object array [B]; numpy would make two dimensions of tuples."""
    held = list(rows)
    array = np.empty(len(held), dtype=object)
    for row, tagged in enumerate(held):
        array[row] = tagged
    return array
