"""What every kind of task promises, also kinds written tomorrow."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from mtl_bento.errors import SchemaError
from mtl_bento.tasks._base import TASKS
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
"""Labels of several kinds; each kind of task takes at least one of them."""


@pytest.mark.parametrize("kind", TASKS.kinds())
def test_every_task_keeps_its_promises(kind: str) -> None:
    spec = TASKS.parse({"kind": kind, "name": "a name, 名"})
    checked = 0
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
