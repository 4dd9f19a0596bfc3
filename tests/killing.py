"""Searches that can be killed cheaply: a warm process forks one child a sitting, and kills it where it is told to.

Run as a script this file is that process: it reads a job a line (JSON, see `Zygote.sit`), forks, waits and answers with
a line. What kills a child at a named moment is patched into it here; the product has no hook for it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pkgutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
import vault  # noqa: F401 - a database for tests
from optuna.storages._rdb import storage as rdb
from sqlalchemy import Engine, event

import mtl_bento as mb
from mtl_bento.errors import MtlBentoError, RunError
from mtl_bento_search import api, metrics, study
from mtl_bento_search.executors.local import InProcess, Processes
from mtl_bento_search.run import Run

KILLED = -signal.SIGKILL
N_TRIALS = 14
"""Of a whole search: trial 0, two rounds of six, and one of one."""


@dataclass(frozen=True)
class Whole:
    """A search that nobody touched."""

    out: Path
    outcome: dict[str, Any]
    seconds: float


def outcome(out: Path) -> dict[str, Any]:
    """Return what must not depend on kills: every trial, every figure of the result, the model, and which files."""
    run = Run(out)
    trials = [
        (t.number, t.state.name, t.value, t.params, t.intermediate_values, {**t.user_attrs, "train_s": None})
        for t in run.study.trials
    ]
    kept = [out / "model" / name for name in ("weights.safetensors", "samples.json")]
    return {
        "trials": trials,
        "study": {**run.study.user_attrs, "run": None},
        "result": {**run.result, "phases_s": None, "elapsed_s": None},
        "model": [hashlib.sha256(path.read_bytes()).hexdigest() for path in kept],
        "files": sorted(str(path.relative_to(out)) for path in out.rglob("*")),
    }


def told(out: Path) -> dict[int, Any]:
    """Return number -> state and value of the trials that a run's study calls finished; a killed run may have none."""
    try:
        trials = Run(out).study.trials
    except RunError:  # killed before there was a run, or its study
        return {}
    return {t.number: (t.state.name, t.value) for t in trials if t.state.is_finished()}


class Zygote:
    """The warm process, seen from a test. A context manager."""

    def __init__(self, table: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(table)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def sit(self, out: Path, *, n_trials: int, **job: Any) -> dict[str, Any]:
        """Run one sitting of a search and return {"code", "seconds", "error"}.

        Args:
            out: the run folder.
            n_trials: total of the run.
            job: `after` seconds kill it; `at=(target, call, action)` acts at the n-th call of `target`, which is
                "module:name", or "module:name~text" where only calls with that text in their first argument count;
                `workers=n` trains in n processes; other keys are arguments of `mb.search`.

        The code is that of the process, -9 where it was killed, 2 where it ended with one of our errors.
        """
        pipe_in, pipe_out = self.process.stdin, self.process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        print(json.dumps({"out": str(out), "n_trials": n_trials, **job}), file=pipe_in, flush=True)
        answer: dict[str, Any] = json.loads(pipe_out.readline())
        return answer

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)  # closes its stdin: it ends by itself


def main(table: str) -> None:
    """Serve jobs until stdin is closed."""
    torch.set_num_threads(1)
    # Slow, and no help against a kill: only a power cut loses what was written.
    os.fsync = lambda _handle: None
    event.listen(Engine, "connect", hurry)
    rdb.time = SimpleNamespace(sleep=lambda _seconds: None)  # Optuna makes a trial five times where the disk is full
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:  # what is imported and set up once is not done by every child
        search(table, out=f"{folder}/run", n_trials=8)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # it is waited for, with a limit of time
    for line in sys.stdin:
        print(json.dumps(serve(table, json.loads(line))), file=answers, flush=True)


def hurry(connection: Any, _record: Any) -> None:
    """Have sqlite not wait for the disk."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("pragma synchronous = off")


def serve(table: str, job: dict[str, Any]) -> dict[str, Any]:
    """Fork a child that does the job, kill it when its time is up, and return how it ended."""
    after = job.pop("after", None)
    reading, writing = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reading)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        sit(table, writing, **job)
    os.close(writing)
    if after is not None and signal.sigtimedwait({signal.SIGCHLD}, after) is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    signal.sigtimedwait({signal.SIGCHLD}, 0)  # the one that was pending
    with os.fdopen(reading) as pipe:
        error = pipe.read()
    return {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - began, "error": error}


def search(table: str, *, out: str, n_trials: int, workers: int = 1, **options: Any) -> None:
    """Search a small space in rounds of six."""
    api.make_executor = InProcess if workers == 1 else lambda dataset: Processes(dataset, workers)
    metrics.RESAMPLES, study.ROUND_SIZE = 5, 6
    space = {"steps": 32, "width": [8, 24], "tabm.inner": 2, "batch_size": 32}
    arguments = {
        "targets": {"income": "binary", "hours.per week": "regression"},
        "seed": 4,
        "search": {"trunk": ["mlp", "tabm"], "space": space},
        "split": {"folds": 0},
    }
    mb.search(table, out=out, n_trials=n_trials, **{**arguments, **options})


def sit(table: str, writing: int, *, at: Any = None, **job: Any) -> NoReturn:
    """Search, in the child; never returns."""
    code = 1
    try:
        if at is not None:
            install(*at)
        search(table, **job)
        code = 0
    except MtlBentoError as error:
        os.write(writing, str(error).encode())
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def install(target: str, call: int, action: str) -> None:
    """Patch a function so that its n-th call acts."""
    name, _, text = target.partition("~")
    module, _, path = name.partition(":")
    within, _, attribute = path.rpartition(".")
    owner = pkgutil.resolve_name(f"{module}:{within}" if within else module)
    original = getattr(owner, attribute)
    count = 0

    def patched(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += text in str(args[0])
        if count != call or text not in str(args[0]):
            return original(*args, **options)
        return ACTIONS[action](original, *args, **options)

    setattr(owner, attribute, patched)


def die() -> NoReturn:
    """End as SIGKILL ends: nothing is tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def kill_before(_original: Callable[..., Any], *_args: Any, **_options: Any) -> Any:
    """Die instead of the call."""
    die()


def kill_after(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Die after the call."""
    original(*args, **options)
    die()


def tear(_original: Callable[..., Any], backend: Any, logs: list[dict[str, Any]]) -> Any:
    """Die in the middle of the middle line of what is written to the journal, which is locked."""
    backend._lock.acquire()
    lines = [json.dumps(log, separators=(",", ":")) for log in logs[: len(logs) // 2 + 1]]
    with Path(backend._file_path).open("ab") as file:
        file.write("\n".join(lines).encode()[:-20])
        file.flush()
    die()


def kill_a_worker(original: Callable[..., Any], processes: Processes, *args: Any, **options: Any) -> Any:
    """Kill a worker process, then go on."""
    os.kill(processes._workers[0]._process.pid, signal.SIGKILL)
    return original(processes, *args, **options)


def fill_the_disk(_original: Callable[..., Any], *_args: Any, **_options: Any) -> Any:
    """Fail as a write to a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ACTIONS = {"before": kill_before, "after": kill_after, "tear": tear, "worker": kill_a_worker, "full": fill_the_disk}

if __name__ == "__main__":
    main(sys.argv[1])
