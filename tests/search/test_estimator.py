"""`MultiTaskEstimator`: mixed targets in and out, scikit-learn's own checks, what it refuses."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.estimator_checks import check_estimator
from small import TARGETS, make_table

import mtl_bento as mb
from mtl_bento.errors import FitError
from mtl_bento_search import api, metrics
from mtl_bento_search.estimator import EXPECTED_FAILED_CHECKS, MultiTaskEstimator
from mtl_bento_search.executors.local import InProcess

TINY = {"trunk": ["mlp"], "space": {"steps": 48, "width": 8, "batch_size": 32}}


@pytest.fixture(autouse=True, scope="module")
def in_process() -> Iterator[None]:
    """Train in this process: starting workers costs more than these searches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "make_executor", InProcess)
        patch.setattr(metrics, "RESAMPLES", 10)
        yield


def tiny(**given: Any) -> MultiTaskEstimator:
    return MultiTaskEstimator(**{"n_trials": 1, "random_state": 0, "search": TINY, "split": {"folds": 0}, **given})


FRAME = make_table(200).to_pandas()
X, Y = FRAME.drop(columns=list(TARGETS)), FRAME[list(TARGETS)]


@pytest.fixture(scope="module")
def fitted() -> MultiTaskEstimator:
    """Fitted to a frame of four mixed targets with missing labels."""
    return tiny().fit(X, Y)


def test_a_frame_of_mixed_targets_comes_back_as_one_with_their_types_and_the_rows_index(
    fitted: MultiTaskEstimator,
) -> None:
    some = X.iloc[10:30]
    answered = fitted.predict(some)
    assert list(answered.columns) == list(TARGETS)
    assert answered.index.equals(some.index)
    assert answered["smoker"].dtype == bool
    assert set(answered["分类"]) <= {"低", "中", "高"}
    pd.testing.assert_frame_equal(answered, fitted.model_.predict(some))
    assert fitted.n_features_in_ == X.shape[1]
    assert list(fitted.feature_names_in_) == list(X.columns)


def test_probabilities_and_classes_are_lists_in_the_order_of_the_targets_with_none_for_numbers(
    fitted: MultiTaskEstimator,
) -> None:
    proba = fitted.predict_proba(X)
    assert [None if p is None else p.shape for p in proba] == [(200, 2), (200, 3), None, (200, 2)]
    assert [None if c is None else c.tolist() for c in fitted.classes_] == [
        ["<=50K", ">50K"],
        fitted.classes_[1].tolist(),
        None,
        [False, True],
    ]
    assert set(fitted.classes_[1]) == {"低", "中", "高"}
    for place in (0, 1, 3):
        np.testing.assert_allclose(proba[place].sum(1), 1.0, atol=1e-6)
        likeliest = fitted.classes_[place][proba[place].argmax(1)]
        assert likeliest.tolist() == fitted.predict(X).iloc[:, place].tolist()


def test_the_score_is_the_mean_of_accuracies_and_r2_on_labelled_rows(fitted: MultiTaskEstimator) -> None:
    answered = fitted.predict(X)
    each = []
    for name, kind in TARGETS.items():
        known = Y[name].notna()
        measured = r2_score if kind == "regression" else accuracy_score
        each.append(measured(Y[name][known].tolist(), answered[name][known].tolist()))
    assert fitted.score(X, Y) == pytest.approx(np.mean(each), abs=1e-6)


def test_arrays_come_back_as_arrays_and_one_column_as_one_column() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(120, 3))
    numbers = np.stack([inputs[:, 0] * 2, inputs.sum(1)], 1)
    both = tiny().fit(inputs, numbers)
    assert both.predict(inputs).shape == (120, 2)
    assert both.classes_ == [None, None]
    assert not hasattr(both, "predict_proba")
    labels = np.where(inputs[:, 0] > 0, "up", "down")
    one = tiny().fit(inputs, labels)
    assert one.classes_.tolist() == ["down", "up"]
    assert one.predict(inputs).shape == (120,)
    assert one.predict_proba(inputs).shape == (120, 2)
    mixed = tiny().fit(inputs, np.stack([labels, numbers[:, 1]], 1).astype(object))
    answered = mixed.predict(inputs)
    assert answered.dtype == object
    assert isinstance(answered[0, 0], str)


