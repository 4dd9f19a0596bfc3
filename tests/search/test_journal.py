"""The journal: what is said together is one write, and everybody who reads sees all that was said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mtl_bento_search.journal import Journal, together
from mtl_bento_search.study import make_sampler

PARAM, ATTR, REPORT, STATE, BEGINNING = "param_name", "user_attr", "intermediate_value", "state", "datetime_start"


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """The logs of every write to a file."""
    held: list[list[dict[str, Any]]] = []
    write = JournalFileBackend.append_logs

    def append_logs(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        held.append(list(logs))
        write(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", append_logs)
    return held


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.log"


@pytest.fixture
def study(path: Path, writes: list[Any]) -> optuna.Study:
    held = optuna.create_study(
        study_name="s", storage=JournalStorage(Journal(str(path))), sampler=make_sampler(0), direction="maximize"
    )
    writes.clear()
    return held


def reopened(path: Path) -> optuna.Study:
    """The study as another process reads it."""
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kinds(logs: list[dict[str, Any]]) -> list[str]:
    """What logs are about."""
    return [next(kind for kind in (PARAM, ATTR, REPORT, STATE, BEGINNING) if kind in log) for log in logs]


def test_attributes_and_reports_said_together_are_one_write_in_their_order(
    study: optuna.Study, writes: list[list[dict[str, Any]]], path: Path
) -> None:
    trials = [study.ask(), study.ask()]
    writes.clear()
    with together(study):
        trials[0].set_user_attr("b", 1)
        trials[1].report(0.5, step=8)
        trials[0].set_user_attr("a", 2)
        assert writes == []
    (logs,) = writes
    assert kinds(logs) == [ATTR, REPORT, ATTR]
    assert [log["trial_id"] for log in logs] == [0, 1, 0]
    assert lines(path)[-3:] == logs
    assert [t.user_attrs for t in reopened(path).trials] == [{"b": 1, "a": 2}, {}]
    assert reopened(path).trials[1].intermediate_values == {8: 0.5}


def test_a_round_of_asks_is_two_writes_a_trial_and_draws_what_it_would_have_drawn(
    study: optuna.Study, writes: list[list[dict[str, Any]]], tmp_path: Path
) -> None:
    plain = optuna.create_study(storage=InMemoryStorage(), sampler=make_sampler(0), direction="maximize")

    def ask(held: optuna.Study, ordinal: int) -> dict[str, Any]:
        held.sampler = make_sampler(ordinal)
        trial = held.ask()
        params = {name: trial.suggest_float(name, 0.0, 1.0) for name in "xyz"}
        trial.set_user_attr("round", 0)
        return params

    def tell(held: optuna.Study) -> None:
        for i, trial in enumerate(held.get_trials(deepcopy=False)):
            held.tell(trial.number, i / 20)

    def ask_round(held: optuna.Study, first: int) -> list[dict[str, Any]]:
        with together(held):
            return [ask(held, first + i) for i in range(12)]

    assert ask_round(study, 0) == ask_round(plain, 0)
    said = [PARAM] * 3 + [ATTR]
    assert [kinds(logs) for logs in writes] == [[BEGINNING], said] * 12
    tell(study)
    tell(plain)
    # From here on TPE models what is there, the trials of this very round as well.
    assert ask_round(study, 12) == ask_round(plain, 12)


def test_who_reads_inside_sees_all_that_was_said_before(
    study: optuna.Study, writes: list[list[dict[str, Any]]], path: Path
) -> None:
    trial = study.ask()
    writes.clear()
    with together(study):
        for name in "ab":
            trial.set_user_attr(name, name)
        assert study.trials[0].user_attrs == {"a": "a", "b": "b"}
        assert reopened(path).trials[0].user_attrs == {"a": "a", "b": "b"}
        trial.set_user_attr("c", "c")
        trial.report(0.25, step=4)
        told = study.tell(trial, state=TrialState.PRUNED)
        assert (told.state, told.value, told.user_attrs["c"]) == (TrialState.PRUNED, 0.25, "c")
        assert reopened(path).trials[0].state == TrialState.PRUNED
    assert [kinds(logs) for logs in writes] == [[ATTR, ATTR], [ATTR, REPORT], [STATE]]


def test_a_trial_that_is_told_takes_along_what_waits(study: optuna.Study, path: Path, writes: list[Any]) -> None:
    trial = study.ask()
    writes.clear()
    with together(study):
        trial.set_user_attr("a", 1)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0])  # reads nothing before
        assert [kinds(logs) for logs in writes] == [[ATTR, STATE]]
        assert reopened(path).best_trial.user_attrs == {"a": 1}


def test_what_waits_is_written_where_an_error_ends_the_block(
    study: optuna.Study, writes: list[Any], path: Path
) -> None:
    trial = study.ask()

    def fail() -> None:
        with together(study):
            trial.set_user_attr("a", 1)
            trial.set_user_attr("b", 1 / 0)

    with pytest.raises(ZeroDivisionError):
        fail()
    assert study.trials[0].user_attrs == {"a": 1}
    writes.clear()
    trial.set_user_attr("c", 3)
    trial.set_user_attr("d", 4)
    assert [kinds(logs) for logs in writes] == [[ATTR], [ATTR]]  # the block is over
    assert reopened(path).trials[0].user_attrs == {"a": 1, "c": 3, "d": 4}


def test_after_a_write_that_failed_the_block_writes_nothing_more(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half a line may be there; one more line after it would corrupt the journal for good.
    trial = study.ask()
    tried: list[list[str]] = []

    def full(_backend: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        tried.append(kinds(logs))
        raise OSError(28, "No space left on device")

    def ask_another() -> None:
        with together(study):
            trial.set_user_attr("a", 1)
            study.ask()

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(OSError, match="No space left"):
        ask_another()
    assert tried == [[ATTR]]


def test_logs_of_another_process_are_seen(study: optuna.Study, path: Path) -> None:
    trial = study.ask()
    other = reopened(path)
    with together(study):
        trial.set_user_attr("a", 1)
        other.ask({"x": FloatDistribution(0, 1)})
        trial.set_user_attr("b", 2)
        assert len(study.trials) == 2
    assert [t.user_attrs for t in reopened(path).trials] == [{"a": 1, "b": 2}, {}]
    assert [t.user_attrs for t in study.trials] == [{"a": 1, "b": 2}, {}]


@pytest.mark.parametrize("storage", ["memory", "sqlite", "optuna"])
def test_other_storages_are_as_ever(storage: str, tmp_path: Path) -> None:
    made: Any = {
        "memory": InMemoryStorage(),
        "sqlite": f"sqlite:///{tmp_path}/study.db",
        "optuna": JournalStorage(JournalFileBackend(str(tmp_path / "other.log"))),
    }[storage]
    study = optuna.create_study(storage=made)
    trial = study.ask()
    with together(study):
        trial.set_user_attr("a", 1)
        assert study.trials[0].user_attrs == {"a": 1}
