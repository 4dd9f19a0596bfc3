"""What every kind of task promises, also kinds written tomorrow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from words import Words

from mtl_bento.errors import SchemaError
from mtl_bento.tasks._base import TASKS
from mtl_bento.tasks.multiclass import Multiclass, MulticlassSpec
from mtl_bento.testing import check_task

LABELS: list[Any] = [
    pa.array([">50K", "<=50K", None, "<=50K", ">50K", "<=50K"]),
    pa.array([True, False, None, True, None]),
    pa.array([3.0, 4.5, None, float("nan"), -1e6, 3.0]),
    pa.array(["低", "中", None, "高", "低", ""]),
    pa.array([3, 1, None, 2, 3]),
    pa.array(["a", None, "b", "a"]).dictionary_encode(),
    pa.array([f"label {i}" for i in range(25)] + [None]),
]
"""Labels of several kinds; each kind of task takes at least one of them, or has a sample of its own."""

NAN = float("nan")
BOXES = [[0.5, 0.4, 0.2, 0.3], None, [NAN] * 4, [0.25, 0.25, 0.5, 0.5], [0.9, 0.9, 0.2, 0.2]]
TEXTS = {"note": ["to New York, please", "Boston", "no label", "東京 and Bonn 😀", "from Rome or Rome to Pisa or Bari"]}
SPANS = [
    [{"start": 3, "end": 11, "label": "to"}],
    [{"start": 0, "end": 6, "label": "to"}],
    None,
    [{"start": 0, "end": 2, "label": "from"}, {"start": 7, "end": 11, "label": "from"}],
    [{"start": 5, "end": 9, "label": "from"}],
]
TAGS = [["O", "B-to", "I-to", "O"], ["B-to"], None, ["B-from", "O", "O", "O"], ["O", "B-a"] * 4]
SAMPLES: list[tuple[dict[str, Any], Any, dict[str, Any]]] = [
    ({"kind": "box"}, BOXES, {"known": [True, True, False, True, True]}),
    ({"kind": "grid"}, [[[0, 1], [1, 1], [0, 0]], None, [[0, -1], [-1, 0], [1, 0]], [[-1] * 2] * 3],
     {"known": [True, False, True, False]}),
    ({"kind": "grid", "shape": [1, 3]}, [["road", "car", None], ["sky", "sky", "car"], None], {}),
    ({"kind": "tagging"}, SPANS, {"table": pa.table(TEXTS), "columns": [Words(name="note")]}),
    ({"kind": "tagging"}, TAGS, {"table": pa.table(TEXTS), "columns": [Words(name="note", length=5)]}),
]  # fmt: skip
"""Kinds that need options, or inputs, or whose missing cell is a label: spec, labels, and what `check_task` takes."""


@pytest.mark.parametrize("kind", TASKS.kinds())
def test_every_task_keeps_its_promises(kind: str) -> None:
    spec = TASKS.parse({"kind": kind, "name": "a name, 名"})
    checked = 0
    for options, labels, inputs in SAMPLES:
        if options["kind"] == kind:
            check_task(TASKS.parse({**options, "name": "a name, 名"}), labels, **inputs)
            checked += 1
    if checked:
        return
    for labels in LABELS:
        try:
            TASKS.class_of(type(spec)).fit(spec, pa.chunked_array([labels]))
        except SchemaError:
            continue
        check_task(spec, labels)
        checked += 1
    assert checked


@pytest.mark.parametrize("kind", TASKS.kinds())
def test_a_metric_that_the_kind_lacks_is_refused_with_the_nearest(kind: str) -> None:
    spec = TASKS.parse({"kind": kind, "name": "y"})
    task_class = TASKS.class_of(type(spec))
    metric = task_class.metrics[0]
    with pytest.raises(SchemaError.__mro__[1], match=f"Target 'y': there is no metric '{metric}x' .*mean '{metric}'"):
        task_class(spec.model_copy(update={"metric": metric + "x"}))


@pytest.mark.parametrize("kind", TASKS.kinds())
def test_the_metric_shown_first_is_the_kinds_own_or_the_users(kind: str) -> None:
    spec = TASKS.parse({"kind": kind, "name": "y"})
    task_class = TASKS.class_of(type(spec))
    assert task_class(spec).metric == task_class.metrics[0]
    assert task_class(spec.model_copy(update={"metric": task_class.metrics[-1]})).metric == task_class.metrics[-1]


@pytest.mark.parametrize("kind", TASKS.kinds())
def test_boosted_trees_start_from_the_best_constant_or_do_not_learn_the_kind(kind: str) -> None:
    task_class = TASKS.class_of(TASKS.spec_class(kind))
    for labels in (pa.array([0, 1, 1, 0, 1, 1, 1, 0] * 50), pa.array([1.5, 1.5, 2.0, 0.25] * 100)):
        try:
            task = task_class(task_class.fit(TASKS.parse({"kind": kind, "name": "y"}), pa.chunked_array([labels])))
        except SchemaError:
            continue
        targets = torch.from_numpy(task.encode(pa.chunked_array([labels])))
        if (boosted := task.boosted(targets)) is None:
            continue
        weights = torch.where(targets == targets[0], 3.0, 1.0).double()
        start = torch.from_numpy(boosted.constant(boosted.labels, weights.numpy())).requires_grad_()
        assert start.shape == (task.n_outputs,)
        outputs = start.expand(1, 1, 400, -1)
        task.loss(outputs, targets.unsqueeze(0), weights.unsqueeze(0)).sum().backward()
        # The gradient of a mean loss by a logit is a share: half a label more moves it by a thousandth.
        torch.testing.assert_close(start.grad, torch.zeros_like(start), rtol=0, atol=3e-3)


def test_boosted_trees_start_finite_where_a_label_is_absent() -> None:
    # Each of three labels counted half a time more: (2 + .5, 0 + .5, 2 + .5) / 5.5.
    levels = pa.chunked_array([["a", "b", "c"]])
    task = Multiclass(Multiclass.fit(MulticlassSpec(name="y"), levels))
    boosted = task.boosted(torch.tensor([0, 2, 2, 0]))
    start = boosted.constant(boosted.labels, np.ones(4))
    np.testing.assert_allclose(np.exp(start), [2.5 / 5.5, 0.5 / 5.5, 2.5 / 5.5])
