"""Forests answer as the LightGBM boosters that they were compiled from, and need torch alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtl_bento.forest import Forest
from mtl_bento_search.trees import compile as compile_booster

lightgbm = pytest.importorskip("lightgbm")

QUIET = {"verbosity": -1, "num_threads": 1, "deterministic": True, "force_row_wise": True, "min_data_in_bin": 1}
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def table(seed: int, n: int = 300) -> np.ndarray:
    """Return rows [n, 7] with NaN: numbers, whole numbers with zeros, a constant, nothing at all, two of categories."""
    rng = np.random.default_rng(seed)
    x = np.stack(
        [
            rng.normal(size=n),
            rng.exponential(size=n) * 10.0 ** rng.integers(-3, 6),
            rng.integers(-2, 3, n),
            np.full(n, 3.0),
            np.full(n, np.nan),
            rng.integers(0, 6, n),
            rng.integers(0, 70, n),
        ],
        1,
    ).astype(np.float32)
    holes = rng.random(x.shape) < rng.choice([0.0, 0.2], size=x.shape[1])
    x[holes] = np.nan
    return x


def grown(x: np.ndarray, seed: int, *, rounds: int = 12, **params: Any) -> Any:
    """Return a booster of labels that depend on numbers, zeros, missing cells and categories."""
    rng = np.random.default_rng(seed + 1)
    filled = np.nan_to_num(x, nan=0.7)
    signal = filled[:, 0] + 2 * (x[:, 2] == 0) + np.isnan(x[:, 1]) + np.isin(x[:, 6], [3, 5, 40, 69]) + (x[:, 5] == 2)
    number = signal + rng.normal(0, 0.3, len(x))
    objective = params.get("objective", "regression")
    cuts = {"regression": None, "binary": [1.0], "multiclass": [0.5, 1.5]}[objective]
    labels = number if cuts is None else np.digitize(number, cuts)
    sets = {"min_data_per_group": 1, "max_cat_to_onehot": 2, "cat_smooth": 1.0}
    params = {**QUIET, **sets, "min_child_samples": 3, "num_class": 3 if objective == "multiclass" else 1, **params}
    data = lightgbm.Dataset(x, labels, categorical_feature=[5, 6], params=params)
    return lightgbm.train(params, data, num_boost_round=rounds)


def assert_equal(booster: Any, forest: Forest, x: np.ndarray) -> None:
    raw = booster.predict(x, raw_score=True).reshape(len(x), -1)
    margins = forest.margins(torch.from_numpy(x))
    assert margins.dtype == torch.float32
    np.testing.assert_allclose(margins.numpy(), raw, rtol=1e-6, atol=1e-6)


@MANY
@given(
    seed=st.integers(0, 10_000),
    objective=st.sampled_from(["regression", "binary", "multiclass"]),
    zero_as_missing=st.booleans(),
    use_missing=st.booleans(),
    leaves=st.sampled_from([2, 7, 31]),
    extra=st.booleans(),
)
def test_margins_are_lightgbms_raw_predictions(
    seed: int, objective: str, zero_as_missing: bool, use_missing: bool, leaves: int, extra: bool
) -> None:
    x = table(seed)
    options = {"zero_as_missing": zero_as_missing, "use_missing": use_missing, "extra_trees": extra}
    booster = grown(x, seed, objective=objective, num_leaves=leaves, **options)
    forest = compile_booster(booster, "y")
    assert_equal(booster, forest, x)
    other = table(seed + 1, 100)  # cells missing elsewhere, categories that were never seen
    other[:4, 5] = [-1, 6, 63, 64]
    other[:6, 6] = [-0.5, 3.9, 70, 1e6, 3e9, -7]
    other[:6, 0] = [np.inf, -np.inf, 0.0, -0.0, 1e-36, 3.4e38]
    other[6:12, 2] = [0.0, -0.0, 1e-36, -1e-36, 1e-34, np.nan]
    assert_equal(booster, forest, other)


def test_numbers_at_a_threshold_and_beside_it_go_as_lightgbm_sends_them() -> None:
    # Thresholds are float64 halfway between float32 cells; held as float32 they must not change sides.
    rng = np.random.default_rng(0)
    x = (1 + rng.integers(0, 40, (400, 1)) * np.finfo(np.float32).eps).astype(np.float32)
    data = lightgbm.Dataset(x, x[:, 0].argsort().argsort() % 7, params=QUIET)
    booster = lightgbm.train({**QUIET, "objective": "regression", "min_child_samples": 1}, data, num_boost_round=20)
    forest = compile_booster(booster, "y")
    near = np.unique(np.concatenate([np.nextafter(x, np.float32(9)), np.nextafter(x, np.float32(-9)), x]))[:, None]
    assert forest.n_trees == 20
    assert_equal(booster, forest, near)


def test_trees_of_one_leaf_answer_a_constant() -> None:
    x = table(0, 30)
    booster = grown(x, 0, min_child_samples=1000)
    forest = compile_booster(booster, "y")
    assert int(forest.tensors["depth"]) == 0
    assert_equal(booster, forest, x)


def test_one_row_and_no_row_are_answered() -> None:
    x = table(3)
    booster = grown(x, 3, objective="multiclass")
    forest = compile_booster(booster, "y")
    assert_equal(booster, forest, x[:1])
    assert forest.margins(torch.from_numpy(x[:0])).shape == (0, 3)


def test_rows_in_pieces_answer_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(table(4))
    forest = compile_booster(grown(table(4), 4), "y")
    whole = forest.margins(x)
    monkeypatch.setattr("mtl_bento.forest.CACHED", 1)
    assert torch.equal(forest.margins(x), whole)


def test_the_bias_is_added_to_each_output() -> None:
    x = table(5)
    booster = grown(x, 5, objective="multiclass")
    plain, moved = (compile_booster(booster, "y", bias=bias) for bias in (None, np.array([0.0, 1.0, -2.0])))
    rows = torch.from_numpy(x)
    torch.testing.assert_close(
        moved.margins(rows) - plain.margins(rows), torch.tensor([[0.0, 1.0, -2.0]]).expand(300, 3)
    )


def test_a_booster_stopped_early_is_compiled_up_to_its_best_round() -> None:
    x = table(6)
    booster = grown(x, 6, rounds=9)
    booster.best_iteration = 4
    forest = compile_booster(booster, "y")
    assert forest.n_trees == 4
    assert_equal(booster, forest, x)


def test_linear_and_averaged_trees_are_refused() -> None:
    x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    for options, words in (
        ({"linear_tree": True}, "linear trees cannot be compiled"),
        ({"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, "averages its trees"),
    ):
        params = {**QUIET, **options, "objective": "regression"}
        booster = lightgbm.train(params, lightgbm.Dataset(x, x.sum(1), params=params), num_boost_round=3)
        with pytest.raises(ValueError, match=words):
            compile_booster(booster, "y")
