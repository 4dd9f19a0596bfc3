"""The study in a storage of the user's: one line for what is wrong with it, and its password is nowhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from killing import KILLED, N_TRIALS, Whole, Zygote, outcome
from vault import PASSWORD

from mtl_bento.errors import RunError
from mtl_bento_search.run import Run
from mtl_bento_search.storage import open_storage, repair_journal, without_password

ADVICE = (
    "check its address, password and driver, then run the same search again; "
    "without --storage the run keeps a journal file."
)


def vault(path: Path, password: str) -> str:
    return f"vault://user:{password.replace('&', '%26')}@host{path}"


def files_with(folder: Path, secret: str) -> list[str]:
    """Return the files under a folder that hold a text, as it is or as a URL holds it."""
    needles = (secret.encode(), secret.replace("&", "%26").encode())
    held = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".db"}
    return [str(path) for path, content in held.items() if any(needle in content for needle in needles)]


def test_a_search_in_a_storage_with_a_password_writes_it_nowhere(
    zygote: Zygote, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = vault(tmp_path / "study.db", PASSWORD)
    assert zygote.sit(tmp_path / "run", n_trials=8, storage=url)["code"] == 0
    assert files_with(tmp_path, PASSWORD) == []
    assert PASSWORD not in "".join(capfd.readouterr())
    run = Run(tmp_path / "run")
    assert run.spec["storage"] == f"vault://user@host{tmp_path}/study.db"
    assert len(Run(tmp_path / "run", storage=url).study.trials) == 8
    with pytest.raises(RunError) as caught:
        _ = run.study
    # What the driver said first: it was given no password.
    assert str(caught.value) == (
        f"The storage vault://user@host{tmp_path}/study.db cannot be used (no password supplied): {ADVICE}"
    )
    assert zygote.sit(tmp_path / "run", n_trials=8, storage=url)["code"] == 0


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("not repeated", 'password authentication failed for user "user"'),
        ("sw0rdf&sh", "its words hold the password"),
    ],
)
def test_a_wrong_password_is_one_line_without_it(
    password: str, reason: str, zygote: Zygote, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = zygote.sit(tmp_path / "run", n_trials=1, storage=vault(tmp_path / "study.db", password))
    assert (answer["code"], answer["error"]) == (
        2,
        f"The storage vault://user@host{tmp_path}/study.db cannot be used ({reason}): {ADVICE}",
    )
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql+psycopg://user:secret@127.0.0.1:1/db", "psycopg[binary]"),
        ("postgresql+psycopg2://user:secret@127.0.0.1:1/db", "psycopg2-binary"),
        ("postgresql+pg8000://user:secret@127.0.0.1:1/db", "pg8000"),
    ],
)
def test_a_driver_that_is_not_installed_is_named(
    url: str, driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = url.partition("+")[2].partition(":")[0]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunError) as caught:
        open_storage(tmp_path, url)
    assert str(caught.value) == (
        f"The storage {url.replace(':secret', '')} needs the driver {module}, which is not installed: "
        f"pip install '{driver}'; without --storage the run keeps a journal file."
    )


@pytest.mark.parametrize(
    ("url", "shown", "reason"),
    [
        ("foo://user:secret@host", "foo://user@host", "Can't load plugin: sqlalchemy.dialects:foo"),
        ("foo://user:p@ss@host", "foo://user@host", "an @ of a password is written %40 in a URL"),
        ("redis://:secret@host", "redis://@host", "Can't load plugin: sqlalchemy.dialects:redis"),
        ("study.db", "...", "this is no URL such as sqlite:///study.db"),
        ("mysql://user:secret@host:port/db", "...", "this is no URL such as sqlite:///study.db"),
        ("sqlite:////no/such/folder/study.db", "sqlite:////no/such/folder/study.db", "unable to open database file"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(url: str, shown: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        open_storage(tmp_path, url)
    assert str(caught.value) == f"The storage {shown} cannot be used ({reason}): {ADVICE}"


def test_a_storage_of_another_version_of_optuna_says_what_to_do(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    storage = open_storage(tmp_path, url)
    assert isinstance(storage, optuna.storages.RDBStorage)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("update alembic_version set version_num = 'v9.9.9'")
    storage.engine.dispose()
    with pytest.raises(RunError, match=r"cannot be used \(.*version.*\): check its address"):
        open_storage(tmp_path, url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:p%40ss@host:5432/db?sslmode=require", "postgresql://user@host:5432/db?sslmode=require"),
        ("postgresql://host/db?user=me&password=p", "postgresql://host/db?user=me"),
        ("postgresql://user:p@ss@host/db", "postgresql://user@host/db"),  # an @ that should have been %40
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dp", "mssql+pyodbc:///"),
        ("mysql://user@host/db", "mysql://user@host/db"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("user:p@host", "..."),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def refusal(n: int, found: str, name: str = "run") -> str:
    return (
        f"The storage holds a study {name!r} of another run, with {n} trials ({found}). Go on with that run in its own "
        f"folder, or name this one otherwise: --out OTHER/{name}-2."
    )


@pytest.fixture(scope="module")
def held(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a storage that holds a study `run` of eight trials."""
    folder = tmp_path_factory.mktemp("held")
    url = f"sqlite:///{folder}/study.db"
    assert zygote.sit(folder / "run", n_trials=8, storage=url)["code"] == 0
    return url


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, "it is another folder's"),
        ({"targets": {"income": "binary"}}, "its targets are income, hours.per week; here income"),
        ({"search": {"trunk": ["mlp", "tabm", "mmoe"]}}, "its trunk is one of mlp, tabm; here one of mlp, tabm, mmoe"),
        (
            {"search": {"trunk": ["mlp", "tabm"], "space": {"width": [8, 24], "lr": 0.01}}},
            "it searches 'lr', which is not searched here",
        ),
        (
            {"search": {"trunk": ["mlp", "tabm"], "space": {"width": {"low": 8, "high": 32}}}},
            "its width is one of 8, 24; here 8 to 32 on a logarithmic scale",
        ),
    ],
)
def test_a_study_of_another_run_is_refused_by_what_differs(
    changes: dict[str, Any], found: str, held: str, zygote: Zygote, tmp_path: Path
) -> None:
    answer = zygote.sit(tmp_path / "run", n_trials=9, storage=held, **changes)
    assert (answer["code"], answer["error"]) == (2, refusal(8, found))
    assert list(tmp_path.iterdir()) == []


