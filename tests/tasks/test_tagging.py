"""Labelled spans of a text."""

from __future__ import annotations

import json
import math
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from words import Words

from mtl_bento.columns.text import TextColumn
from mtl_bento.errors import SchemaError, SpecError
from mtl_bento.tasks.tagging import Entity, Tagging, TaggingSpec, likeliest

TEXTS = ["to New York, please", "Boston", "no label"]
TAGS: list[Any] = [["O", "B-city", "I-city", "O"], ["B-city"], None]
SPANS: list[Any] = [
    [{"start": 3, "end": 11, "label": "city"}],
    [{"start": 0, "end": 6, "label": "city"}],
    None,
]


def cells(labels: Any) -> pa.ChunkedArray:
    return labels if isinstance(labels, pa.ChunkedArray) else pa.chunked_array([pa.array(labels)])


def fit(labels: Any, **fields: Any) -> Tagging:
    return Tagging(Tagging.fit(TaggingSpec.model_validate({"name": "names", **fields}), cells(labels)))


def placed(labels: Any, texts: list[str | None], *, length: int = 6, pattern: str = r"\w+|[^\w\s]") -> Tagging:
    columns: Any = [Words("note", length, pattern)]
    return fit(labels).place(pa.table({"note": pa.array(texts, pa.string())}), columns)


def sure(task: Tagging, *rows: list[int]) -> np.ndarray:
    """Return answers that are sure of a tag at each token."""
    return np.stack([np.eye(task.n_classes, dtype=np.float32)[row].ravel() for row in rows])


def test_the_first_token_of_a_word_carries_its_tag() -> None:
    # Tokens: to New York , please: the comma is York's.
    task = placed(TAGS, TEXTS)
    assert task.spec.levels == ("city",)
    assert task.spec.words == "spaced"
    assert task.n_outputs == 3
    assert task.encode(cells(TAGS)).tolist() == [[0, 1, 2, -1, 0, -1], [1] + [-1] * 5, [-1] * 6]


def test_spans_of_characters_are_tags_of_runs_of_letters_and_signs() -> None:
    task = placed(SPANS, TEXTS)
    assert task.spec.words == "signs"
    assert task.encode(cells(SPANS)).tolist() == [[0, 1, 2, 0, 0, -1], [1] + [-1] * 5, [-1] * 6]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([" ".join(tags) if tags else None for tags in TAGS]),
        pa.array([json.dumps(tags) if tags else "" for tags in TAGS]),
        pa.array([json.dumps(spans) if spans else None for spans in SPANS]),
        pa.array(SPANS),
    ],
)
def test_labels_are_lists_or_text(labels: pa.Array) -> None:
    truth = placed(labels, TEXTS).truth(cells(labels))
    ends = 12 if "B-" in str(labels) else 11  # a word between spaces has its comma
    assert truth[0].entities == {Entity("city", 3, ends)}
    assert truth[0].tags == ("O", "B-city", "I-city", "O")
    assert truth[1].entities == {Entity("city", 0, 6)}
    assert truth[2] is None


def test_a_token_of_parts_of_words_carries_the_tag_of_the_word_that_begins_in_it() -> None:
    # Tokens of two letters, as word pieces are: bo|st|on, is.
    task = placed([["B-city", "O"], ["O", "O"]], ["boston is", "a b"], pattern=r"\w{1,2}")
    assert task.encode(cells([["B-city", "O"], ["O", "O"]]))[0].tolist() == [1, -1, -1, 0, -1, -1]


def test_words_that_share_a_token_are_one_word() -> None:
    labels = [[{"start": 0, "end": 2, "label": "city"}], []]
    task = placed(labels, ["東京 is", "here"], pattern=r"\w+")
    assert task.encode(cells(labels)).tolist()[0] == [1, 0] + [-1] * 4
    (row, _) = task.rows(sure(task, [1, 0, 0, 0, 0, 0], [0] * 6))
    assert row["value"] == [{"label": "city", "start": 0, "end": 2, "text": "東京", "probability": 1.0}]


def test_words_beyond_the_last_token_count_as_missed() -> None:
    labels = [["O", "O", "B-city"], ["B-city"]]
    task = placed(labels, ["a b Rome", "Rome"], length=2)
    assert task.encode(cells(labels)).tolist() == [[0, 0], [1, -1]]
    assert task.truth(cells(labels))[0].entities == {Entity("city", 4, 8)}
    assert task.scored(sure(task, [0, 0], [1, 0]))[0].tags == ("O", "O", "O")