def test_a_copy_has_the_parameters_and_no_fit_and_a_pickle_answers_the_same(fitted: MultiTaskEstimator) -> None:
    copy = clone(fitted).set_params(n_trials=3)
    assert copy.get_params() == fitted.get_params() | {"n_trials": 3}
    assert not hasattr(copy, "model_")
    again = pickle.loads(pickle.dumps(fitted))
    pd.testing.assert_frame_equal(again.predict(X), fitted.predict(X))
    assert fitted.model_.targets == list(TARGETS)  # pickling left it as it was


def test_the_same_seed_gives_the_same_model_and_weights_change_it(fitted: MultiTaskEstimator) -> None:
    pd.testing.assert_frame_equal(tiny().fit(X, Y).predict(X), fitted.predict(X))
    weighted = tiny().fit(X, Y, sample_weight=np.linspace(0, 1, 200))
    assert not weighted.predict(X)["hours.per week"].equals(fitted.predict(X)["hours.per week"])


def test_the_run_stays_only_where_it_is_asked_for(
    fitted: MultiTaskEstimator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not hasattr(fitted, "run_")
    assert [task["task"] for task in fitted.result_["tasks"]] == list(TARGETS)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tiny().fit(X, Y[["income"]])
    assert list(tmp_path.iterdir()) == []
    kept = tiny(out=tmp_path / "run").fit(X, Y[["income"]])
    assert kept.run_.folder == tmp_path / "run"
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [
        (X, Y.iloc[:50], "X has 200 rows and Y has 50; give one row of Y for each"),
        (X, FRAME[["age"]], "Column 'age' is in X and in Y; rename it in one of them"),
        (X, np.full(200, 1 + 2j), "Complex data not supported"),
        (X, None, "requires y to be passed"),
        (X, FRAME[["income"]].iloc[:, :0], "no column in it"),
        (X, pd.DataFrame({"y": ["a"] * 200}), "nothing to learn"),
    ],
)
def test_what_cannot_be_learned_is_one_line_and_a_value_error(inputs: Any, targets: Any, words: str) -> None:
    with pytest.raises(FitError, match=words) as caught:
        tiny().fit(inputs, targets)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_a_parameter_that_cannot_be_is_one_line() -> None:
    with pytest.raises(FitError, match="targets: 'incme' is no column of Y; did you mean 'income'"):
        tiny(targets={"incme": "binary"}).fit(X, Y)
    with pytest.raises(FitError, match="timeout 'soon' is not a duration"):
        tiny(timeout="soon").fit(X, Y)
    for seed in (-1, "x"):
        with pytest.raises(ValueError, match=r"Seed must be between|cannot be used to seed"):
            tiny(random_state=seed).fit(X, Y)


def test_it_is_found_under_mtl_bento() -> None:
    assert mb.MultiTaskEstimator is MultiTaskEstimator


@pytest.mark.slow
def test_scikit_learns_checks_pass_but_those_that_are_listed_with_the_reason() -> None:
    found = check_estimator(
        tiny(split=None, search={**TINY, "space": {**TINY["space"], "steps": 32}}),
        expected_failed_checks=EXPECTED_FAILED_CHECKS,
        on_skip=None,
    )
    failed = {check["check_name"] for check in found if check["status"] == "xfail"}
    # Rounding decides about this one, and differs from machine to machine.
    assert failed | {"check_methods_sample_order_invariance"} == set(EXPECTED_FAILED_CHECKS)
    assert sum(check["status"] == "passed" for check in found) >= 40
