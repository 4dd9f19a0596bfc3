"""What an executor promises: stacks advanced somewhere, in the order they were given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from mtl_bento.dataset import Dataset
from mtl_bento.training import Stack

Change = Callable[[Dataset], Dataset]
"""What makes another dataset of the same rows; it is sent to workers in place of the whole."""


class Executor(ABC):
    """Where stacks train. What comes back depends on the stacks alone, never on where or beside what they trained."""

    @property
    @abstractmethod
    def n_workers(self) -> int:
        """How many stacks train at the same time."""

    @abstractmethod
    def advance(
        self, stacks: Sequence[Stack], goal: int, *, reference: Sequence[float] | None, deadline: float
    ) -> list[Stack | None]:
        """Return every stack trained up to step `goal`, or up to the deadline (`time.monotonic()`).

        One for which the memory does not suffice comes back as None, and leaves the memory free.
        """

    @abstractmethod
    def change(self, change: Change) -> None:
        """Change the dataset from here on (`partial(Dataset.with_margins, margins=...)`); only while nothing trains."""

    @abstractmethod
    def stop(self) -> None:
        """End training early, now and from now on; stacks come back as far as they got."""

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