def test_a_word_in_the_middle_of_nothing_begins_a_span() -> None:
    task = placed([["I-city", "I-city", "B-city", "O", "I-city"], ["O"]], ["a b c d e", "a"])
    truth = task.truth(cells([["I-city", "I-city", "B-city", "O", "I-city"], ["O"]]))
    assert truth[0].entities == {Entity("city", 0, 3), Entity("city", 4, 5), Entity("city", 8, 9)}
    assert truth[0].tags == ("B-city", "I-city", "B-city", "O", "B-city")


def test_rows_are_spans_with_offsets_and_the_probability_of_the_least_sure_word() -> None:
    task = placed(TAGS, TEXTS)
    answers = sure(task, [0, 1, 2, 0, 0, 0], [0] * 6, [0] * 6)
    answers[0, 3:9] = [0.0, 0.75, 0.25, 0.25, 0.125, 0.625]
    value = {"label": "city", "start": 3, "end": 12, "text": "New York,", "probability": 0.625}
    assert task.rows(answers) == [{"value": [value]}, {"value": []}, {"value": []}]
    assert [json.loads(cell) for cell in task.values(answers).to_pylist()] == [[value], [], []]


def test_offsets_count_characters_in_every_script() -> None:
    labels = [[{"start": 5, "end": 8, "label": "city"}], []]
    task = placed(labels, ["😀 in Köl!", "a"])
    (row, _) = task.rows(sure(task, [0, 0, 1, 0, 0, 0], [0] * 6))
    assert row["value"] == [{"label": "city", "start": 5, "end": 8, "text": "Köl", "probability": 1.0}]


@pytest.mark.parametrize("text", [None, "", "   "])
def test_a_text_without_words_has_no_spans(text: str | None) -> None:
    task = placed(TAGS, [text])
    assert task.rows(sure(task, [1] * 6)) == [{"value": []}]
    assert task.scored(sure(task, [1] * 6))[0].tags == ()


def test_the_likeliest_tags_are_those_in_which_inside_follows_its_own() -> None:
    # Tags O, B-a, I-a, B-b, I-b. Word by word it would be O then I-a; B-a I-a is likelier than O O.
    shares = np.array([[[0.6, 0.4, 0, 0, 0], [0.3, 0, 0.7, 0, 0]]])
    assert likeliest(shares).tolist() == [[1, 2]]
    # B-b I-a is not allowed: the label of one of the two has to give way.
    shares = np.array([[[0, 0.3, 0, 0.7, 0], [0.05, 0, 0.9, 0, 0.05]]])
    assert likeliest(shares).tolist() == [[1, 2]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_likeliest_tags_are_found_as_by_trying_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(5, 0.5), size=(1, 4))

    def allowed(tags: tuple[int, ...]) -> bool:
        return all(
            tag % 2 or tag == 0 or before in (tag - 1, tag) for before, tag in zip((0, *tags), tags, strict=False)
        )

    def likelihood(tags: tuple[int, ...]) -> float:
        return sum(math.log(max(shares[0, word, tag], 1e-12)) for word, tag in enumerate(tags))

    best = max(filter(allowed, product(range(5), repeat=4)), key=likelihood)
    assert likelihood(tuple(likeliest(shares)[0].tolist())) == pytest.approx(likelihood(best))


def test_tags_that_do_not_match_the_words_are_one_line_with_an_example() -> None:
    labels = [["O"], ["O", "B-city"]]
    with pytest.raises(SchemaError) as error:
        placed(labels, ["to", "to New York"]).encode(cells(labels))
    assert str(error.value) == (
        "Target 'names', row 1: ['O', 'B-city'] holds 2 tags for 3 words ('to New York'); "
        'give a tag for each word between spaces, such as ["O", "O", "B-city", "I-city"] for "flights to New York", '
        'or spans of characters, such as [{"start": 11, "end": 19, "label": "city"}]; null where it is not labelled.'
    )


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        ([["O", "E-city"]], r"row 0: 'E-city' is no tag \(O, B-label or I-label\); give a tag for each word"),
        (["just a text"], "row 0: 'just' is no tag"),
        ([3], "row 0: 3 is neither tags nor spans"),
        ([[{"start": 5, "end": 5, "label": "a"}]], "row 0: {'start': 5, 'end': 5, 'label': 'a'} is no span"),
        ([[{"start": 5, "end": 8}]], "row 0: {.*} is no span"),
        ([[{"start": float("nan"), "end": 8, "label": "a"}]], "row 0: {.*} is no span"),
    ],
)
def test_what_is_neither_tags_nor_spans_is_one_line(labels: Any, wrong: str) -> None:
    with pytest.raises(SchemaError, match=f"^Target 'names', {wrong}"):
        fit(labels)


