"""Fixtures: a warm process that searches, and a search that nobody touched."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest
from killing import N_TRIALS, Whole, Zygote, outcome
from small import make_table

from mtl_bento_search import api, metrics
from mtl_bento_search.executors.local import InProcess


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A process that forks a child for every sitting of a search."""
    table = tmp_path_factory.mktemp("zygote") / "t.parquet"
    pq.write_table(make_table(200), table)
    with Zygote(table) as warm:
        yield warm


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Whole:
    """A search that nobody touched."""
    out = tmp_path_factory.mktemp("whole") / "run"
    answer = zygote.sit(out, n_trials=N_TRIALS)
    assert answer["code"] == 0
    return Whole(out, outcome(out), answer["seconds"])


@pytest.fixture(scope="module")
def in_process() -> Iterator[None]:
    """Train in this process, with few draws of a bootstrap: starting workers costs more than the searches of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "make_executor", InProcess)
        patch.setattr(metrics, "RESAMPLES", 40)
        yield
