"""Inputs that give a target away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtl_bento.table import plain
from mtl_bento_search.config import parse_config
from mtl_bento_search.leaks import Cells, suspicions, told
from mtl_bento_search.problem import make_problem

N = 400


def cells(values: Any) -> Cells:
    return Cells(plain(pa.chunked_array([pa.array(values)])))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_category_that_names_the_label_tells_it_in_every_row() -> None:
    labels = rng().integers(0, 3, N)
    codes = [f"code-{label}" for label in labels]
    assert told(cells(codes), cells(labels)) == 1
    # Two of the 200 rows that are asked, every other one, hold another code.
    codes[-1] = codes[-3] = "code-x"
    assert told(cells(codes), cells(labels)) == 0.99


def test_a_number_on_a_line_with_the_target_tells_it() -> None:
    y = rng().normal(size=N)
    assert told(cells(3 * y - 7), cells(y)) == 1
    assert told(cells(3 * y + np.random.default_rng(1).normal(size=N)), cells(y)) < 0.5


def test_whole_numbers_beyond_what_doubles_hold_are_looked_at_like_others() -> None:
    values = np.arange(N, dtype=np.int64) + 2**62
    assert told(cells(values), cells(-values.astype(np.float64))) == 0  # 200 of them are one double: no line
    assert told(cells(values * 2**20 % 2**61), cells(values * 2**20 % 2**61)) == 1


def test_words_beside_the_words_of_tags_tell_them() -> None:
    drawn = rng().integers(0, 4, (N, 5))
    tags = [" ".join(("O", "B-city", "I-city", "B-day")[w] for w in row) for row in drawn]
    leaky = [" ".join("wxyz"[w] for w in row) for row in drawn]
    # The text itself: every word has every tag.
    text = [" ".join("abcdefgh"[w] for w in row) for row in np.random.default_rng(1).integers(0, 8, (N, 5))]
    assert told(cells(leaky), cells(tags)) == 1
    assert told(cells(tags), cells([tag.split() for tag in tags])) == 1
    assert told(cells(text), cells(tags)) == 0


def test_neither_an_identifier_nor_a_rare_label_is_a_suspicion() -> None:
    labels = np.arange(N) % 97 == 0  # 1 % of rows: no input need know it to be right in 99 %
    assert told(cells([f"id-{n}" for n in range(N)]), cells(np.arange(N) % 3)) == 0
    assert told(cells(np.arange(N) % 2), cells(labels)) == 0
    assert told(cells([1, 2] * 10), cells([0, 1] * 10)) == 0  # too few rows


def test_a_line_names_input_target_share_and_what_to_do() -> None:
    labels = rng().integers(0, 2, N)
    table = pa.table({"age": rng().normal(size=N), "outcome": labels + 1, "photo": [b"x"] * N, "dead": labels})
    assert suspicions(table, ["age", "outcome", "photo"], ["dead"], np.arange(N)) == [
        "Input 'outcome' tells target 'dead' in 100 % of rows: if it is not known when you predict, ignore it"
    ]
    assert suspicions(table, ["age"], ["dead"], np.arange(N)) == []


@pytest.mark.parametrize("ignore", [["outcome"], []])
def test_a_problem_says_what_leaks_among_training_rows(ignore: list[str]) -> None:
    labels = rng().integers(0, 2, N)
    table = pa.table({"age": rng().normal(size=N), "outcome": labels + 1, "dead": labels})
    problem = make_problem(parse_config({"targets": ["dead"], "ignore": ignore}, where="test"), data=table)
    assert len(problem.leaks) == (0 if ignore else 1)