@pytest.mark.parametrize(
    ("spans", "wrong"),
    [
        ([(0, 2), (5, 20)], "row 0: {'label': 'city', 'start': 5, 'end': 20} ends beyond the text of 11 characters"),
        ([(0, 5), (3, 11)], "row 0: {'label': 'city', 'start': 0, 'end': 5} overlaps the next span"),
    ],
)
def test_spans_that_do_not_fit_the_text_are_one_line(spans: list[tuple[int, int]], wrong: str) -> None:
    labels = [[{"start": start, "end": end, "label": "city"} for start, end in spans], []]
    with pytest.raises(SchemaError, match=f"^Target 'names', {wrong}"):
        placed(labels, ["to New York", ""]).encode(cells(labels))


def test_a_label_that_training_did_not_have_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"'names' holds the label 'day', which is not one of its levels \(city\)"):
        placed(TAGS, ["today"]).encode(cells([["B-day"]]))
    with pytest.raises(SchemaError, match=r"'names' holds the label 'city', which is not one of its levels \(day\)"):
        fit(TAGS, levels=["day"])


def test_labels_that_teach_nothing_are_refused() -> None:
    with pytest.raises(SchemaError, match="'names' is missing in every training row"):
        fit(pa.chunked_array([pa.nulls(2, pa.list_(pa.string()))]))
    with pytest.raises(SchemaError, match="'names' is without a span in every training row"):
        fit([["O"], ["O", "O"]])
    with pytest.raises(SchemaError, match=r"'names' is \['B-a'\] in every training row"):
        fit([["B-a"], ["B-a"]])


def test_the_text_is_named_or_the_only_one() -> None:
    table = pa.table({"title": ["a"], "note": ["b"]})
    texts: Any = [Words("title"), Words("note")]
    with pytest.raises(SpecError) as error:
        fit(TAGS).place(table, texts)
    assert str(error.value) == (
        "Target 'names': it does not say which text it tags; texts are 'title', 'note'; "
        "write `names: {kind: tagging, text: NAME}`."
    )
    with pytest.raises(SpecError, match="'names': 'notes' is no text input; texts are 'title', 'note'"):
        fit(TAGS, text="notes").place(table, texts)
    with pytest.raises(SpecError, match=r"no input is a text; name one, `inputs: \{note: text\}`"):
        fit(TAGS).place(table, [])
    assert fit(TAGS, text="note").reads == "note"
    assert fit(TAGS, text="note").place(table, texts).truth(cells([["B-city"]]))[0].entities == {Entity("city", 0, 1)}


def test_a_task_without_its_texts_says_so() -> None:
    with pytest.raises(ValueError, match="target 'names': `place` the task on the table of these 1 rows first"):
        fit(TAGS).rows(np.zeros((1, 6)))


def test_a_text_is_as_long_as_the_longest_that_is_labelled_and_no_shorter_than_it_was() -> None:
    texts = [*["one two"] * 200, "a b c d e", "f g h i j k l"]
    tags = [*["O O"] * 200, "O O O O B-x", None]
    column = TextColumn.chosen("note", pa.chunked_array([texts]), {"backbone": "tokens"})
    assert column.length == 2  # 99 % of the texts
    task = Tagging(Tagging.fit(TaggingSpec(name="names"), cells(["O B-x", "B-x O"])))
    table = pa.table({"note": texts, "names": tags})
    assert task.suited(column, table, np.arange(202)).length == 5  # type: ignore[attr-defined]
    assert task.suited(column, table, np.arange(200)).length == 2  # type: ignore[attr-defined]
    long = column.model_copy(update={"length": 9})
    assert task.suited(long, table, np.arange(202)) == long
    table = pa.table({"note": ["w " * 500], "names": ["O " * 500]})
    assert task.suited(column, table, np.arange(1)).length == 128  # type: ignore[attr-defined]


@pytest.mark.parametrize(("labels", "end"), [(TAGS, 12), (SPANS, 11)])  # a word between spaces has its comma
def test_labels_are_said_as_spans_whatever_they_are_given_as(labels: list[Any], end: int) -> None:
    task = placed(labels, TEXTS)
    spans = [[{"label": "city", "start": 3, "end": end}], [{"label": "city", "start": 0, "end": 6}], None]
    assert task.said(cells(labels)) == spans
