"""Importance and explanation: inputs that matter come out, those that do not stay at zero, what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtl_bento.errors import SchemaError, SpecError
from mtl_bento.model import Model
from mtl_bento_search.explain import affordable_rows, explain, groups_of, importance

ROWS = np.arange(480, 600)  # those that the small model did not learn


def test_the_input_that_a_task_depends_on_is_most_important_and_noise_is_not(model: Model, table: pa.Table) -> None:
    records = importance([(model, ROWS)], table)
    assert records is not None
    assert len(records) == 4 * 6
    # hours = 40 + 5 (age, state, embedding[0]) + noise; weight and children are nothing to it.
    hours = {r["input"]: r for r in records if r["task"] == "hours.per week"}
    assert set(list(hours)[:3]) == {"age", "state", "embedding"}
    assert hours["age"]["lower"] > 0.1
    assert hours["children"]["upper"] < hours["age"]["lower"]
    assert all(r["lower"] <= r["importance"] <= r["upper"] for r in records)


def test_importance_is_the_mean_rise_of_the_loss_in_units_of_the_trivial_loss(model: Model, table: pa.Table) -> None:
    (record,) = [
        r
        for r in importance([(model, ROWS)], table, groups={"all": list(model.schema.names)}, repeats=1) or []
        if r["task"] == "income"
    ]
    held, task = table.take(pa.array(ROWS)), model.tasks[0]
    order = np.random.default_rng(0).permutation(len(ROWS))
    targets = torch.from_numpy(task.encode(held["income"]))
    losses = [
        task.answer_losses(torch.from_numpy(model.answers(t)["income"]), targets).double().numpy()
        for t in (held.take(pa.array(order)), held)
    ]
    rises = (losses[0] - losses[1]) / task.trivial_loss(targets)
    assert record["input"] == "all"
    assert record["importance"] == pytest.approx(rises.mean(), rel=1e-5)
    assert record["upper"] - record["lower"] == pytest.approx(2 * 1.96 * rises.std(ddof=1) / np.sqrt(120), rel=1e-5)


def test_parts_are_judged_each_by_its_own_model_and_put_together(model: Model, table: pa.Table) -> None:
    whole = importance([(model, ROWS)], table, groups={"all": list(model.schema.names)})
    parts = importance([(model, ROWS[:60]), (model, ROWS[60:])], table, groups={"all": list(model.schema.names)})
    assert whole is not None
    assert parts is not None
    for one, other in zip(whole, parts, strict=True):
        assert one["lower"] < other["importance"] < one["upper"]


def test_a_deadline_in_the_past_gives_nothing(model: Model, table: pa.Table) -> None:
    assert importance([(model, ROWS)], table, deadline=0.0) is None


def test_where_time_is_short_fewer_rows_are_used(
    model: Model, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(rows: np.ndarray, deadline: float = float("inf")) -> list[dict[str, Any]] | None:
        ticks = itertools.count()  # each look at the clock is a second after the last
        monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
        return importance([(model, rows)], table, groups={"all": model.schema.names}, repeats=1, deadline=deadline)

    # The rows as they are take a second, so one shuffle is allowed two: of 1 s that is left it uses every second row.
    assert measured(ROWS, deadline=2.0) == measured(ROWS[::2])
    assert measured(ROWS, deadline=3.0) == measured(ROWS) != measured(ROWS[::2])


def test_rows_are_as_many_as_are_quickly_answered(model: Model) -> None:
    assert len(affordable_rows(model, np.arange(10_000))) == 1_000
    assert affordable_rows(model, np.arange(7)).tolist() == list(range(7))
    # 50 requests of 1,000 rows over 3 x 6 shuffles of 6 inputs each and the rows as they are.
    assert len(affordable_rows(model, np.arange(10_000), repeats=30)) == 50_000 // (30 * 6 + 1)


def test_an_explanation_is_the_answer_minus_the_answer_without_the_input(model: Model, table: pa.Table) -> None:
    rows = table.slice(0, 20)
    changes = explain(model, rows)
    assert list(changes) == list(model.targets)
    assert list(changes["income"]) == list(model.schema.names)
    place = rows.column_names.index("age")
    without = rows.set_column(place, "age", pa.nulls(20, pa.float64()))
    whole, other = model.predict(rows, output="full"), model.predict(without, output="full")
    hours = np.subtract(whole["hours.per week"].to_numpy(), other["hours.per week"].to_numpy())
    np.testing.assert_allclose(changes["hours.per week"]["age"], hours, atol=1e-5)
    missing = np.array([value is None for value in rows["age"].to_pylist()])
    assert missing.any()
    assert (changes["hours.per week"]["age"][missing] == 0).all()
    label = whole["income"].to_pylist()
    proba = [t[f"income__proba__{v}"][i].as_py() for t in (whole, other) for i, v in enumerate(label)]
    np.testing.assert_allclose(changes["income"]["age"], np.subtract(proba[:20], proba[20:]), atol=1e-6)


def test_inputs_of_a_group_are_left_out_together(model: Model, table: pa.Table) -> None:
    rows = table.slice(0, 20)
    grouped = explain(model, rows, groups={"who": ["age", "state"]})
    assert list(grouped["income"]) == ["who", "вес, кг", "children", "when", "embedding"]
    without = rows
    for name in ("age", "state"):
        place = rows.column_names.index(name)
        without = without.set_column(place, name, pa.nulls(20, rows[name].type))
    hours = np.subtract(
        model.predict(rows)["hours.per week"].to_numpy(), model.predict(without)["hours.per week"].to_numpy()
    )
    np.testing.assert_allclose(grouped["hours.per week"]["who"], hours, atol=1e-5)


def test_wrong_groups_and_tables_are_one_line(model: Model, table: pa.Table) -> None:
    with pytest.raises(SpecError, match="there is no input 'agee'; did you mean 'age'"):
        groups_of(model, table, {"who": ["agee"]})
    with pytest.raises(SpecError, match="input 'age' is in a group already"):
        groups_of(model, table, {"who": ["age"], "what": ["age"]})
    with pytest.raises(SpecError, match="Group 'state' has the name of an input"):
        groups_of(model, table, {"state": ["age"]})
    with pytest.raises(SchemaError, match="none of the targets"):
        importance([(model, ROWS)], table.select(["age"]))
    with pytest.raises(SchemaError, match="none of the model's inputs"):
        explain(model, table.select(["income"]))
