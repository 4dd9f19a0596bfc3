"""Where the study lives: Optuna's journal in the run folder, or a storage of the user's, given by its URL.

Whatever a storage fails with becomes one line, and no line and no file holds its password.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from mtl_bento.errors import RunError, listing
from mtl_bento_search.journal import Journal
from mtl_bento_search.space import Space

STUDY = "study.log"
"""The journal's name in the run folder."""
SECRET = re.compile("pass|pwd|secret|token|key|connect", re.IGNORECASE)
"""Names of options in a URL that may hold a password."""
DISTRIBUTIONS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""What to install for a driver that is called otherwise."""


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """Return the Optuna storage of a run: its own journal, or the one at a URL; raises RunError where there is none."""
    if url is None:
        return _open_journal((folder / STUDY).resolve())  # Optuna's lock is a link to this path, from beside it
    with answering(url):
        try:
            return RDBStorage(url)
        except ImportError as error:
            driver = getattr(error.__cause__, "name", None) or "of its database"
            raise RunError(
                f"The storage {without_password(url)} needs the driver {driver}, which is not installed: "
                f"pip install '{DISTRIBUTIONS.get(driver, driver)}'; without --storage the run keeps a journal file."
            ) from None
        except (RuntimeError, ValueError) as error:  # its tables are of another version of Optuna, or it is no URL
            raise _unusable(url, str(error)) from None


def _open_journal(path: Path) -> JournalStorage:
    try:
        return JournalStorage(Journal(str(path)))
    except (ValueError, KeyError):
        raise RunError(
            f"{path} is damaged in line {_first_damaged(path)}; put a whole copy in its place, or search anew with "
            "another --out."
        ) from None


def _first_damaged(path: Path) -> int:
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)["op_code"]
        except (ValueError, KeyError, TypeError):
            return number
    return len(lines)


def repair_journal(path: Path) -> None:
    """Repair what a killed driver left: half a last line, and Optuna's lock. Only while no driver writes.

    One more line after half a one would corrupt the journal for good, and a lock that is left makes others wait.
    """
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink()
    if not path.is_file():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def own_study(
    name: str, storage: BaseStorage, attrs: dict[str, Any], space: Space, *, sampler: BaseSampler, pruner: BasePruner
) -> optuna.Study:
    """Return the run's study, made where it is not there; raises RunError where it is of another run or space."""
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        direction="maximize",
        load_if_exists=True,
    )
    if study.directions != [optuna.study.StudyDirection.MAXIMIZE]:
        raise RunError(
            f"Study {name!r} does not maximise one objective; name another run with --out, or another --storage."
        )
    held, n = study.user_attrs, len(study.get_trials(deepcopy=False))
    found = _difference(study, attrs["tasks"], space)
    if found is None and held.get("run") != attrs["run"] and (n or "run" in held):
        found = "it is another folder's"
    if found is not None:
        raise RunError(
            f"The storage holds a study {name!r} of another run, with {n} trials ({found}). Go on with that run in its "
            f"own folder, or name this one otherwise: --out OTHER/{name}-2."
        )
    return study


def _difference(study: optuna.Study, tasks: list[str], space: Space) -> str | None:
    """Return what in a study is not of these targets and this space, the first such thing, or None."""
    known = study.user_attrs.get("tasks", tasks)
    if known != tasks:
        return f"its targets are {listing(known)}; here {listing(tasks)}"
    for trial in study.get_trials(deepcopy=False):
        for name, distribution in trial.distributions.items():
            wanted = space.distributions.get(name)
            if wanted is None:
                return f"it searches {name!r}, which is not searched here"
            if wanted != distribution:
                return f"its {name} is {_range(distribution)}; here {_range(wanted)}"
    return None


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return "one of " + listing(map(str, distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return f"{distribution.low:g} to {distribution.high:g}" + (" on a logarithmic scale" if distribution.log else "")


def claim(study: optuna.Study, attrs: dict[str, Any]) -> None:
    """Say whose the study is, and of what."""
    if not study.metric_names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(["gain"])
    for key, value in attrs.items():
        if study.user_attrs.get(key) != value:
            study.set_user_attr(key, value)


@contextlib.contextmanager
def answering(url: str | None) -> Iterator[None]:
    """Turn what a storage fails with into one line; raises RunError."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        if url is None:
            raise
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        # The driver's own words, where there are any: SQLAlchemy's hold the statement and its values.
        text = str(getattr(cause, "orig", None) or cause or error)
        raise _unusable(url, text) from None


def _unusable(url: str, text: str) -> RunError:
    reason = (text.strip().splitlines() or ["no reason given"])[0].rstrip(".")
    parsed = _parsed(url)
    if parsed is None:
        reason = "this is no URL such as sqlite:///study.db"
    elif "@" in (parsed.host or ""):
        reason = "an @ of a password is written %40 in a URL"
    elif any(secret in reason for secret in _secrets(url)):
        reason = "its words hold the password"
    return RunError(
        f"The storage {without_password(url)} cannot be used ({reason}): check its address, password and driver, then "
        "run the same search again; without --storage the run keeps a journal file."
    )


def without_password(url: str) -> str:
    """Return a storage URL without its password and without options that may hold one."""
    parsed = _parsed(url)
    if parsed is None:
        return "..."  # nothing says where in it a password is
    query = {name: value for name, value in parsed.query.items() if not SECRET.search(name)}
    # An @ that was not written as %40 leaves the end of the password in the host.
    host = parsed.host and parsed.host.rpartition("@")[2]
    bare = URL.create(parsed.drivername, parsed.username, None, host, parsed.port, parsed.database, query)
    return bare.render_as_string(hide_password=False)


def _secrets(url: str) -> set[str]:
    """Return the passwords in a URL, as they are meant and as they are written."""
    parsed = make_url(url)
    options = [value for name, value in parsed.query.items() if SECRET.search(name)]
    found = {text for value in options for text in ([value] if isinstance(value, str) else value)}
    found |= {str(parsed.password or ""), (parsed.host or "").rpartition("@")[0]}
    found.add(url.partition("://")[2].rpartition("@")[0].partition(":")[2])
    return found - {""}


def _parsed(url: str) -> URL | None:
    try:
        return make_url(url)
    except (SQLAlchemyError, ValueError):
        return None
