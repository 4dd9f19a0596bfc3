"""Optuna's journal file, in which what is said together is written at once.

Optuna locks, writes and syncs a journal for every single parameter, report and attribute, twenty times a trial.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation

WAITING = frozenset(
    {
        JournalOperation.SET_TRIAL_PARAM,
        JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE,
        JournalOperation.SET_TRIAL_USER_ATTR,
        JournalOperation.SET_TRIAL_SYSTEM_ATTR,
    }
)
"""What may wait: Optuna needs no answer to it, as it does where a trial begins."""


class Journal(JournalFileBackend):
    """Optuna's journal file; inside `together`, parameters, reports and attributes of trials wait.

    They are written in one go, in the order in which they were said: before anything is read, before anything else is
    said, and at the latest at the end of the block, also where it ends by an error.
    """

    def __init__(self, file_path: str) -> None:
        super().__init__(file_path)
        self._waiting: list[dict[str, Any]] = []
        self._may_wait = False
        self._reads_back = False
        """Whether the next to read is who said the last thing that waits: Optuna reads back all that it writes."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write logs after those that wait, or let them wait, too."""
        self._waiting += logs
        self._reads_back = self._may_wait and all(log["op_code"] in WAITING for log in logs)
        if not self._reads_back:
            self._write()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Give every log from a number on."""
        if self._reads_back:
            self._reads_back = False
            return
        self._write()
        yield from super().read_logs(log_number_from)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let what is said inside wait."""
        self._may_wait = True
        try:
            yield
        finally:
            self._may_wait = self._reads_back = False
            self._write()

    def _write(self) -> None:
        # Emptied first: after a write that failed half a line may be there, and one more would corrupt the journal.
        logs, self._waiting = self._waiting, []
        if logs:
            super().append_logs(logs)


@contextmanager
def together(study: optuna.Study) -> Iterator[None]:
    """Write what is said inside of a study's trials in one go, where the study is kept in a journal of ours."""
    backend = getattr(study._storage, "_backend", None)
    if not isinstance(backend, Journal):
        yield
        return
    with backend.together():
        yield
