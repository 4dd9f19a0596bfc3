"""Validation rows are as near to the training rows as the test rows are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mtl_bento.errors import SpecError
from mtl_bento_search.config import Config, parse_config
from mtl_bento_search.nearness import as_near_as_test, points, runs
from mtl_bento_search.problem import make_problem
from mtl_bento_search.protocol import Protocol


def walk(n: int, *, seed: int = 0) -> pd.DataFrame:
    """Return rows in time: inputs that wander, and what follows from them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).cumsum(0)
    return pd.DataFrame({"x0": x[:, 0], "x1": x[:, 1], "x2": x[:, 2], "y": x.sum(1), "z": x[:, 0] > x[:, 1]})


def dealt(n: int, n_test: int, *, folds: int = 5) -> Protocol:
    """Return folds dealt like cards, and a test at the end."""
    rows, test = np.arange(n - n_test), np.arange(n - n_test, n)
    fold = rows % folds
    return Protocol(tuple((rows[fold != f], rows[fold == f]) for f in range(folds)), test, (), "column", dealt=True)


def test_rows_in_time_validate_in_runs_since_the_test_has_no_neighbours_among_the_others() -> None:
    where = points({"numeric": walk(400)[["x0", "x1", "x2"]].to_numpy(np.float32)})
    ordered = as_near_as_test(dealt(400, 80), where, seed=0)
    assert [(int(valid[0]), int(valid[-1])) for _, valid in ordered.splits] == [
        (0, 63), (64, 127), (128, 191), (192, 255), (256, 319),
    ]  # fmt: skip
    assert "runs of consecutive rows" in ordered.notes[0]


def test_rows_of_no_order_are_dealt_also_where_the_test_comes_last() -> None:
    rng = np.random.default_rng(0)
    where = points({"numeric": rng.normal(size=(400, 3)).astype(np.float32)})
    protocol = dealt(400, 80)
    assert as_near_as_test(protocol, where, seed=0) is protocol


def test_a_table_sorted_by_its_label_with_such_a_test_behind_it_stays_dealt() -> None:
    rng = np.random.default_rng(0)
    label = np.concatenate([np.sort(rng.integers(0, 4, 320)), np.sort(rng.integers(0, 4, 80))])
    where = points({"numeric": (label[:, None] * 5 + rng.normal(size=(400, 3))).astype(np.float32)})
    protocol = dealt(400, 80)
    assert as_near_as_test(protocol, where, seed=0) is protocol


def test_a_test_among_the_other_rows_keeps_them_dealt() -> None:
    frame = walk(400)
    rows = np.arange(400)
    test, rest = rows[rows % 5 == 0], rows[rows % 5 != 0]
    protocol = Protocol(((rest[::2], rest[1::2]), (rest[1::2], rest[::2])), test, (), "column", dealt=True)
    where = points({"numeric": frame[["x0", "x1", "x2"]].to_numpy(np.float32)})
    assert as_near_as_test(protocol, where, seed=0) is protocol


def test_one_holdout_is_the_run_beside_the_test() -> None:
    rows = np.arange(10)
    after = Protocol(((rows[[0, 2, 3, 5, 6, 7]], rows[[1, 4]]),), np.array([8, 9]), (), "column", dealt=True)
    before = Protocol(((rows[[2, 4, 5, 7, 8, 9]], rows[[3, 6]]),), np.array([0, 1]), (), "column", dealt=True)
    assert runs(after)[0][1].tolist() == [6, 7]
    assert runs(before)[0][1].tolist() == [2, 3]


def test_points_are_ranks_of_numbers_and_half_steps_of_categories() -> None:
    where = points(
        {
            "numeric": np.array([[1.0], [np.nan], [3.0], [1.0]], dtype=np.float32),
            "categorical": np.array([[0], [1], [0], [-1]], dtype=np.int64),
        }
    )
    third = 1 / 3
    assert where == pytest.approx(
        np.array([[third, 0.5, 0, 0], [0.5, 0, 0, 0.5], [2.5 / 3, 0.5, 0, 0], [third, 0, 0.5, 0]])
    )


def in_time(split: dict[str, object]) -> Protocol:
    """Return the protocol of a table whose last fifth is the test."""
    frame = walk(300).assign(split=["train"] * 240 + ["test"] * 60)
    config = Config.model_validate({"targets": {"y": {}}, "split": {"kind": "column", "column": "split", **split}})
    return make_problem(config, data=frame).protocol


def test_a_search_takes_runs_by_itself_and_as_asked() -> None:
    def longest(protocol: Protocol) -> int:
        return max(int(np.split(v, np.flatnonzero(np.diff(v) > 1) + 1)[0].size) for _, v in protocol.splits)

    assert [longest(in_time(split)) == 48 for split in ({}, {"runs": True}, {"runs": False})] == [True, True, False]


def test_a_label_that_lies_in_one_run_only_keeps_rows_dealt() -> None:
    late = [np.nan] * 192 + [0.0, 1.0] * 54
    frame = walk(300).assign(split=["train"] * 240 + ["test"] * 60, late=late)
    config = Config.model_validate(
        {"targets": {"late": {}}, "split": {"kind": "column", "column": "split"}, "inputs": {"z": "categorical"}}
    )
    problem = make_problem(config, data=frame)
    assert all(np.diff(valid).max() > 1 for _, valid in problem.protocol.splits)


def test_runs_of_a_split_that_deals_no_rows_are_one_line() -> None:
    with pytest.raises(SpecError, match="runs are of rows that are dealt"):
        parse_config({"targets": {"y": {}}, "split": {"kind": "time", "column": "t", "runs": True}}, where="mtl.yaml")


def test_runs_beside_validation_rows_that_are_given_are_one_line() -> None:
    frame = walk(300).assign(split=["train"] * 200 + ["val"] * 40 + ["test"] * 60)
    given = {"kind": "column", "column": "split", "runs": True, "folds": 0}
    config = Config.model_validate({"targets": {"y": {}}, "split": given})
    with pytest.raises(SpecError, match="yours are given"):
        make_problem(config, data=frame)


def test_rows_that_lie_twice_in_a_table_have_twins_among_the_others() -> None:
    rows = np.repeat(np.random.default_rng(0).normal(size=(200, 3)).cumsum(0), 2, 0)
    ordered = as_near_as_test(dealt(400, 80), points({"numeric": rows.astype(np.float32)}), seed=0)
    assert "rows dealt at random have twins among the others" in ordered.notes[0]
    assert [len(valid) for _, valid in ordered.splits] == [64] * 5


def test_a_table_without_a_test_keeps_its_split() -> None:
    protocol = dealt(20, 0)
    assert as_near_as_test(protocol, points({"numeric": np.arange(20, dtype=np.float32)[:, None]}), seed=0) is protocol


def test_what_is_known_of_the_columns_comes_from_the_rows_that_learn_in_runs() -> None:
    # One holdout: in runs the last rows validate, and nobody learned their category.
    frame = walk(6000).assign(late=["early"] * 4400 + ["late"] * 1600, split=["train"] * 5000 + ["test"] * 1000)
    config = Config.model_validate({"targets": {"y": {}}, "split": {"kind": "column", "column": "split", "runs": True}})
    problem = make_problem(config, data=frame)
    assert int(problem.protocol.learned.max()) < 4400
    assert [held.name for held in problem.left_out] == ["late"]
