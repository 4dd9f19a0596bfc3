"""Splits: every row has one place, tasks are stratified, given parts are kept."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from mtl_bento.errors import SchemaError, SpecError
from mtl_bento_search.config import SplitSpec
from mtl_bento_search.protocol import Protocol, deal, looks_like_split, make_protocol


def places(protocol: Protocol) -> np.ndarray:
    """All validation and test rows, and the training rows of a holdout, sorted."""
    parts = [valid for _, valid in protocol.splits] + [protocol.test]
    if len(protocol.splits) == 1:
        parts.append(protocol.splits[0][0])
    return np.sort(np.concatenate(parts))


def label(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, n)


def test_few_rows_get_five_folds_and_every_row_one_place() -> None:
    protocol = make_protocol(SplitSpec(), pa.table({"x": range(1000)}), [label(1000)], seed=0)
    assert len(protocol.splits) == 5
    assert len(protocol.test) == 200  # a fifth
    np.testing.assert_array_equal(places(protocol), np.arange(1000))
    for train, valid in protocol.splits:
        assert not set(train) & set(valid)
        assert not set(train) & set(protocol.test)


def test_many_rows_get_a_holdout_of_at_least_a_thousand() -> None:
    protocol = make_protocol(SplitSpec(valid=0.01), pa.table({"x": range(20_000)}), [label(20_000)], seed=0)
    ((train, valid),) = protocol.splits
    assert len(valid) == 1000
    assert len(train) + len(valid) + len(protocol.test) == 20_000


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    table, labels = pa.table({"x": range(500)}), [label(500)]
    first, again, other = (make_protocol(SplitSpec(), table, labels, seed=s).digest() for s in (1, 1, 2))
    assert first == again != other


def test_dealing_gives_each_part_its_share_of_a_rare_label() -> None:
    rare = np.zeros(1000, dtype=np.int64)
    rare[:10] = 1
    part = deal(np.arange(1000), [label(1000), rare], 5, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(part[:10], minlength=5), [2, 2, 2, 2, 2])
    np.testing.assert_array_equal(np.bincount(part), [200] * 5)


def test_given_validation_rows_are_kept_where_there_are_enough() -> None:
    roles = np.array(["train"] * 4000 + ["valid"] * 1000 + ["test"] * 500)
    protocol = make_protocol(SplitSpec(), pa.table({"x": range(5500)}), [label(5500)], seed=0, roles=roles)
    ((train, valid),) = protocol.splits
    np.testing.assert_array_equal(train, np.arange(4000))
    np.testing.assert_array_equal(valid, np.arange(4000, 5000))
    np.testing.assert_array_equal(protocol.test, np.arange(5000, 5500))


def test_few_validation_rows_of_a_column_join_the_folds_and_a_note_says_so() -> None:
    table = pa.table({"split": ["train"] * 80 + ["val"] * 20 + ["test"] * 20})
    spec = SplitSpec(kind="column", column="split")
    protocol = make_protocol(spec, table, [label(120)], seed=0)
    assert len(protocol.splits) == 5
    assert "too few to choose by" in protocol.notes[0]
    np.testing.assert_array_equal(np.sort(np.concatenate([v for _, v in protocol.splits])), np.arange(100))
    kept = make_protocol(spec.model_copy(update={"folds": 0}), table, [label(120)], seed=0)
    np.testing.assert_array_equal(kept.splits[0][1], np.arange(80, 100))


def test_a_validation_table_of_its_own_is_kept_apart_however_small() -> None:
    roles = np.array(["train"] * 80 + ["valid"] * 20 + ["test"] * 20)
    protocol = make_protocol(SplitSpec(), pa.table({"x": range(120)}), [label(120)], seed=0, roles=roles)
    ((train, valid),) = protocol.splits
    np.testing.assert_array_equal(train, np.arange(80))
    np.testing.assert_array_equal(valid, np.arange(80, 100))


def test_by_time_the_newest_rows_are_the_test() -> None:
    table = pa.table({"t": pa.array(np.arange(100)[::-1])})  # row 0 is the newest
    protocol = make_protocol(SplitSpec(kind="time", column="t", test=0.2, valid=0.25), table, [label(100)], seed=0)
    np.testing.assert_array_equal(protocol.test, np.arange(20))
    np.testing.assert_array_equal(protocol.splits[0][1], np.arange(20, 40))  # a quarter of the other 80


def test_groups_are_never_cut() -> None:
    group = np.repeat(np.arange(50), 20)
    protocol = make_protocol(SplitSpec(kind="group", column="g"), pa.table({"g": group}), [label(1000)], seed=0)
    held = [set(group[valid]) for _, valid in protocol.splits] + [set(group[protocol.test])]
    assert sum(map(len, held)) == len(set.union(*held)) == 50


def test_folds_of_a_column_are_its_values_and_the_last_is_the_test() -> None:
    fold = np.arange(90) % 3
    protocol = make_protocol(SplitSpec(kind="fold", column="f"), pa.table({"f": fold}), [label(90)], seed=0)
    np.testing.assert_array_equal(protocol.test, np.flatnonzero(fold == 2))
    np.testing.assert_array_equal(protocol.splits[0][1], np.flatnonzero(fold == 0))
    np.testing.assert_array_equal(protocol.splits[0][0], np.flatnonzero(fold == 1))


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        (SplitSpec(kind="time", column="part"), SchemaError, "which has no order in time"),
        (SplitSpec(kind="time"), SpecError, "kind time needs `column`"),
        (SplitSpec(kind="time", column="dat"), SpecError, r"no column 'dat'; did you mean 'date'\?"),
        (SplitSpec(kind="group", column="date"), SchemaError, "1 groups"),
        (SplitSpec(kind="column", column="part"), SchemaError, "row 1: 'tets' is not a part of a split"),
        (SplitSpec(folds=20), SchemaError, "too few for 20 folds"),
    ],
)
def test_what_cannot_be_split_is_named(spec: SplitSpec, error: type[Exception], words: str) -> None:
    table = pa.table({"date": [1] * 12, "part": ["train", "tets"] * 6})
    with pytest.raises(error, match=words):
        make_protocol(spec, table, [label(12)], seed=0)


def test_a_split_column_is_found_by_its_values() -> None:
    assert looks_like_split(pa.table({"split": ["train", "val", "test"]}))
    assert not looks_like_split(pa.table({"split": ["left", "right"]}))
    assert not looks_like_split(pa.table({"split": [1, 2]}))
    assert not looks_like_split(pa.table({"other": ["train", "test"]}))
