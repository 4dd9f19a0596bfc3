"""What a run leaves to be served: which packages a model needs."""

from __future__ import annotations

from importlib.metadata import version
from types import SimpleNamespace

import pytest

from mtl_bento.columns.image import ImageColumn
from mtl_bento.model import Model
from mtl_bento.schema import Schema
from mtl_bento.tasks._base import TASKS
from mtl_bento.trunks._base import TRUNKS
from mtl_bento_search.served import requirements


def test_packages_of_foreign_tasks_and_trunks_are_pinned_and_ours_are_not(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = SimpleNamespace(tasks=model.tasks, schema=model.schema)
    assert requirements(problem, model.members) == []  # type: ignore[arg-type]
    photo = ImageColumn(name="photo", size=(32, 32), grid=(1, 1))
    pictures = SimpleNamespace(tasks=model.tasks, schema=Schema(columns=(photo, *model.schema.columns)))
    assert requirements(pictures, model.members) == [f"pillow=={version('pillow')}"]  # type: ignore[arg-type]
    monkeypatch.setitem(TASKS._origins, "regression", ("odd-kinds", "0.2"))
    monkeypatch.setitem(TRUNKS._origins, "mlp", ("wavy-trunk", "1.0"))
    assert requirements(problem, model.members) == ["odd-kinds==0.2", "wavy-trunk==1.0"]  # type: ignore[arg-type]
