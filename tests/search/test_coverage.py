"""How often intervals and sets hold the truth, from answers, tables and a service alike."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest
from small import make_dataset, make_table
from test_client import Service

from mtl_bento.client import Client
from mtl_bento.errors import SpecError
from mtl_bento.model import Model
from mtl_bento.tasks.binary import Binary, BinarySpec
from mtl_bento.tasks.regression import Regression, RegressionSpec
from mtl_bento_search import metrics
from mtl_bento_search.coverage import calibrated, coverage, wilson
from mtl_bento_search.evaluation import evaluate, judged
from mtl_bento_search.problem import make_task

HOURS = Regression(RegressionSpec(name="hours", mean=0.0, spread=1.0))


def cells(values: object) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values)])


def test_coverage_is_the_share_of_labelled_rows_whose_truth_the_interval_holds() -> None:
    task = HOURS.with_spec(half_width=1.0, calibrated_on=100)
    answers = np.zeros((5, 1), np.float32)
    labels = cells([0.5, -1.0, 1.5, None, 0.0])
    found = coverage(task, answers, labels)
    # Three of four; Wilson's interval of 3 in 4 is .301 to .954.
    assert found == {
        "task": "hours",
        "level": 0.9,
        "value": 0.75,
        "lower": pytest.approx(0.3006, abs=1e-4),
        "upper": pytest.approx(0.9544, abs=1e-4),
        "size": 2.0,
        "measure": "wide",
        "n": 4,
    }
    weighed = coverage(task, answers, labels, np.array([1.0, 1.0, 0.0, 5.0, 2.0]))
    assert weighed is not None
    assert (weighed["value"], weighed["n"]) == (1.0, 3)
    assert coverage(HOURS, answers, labels) is None
    assert coverage(task, answers, cells([None] * 5).cast(pa.float64())) is None


def test_wilsons_interval_stays_within_0_and_1() -> None:
    # The textbook's: 0 of 10 is 0 to 1.96^2 / (10 + 1.96^2).
    assert wilson(0.0, 10) == (0.0, pytest.approx(3.8415 / 13.8415, abs=1e-4))
    assert wilson(1.0, 10) == (pytest.approx(10 / 13.8415, abs=1e-4), 1.0)


def test_a_choice_is_calibrated_on_the_rows_and_weights_of_its_dataset(model: Model, table: pa.Table) -> None:
    _, dataset = make_dataset(table)
    rows = dataset.splits[0].valid.cpu().numpy()
    answers = model.answers(table.take(pa.array(rows)))
    tasks = calibrated(dataset.tasks, [answers[task.name] for task in dataset.tasks], dataset, rows)
    hours = table["hours.per week"].take(pa.array(rows)).to_numpy()
    known = np.isfinite(hours)
    residuals = np.sort(np.abs(dataset.tasks[2].scored(answers["hours.per week"]) - hours)[known])
    expected = residuals[int(np.ceil((known.sum() + 1) * 0.9)) - 1]
    assert tasks[2].spec.half_width == pytest.approx(expected, rel=1e-5)
    n_classes = len(table["分类"].take(pa.array(rows)).drop_null())
    assert [task.spec.calibrated_on for task in tasks] == [120, n_classes, known.sum(), 120]


def test_intervals_and_sets_hold_the_truth_of_new_rows(calibrated_model: Model) -> None:
    # Calibrated on 1,000 rows and judged on 2,000: two standard errors are about .023.
    fresh = make_table(2_000, seed=9)
    answers = calibrated_model.answers(fresh)
    for task in calibrated_model.tasks:
        found = coverage(task, answers[task.name], fresh[task.name])
        assert found is not None
        assert found["value"] >= 0.9 - 0.025, task.name
        assert found["value"] == pytest.approx(0.9, abs=0.025) or found["size"] < 1.05


def test_a_service_is_evaluated_as_the_model_is_with_coverage(calibrated_model: Model, calibrated_folder: Path) -> None:
    fresh = make_table(300, seed=10)
    client = Client("http://service.test", transport=httpx.MockTransport(Service(calibrated_folder)))
    (here, inputs, _), (there, _, _) = judged(calibrated_model), judged(client)
    assert [task.spec for task in there] == [task.spec for task in here]
    records, over_http = (
        evaluate(partial(source.predict, output="full"), tasks, fresh, inputs=inputs)
        for source, tasks in ((calibrated_model, here), (client, there))
    )
    assert [(r["task"], r["metric"]) for r in records] == [(r["task"], r["metric"]) for r in over_http]
    for one, other in zip(records, over_http, strict=True):
        assert other["value"] == pytest.approx(one["value"], abs=1e-5)
    covered = [r for r in records if r["metric"] == "coverage"]
    assert [r["task"] for r in covered] == calibrated_model.targets
    assert all(r["lower"] <= r["value"] <= r["upper"] for r in covered)


def test_metrics_of_labels_see_the_threshold_and_the_others_the_probabilities() -> None:
    task = Binary(BinarySpec(name="y", levels=(0, 1), dtype="int64", threshold=0.3))
    answers, truth = np.array([[0.35], [0.2], [0.9]], np.float32), np.array([1, 0, 1])
    scored = task.scored(answers)
    assert metrics.measure("f1", truth, scored) == pytest.approx(2 / 3)  # .35 counts as no
    assert metrics.measure("f1", truth, metrics.read("f1", task, scored)) == 1
    assert metrics.measure("accuracy", truth, metrics.read("accuracy", task, scored)) == 1
    assert metrics.read("roc_auc", task, scored) is scored
    assert metrics.read("log_loss", task, scored) is scored


def test_what_is_learned_cannot_be_set_by_the_user() -> None:
    with pytest.raises(SpecError, match=r"^Target 'y': threshold is learned from rows that no network learned; remove"):
        make_task("y", {"threshold": 0.2}, cells([True, False, True]))
    assert make_task("y", {"interval": 0.8}, cells([True, False, True])).spec.interval == 0.8
