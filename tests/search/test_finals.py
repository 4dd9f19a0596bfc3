"""The finals: what may serve is bounded by the user, and choosing anew trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from small import TARGETS, make_table

import mtl_bento as mb
from mtl_bento.errors import RunError, SpecError
from mtl_bento.forest import Forest
from mtl_bento.model import Model
from mtl_bento_search import arms, finals
from mtl_bento_search.run import Run
from mtl_bento_search.select import Candidate, Finalist

pytestmark = pytest.mark.usefixtures("in_process")

SMALL = {"trunk": ["mlp"], "space": {"steps": 48, "width": 16, "batch_size": 32}}
NAMES = list(TARGETS)


def tiny(out: Path, *, search: dict[str, Any] | None = None, **changes: Any) -> Run:
    """A search of two trials, three folds."""
    given = {"targets": TARGETS, "n_trials": 2, "seed": 1, "split": {"folds": 3}, "search": SMALL | (search or {})}
    return mb.search(make_table(300), out=out, **(given | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, in_process: None) -> Run:
    return tiny(tmp_path_factory.mktemp("finals") / "run")


def kinds(run: Run) -> set[str]:
    """The kinds of candidates that serve."""
    return {candidate["kind"] for candidate in run.result["blend"]["candidates"]}


def test_every_arm_is_compared_and_shares_sum_to_one(run: Run) -> None:
    for record in run.result["tasks"]:
        assert list(record["against"]) == ["single_task", "ensemble", "trees"]
    shares = np.array(list(run.result["blend"]["shares"].values()))
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(run.model.blend.sum(1), 1)


def test_choosing_anew_trains_nothing_and_is_another_look_at_the_test(tmp_path: Path) -> None:
    first = tiny(tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (first.folder / "checkpoints").iterdir()}
    again = tiny(tmp_path / "run", search={"max_members": 1, "members": "networks"})
    assert {path.name: path.stat().st_mtime_ns for path in (again.folder / "checkpoints").iterdir()} == before
    assert (np.array(list(again.result["blend"]["shares"].values())) > 0).sum() == len(NAMES)
    assert not any(isinstance(member, Forest) for member in again.model.members)
    assert "trees" in again.result["tasks"][0]["against"]  # still compared with
    assert again.result["test_looks"] == 2
    assert tiny(tmp_path / "run", search={"max_members": 1, "members": "networks"}).result["test_looks"] == 2


def test_without_trees_none_are_tuned_or_compared_with(tmp_path: Path) -> None:
    run = tiny(tmp_path / "run", search={"trees": False})
    assert not list((run.folder / "checkpoints").glob("trees-*"))
    assert kinds(run) <= {"shared", "group", "single"}
    assert list(run.result["tasks"][0]["against"]) == ["single_task", "ensemble"]


def test_groups_of_the_user_are_the_only_ones_that_share(tmp_path: Path) -> None:
    groups = [NAMES[:2], NAMES[2:3], NAMES[3:]]
    run = tiny(tmp_path / "run", groups=groups, search={"trees": False})
    assert kinds(run) <= {"group", "single"}
    assert [p["groups"] for p in run.result["groups"]["partitions"]] == [groups]
    assert all(loss is not None for loss in run.result["groups"]["partitions"][0]["losses"])


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([["incme"], NAMES[1:]], r"groups: 'incme' is no target; did you mean 'income'\? Targets: "),
        ([NAMES, NAMES[:1]], rf"groups: '{NAMES[0]}' is named twice; every target belongs to one group\.$"),
        ([NAMES[1:]], rf"groups: '{NAMES[0]}' is in no group; add it, alone as \[{NAMES[0]}\] where it shares none\.$"),
    ],
)
def test_wrong_groups_are_one_line_and_write_nothing(groups: list[list[str]], words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words) as raised:
        tiny(tmp_path / "run", groups=groups)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_latency_that_nothing_meets_names_what_would_be_met(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^--max-latency-ms 1e-06 cannot be met: .* takes [\d.]+ ms here\. Allow "):
        tiny(tmp_path / "run", search={"max_latency_ms": 1e-6})
    assert tiny(tmp_path / "run", search={"max_latency_ms": 1e6}).result["test_looks"] == 1


def test_slow_requests_are_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = [0.0], dict.fromkeys(arms.LATENCY_ROWS, 0)

    class Slow:
        """A tenth of a second a row."""

        def rows(self, table: pa.Table) -> None:
            clock[0] += 0.1 * table.num_rows
            asked[table.num_rows] += 1

    monkeypatch.setattr("mtl_bento_search.arms.time.perf_counter", lambda: clock[0])
    took = arms.latencies_ms(cast(Model, Slow()), make_table(10))
    assert took == pytest.approx({1: 100.0, 64: 6_400.0})
    assert asked == {1: 6, 64: 2}


def test_a_task_that_no_network_answers_alone_keeps_its_place_among_affinities_and_has_no_single_task_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, answers_on = finals._answered, finals.answers_on

    def diverged(candidate: Candidate) -> bool:
        return candidate.kind == "single" and candidate.can(NAMES[1])

    def spoiled(driver: Any, candidate: Candidate) -> Finalist:
        held = answered(driver, candidate)
        if not diverged(candidate):
            return held
        return Finalist(candidate, tuple(a if a is None else np.full_like(a, np.nan) for a in held.answers))

    def spoiled_on(problem: Any, candidate: Candidate, rows: np.ndarray) -> Any:
        held = answers_on(problem, candidate, rows)
        return tuple(np.full_like(a, np.nan) if a is not None and diverged(candidate) else a for a in held)

    monkeypatch.setattr(finals, "_answered", spoiled)
    monkeypatch.setattr(arms, "answers_on", spoiled_on)
    result = tiny(tmp_path / "run", search={"trees": False}).result
    errors = np.array(result["groups"]["affinities"]["errors"])
    assert errors.shape == (4, 4)
    np.testing.assert_array_equal(errors[1], np.eye(4)[1])
    assert np.abs(errors[np.ix_([0, 2, 3], [0, 2, 3])]).min() > 0
    assert [list(record["against"]) for record in result["tasks"]] == [
        ["single_task"],
        [],
        ["single_task"],
        ["single_task"],
    ]
    assert "single_task_default" not in result["tasks"][1]["values"]