def test_a_storage_holds_the_studies_of_several_runs_by_their_names(held: str, zygote: Zygote, tmp_path: Path) -> None:
    assert zygote.sit(tmp_path / "other", n_trials=8, storage=held)["code"] == 0
    assert [t.state.name for t in Run(tmp_path / "other").study.trials] == [
        t.state.name for t in optuna.load_study(study_name="run", storage=held).trials
    ]


def test_a_study_that_somebody_made_by_hand_is_refused(zygote: Zygote, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="run", storage=url, direction="maximize")
    study.add_trial(
        optuna.trial.create_trial(
            params={"x": 1.0}, distributions={"x": optuna.distributions.FloatDistribution(0, 2)}, value=1.0
        )
    )
    answer = zygote.sit(tmp_path / "run", n_trials=1, storage=url)
    assert (answer["code"], answer["error"]) == (2, refusal(1, "it searches 'x', which is not searched here"))


def test_a_study_of_several_objectives_is_refused(zygote: Zygote, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="run", storage=url, directions=["maximize", "minimize"])
    answer = zygote.sit(tmp_path / "run", n_trials=1, storage=url)
    assert (answer["code"], answer["error"]) == (
        2,
        "Study 'run' does not maximise one objective; name another run with --out, or another --storage.",
    )


def test_a_study_whose_trials_are_of_another_space_is_refused_in_its_own_folder(zygote: Zygote, tmp_path: Path) -> None:
    # As after an upgrade that changed the default space; or when a journal was copied from another run.
    ours, other = tmp_path / "ours" / "run", tmp_path / "other" / "run"
    space = {"trunk": ["mlp"], "space": {"steps": 32, "width": [8, 16], "batch_size": 32}}
    assert zygote.sit(ours, n_trials=1)["code"] == 0
    assert zygote.sit(other, n_trials=1, search=space)["code"] == 0
    (other / "study.log").replace(ours / "study.log")
    answer = zygote.sit(ours, n_trials=2)
    assert (answer["code"], answer["error"]) == (2, refusal(1, "its width is one of 8, 16; here one of 8, 24"))


@pytest.mark.parametrize("call", [1, 20, 60, 105])
def test_a_search_in_a_database_that_is_killed_ends_as_the_uninterrupted_one(
    call: int, zygote: Zygote, whole: Whole, tmp_path: Path
) -> None:
    out, url = tmp_path / "run", f"sqlite:///{tmp_path}/study.db"
    at = ("optuna.storages:RDBStorage._set_trial_param", call, "after")
    assert zygote.sit(out, n_trials=N_TRIALS, storage=url, at=at)["code"] == KILLED
    assert zygote.sit(out, n_trials=N_TRIALS, storage=url)["code"] == 0
    files = [name for name in whole.outcome["files"] if name != "study.log"]
    assert outcome(out) == {**whole.outcome, "files": files}


def test_a_run_without_its_study_says_so(zygote: Zygote, whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_bytes((whole.out / "spec.yaml").read_bytes())
    with pytest.raises(
        RunError, match=rf"^There is no study 'run' in {tmp_path}/study\.log; run the same search again"
    ):
        _ = Run(tmp_path).study


def test_a_journal_that_is_damaged_is_named_with_the_line(whole: Whole, tmp_path: Path) -> None:
    lines = (whole.out / "study.log").read_bytes().splitlines(keepends=True)
    lines[6] = b'{"op_code": 3, "stud\n'
    (tmp_path / "study.log").write_bytes(b"".join(lines))
    with pytest.raises(RunError, match=rf"^{tmp_path}/study\.log is damaged in line 7; put a whole copy in its place"):
        open_storage(tmp_path, None)


def test_a_lock_that_is_left_is_removed_also_where_it_leads_nowhere(tmp_path: Path) -> None:
    # Optuna waits for ever for one that leads nowhere, as it does where the run folder was named from elsewhere.
    (tmp_path / "study.log").write_bytes(b"")
    (tmp_path / "study.log.lock").symlink_to("runs/run/study.log")
    (tmp_path / "study.log.lock12ab.rename").symlink_to(tmp_path / "study.log")
    repair_journal(tmp_path / "study.log")
    assert [path.name for path in tmp_path.iterdir()] == ["study.log"]


def test_the_lock_of_a_journal_leads_to_it_wherever_the_folder_was_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    storage = open_storage(Path("run"), None)
    assert isinstance(storage, optuna.storages.JournalStorage)
    storage._backend._lock.acquire()  # type: ignore[attr-defined]
    assert Path("run/study.log.lock").exists()
