"""This machine: a worker process a core, or the one device in this process.

Many small products gain more from two processes than from two threads. Workers are plain child processes that speak
pickle over their own pipes, not `multiprocessing`'s, which would run the user's script a second time. Nothing that is
read here comes from elsewhere: parent and child are the same program.
"""

from __future__ import annotations

import contextlib
import gc
import io
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, BinaryIO

import torch

from mtl_bento.dataset import Dataset
from mtl_bento.errors import RunError
from mtl_bento.tasks._base import TASKS
from mtl_bento.training import Stack, Stop, advance
from mtl_bento.trunks._base import TRUNKS
from mtl_bento_search.executors._base import Change, Executor

WORKER = "mtl_bento_search.executors.worker"
STOP_SIGNAL = signal.SIGUSR1
"""Tells a worker to end its training early."""


class Stopper:
    """Says whether to end training: the deadline has passed, or somebody asked."""

    def __init__(self) -> None:
        self.deadline = math.inf
        """A time of `time.monotonic()`."""
        self._asked = False

    def now(self) -> None:
        """End training early, now and from now on."""
        self._asked = True

    def __call__(self) -> bool:
        """Return whether to end now."""
        return self._asked or time.monotonic() > self.deadline


def advance_if_it_fits(
    stack: Stack, dataset: Dataset, goal: int, *, reference: Sequence[float] | None, stop: Stop
) -> Stack | None:
    """Return a stack trained up to step `goal`, or None where memory ran out; what it took is then free again."""
    try:
        return advance(stack, dataset, goal, reference=reference, stop=stop)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    # Not in the handler: until here the error's traceback held the cohort.
    gc.collect()
    torch.cuda.empty_cache()
    return None


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: CUDA's allocator has a class for it, others only words."""
    words = ("out of memory", "DefaultCPUAllocator")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(said in str(error) for said in words)


class InProcess(Executor):
    """One stack after another on the dataset's device, in this process."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._stop = Stopper()

    @property
    def n_workers(self) -> int:
        """One."""
        return 1

    def advance(
        self, stacks: Sequence[Stack], goal: int, *, reference: Sequence[float] | None, deadline: float
    ) -> list[Stack | None]:
        """Return every stack trained up to step `goal`, or up to the deadline; None for one that does not fit."""
        self._stop.deadline = deadline
        return [advance_if_it_fits(s, self.dataset, goal, reference=reference, stop=self._stop) for s in stacks]

    def change(self, change: Change) -> None:
        """Change the dataset from here on."""
        self.dataset = change(self.dataset)

    def stop(self) -> None:
        """End training early, now and from now on."""
        self._stop.now()

    def close(self) -> None:
        """There is no worker to end."""


class Processes(Executor):
    """A worker process a core, each with one thread and a copy of the dataset."""

    def __init__(self, dataset: Dataset, n_workers: int) -> None:
        self.dataset = dataset
        packed = packed_bytes(dataset)
        self._workers = [_Worker(packed) for _ in range(n_workers)]

    @property
    def n_workers(self) -> int:
        """One a core."""
        return len(self._workers)

    def advance(
        self, stacks: Sequence[Stack], goal: int, *, reference: Sequence[float] | None, deadline: float
    ) -> list[Stack | None]:
        """Return every stack trained up to step `goal`, or up to the deadline, the costliest first; None as above.

        Raises RunError where a worker died, and WorkerError where it failed, at once: what is left is to close.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in sorted(range(len(stacks)), key=lambda i: -cost(stacks[i])):
            waiting.put(place)
        answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

        def serve(worker: _Worker) -> None:
            with contextlib.suppress(queue.Empty):
                while True:
                    place = waiting.get_nowait()
                    try:
                        answers.put((place, worker.ask((stacks[place], goal, reference, deadline))))
                    except BaseException as error:
                        answers.put((place, error))
                        return

        for worker in self._workers:
            threading.Thread(target=serve, args=(worker,), daemon=True).start()
        done: dict[int, Stack] = {}
        while len(done) < len(stacks):
            place, answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            done[place] = answer
        return [done[place] for place in range(len(stacks))]

    def change(self, change: Change) -> None:
        """Change every worker's dataset from here on: the change alone travels, before the next job."""
        self.dataset = change(self.dataset)
        packed = packed_bytes(change)
        for worker in self._workers:
            worker.send_first(packed)

    def stop(self) -> None:
        """End training early, now and from now on."""
        for worker in self._workers:
            worker.stop()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()


class WorkerError(RuntimeError):
    """Training failed in a worker process; holds its traceback."""


class _Worker:
    """One child process that holds the dataset and advances stacks."""

    def __init__(self, packed: bytes) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # Held back until the worker can take it: before, it would end the process. A child inherits what is held back.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, [STOP_SIGNAL])
        try:
            # A session of its own: Ctrl-C in the terminal reaches the driver alone, which then decides.
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=env,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        self._unsent = [packed]  # with the first job: until then the process still imports

    @property
    def _pipe_in(self) -> BinaryIO:
        assert isinstance(self._process.stdin, io.BufferedIOBase)
        return self._process.stdin

    def ask(self, job: Any) -> Any:
        """Return the answer to a job; raises WorkerError where the worker failed, RunError where it died."""
        try:
            while self._unsent:
                send(self._pipe_in, self._unsent[0])
                del self._unsent[0]
            send(self._pipe_in, packed_bytes(job))
            assert self._process.stdout is not None
            answer = pickle.loads(receive(self._process.stdout))
        except (BrokenPipeError, EOFError):
            raise RunError(
                f"A worker process {_ended(self._process.wait())}. "
                "Run the same search again: it goes on where it stopped."
            ) from None
        if isinstance(answer, str):
            raise WorkerError(answer)
        return answer

    def send_first(self, packed: bytes) -> None:
        """Send something ahead of the next job."""
        self._unsent.append(packed)

    def stop(self) -> None:
        """Ask the process to end its training early."""
        self._process.send_signal(STOP_SIGNAL)

    def close(self) -> None:
        """End the process at once: it holds nothing that the driver does not have."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _ended(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", as the system does where memory runs out" if name == "SIGKILL" else "")


def cost(stack: Stack) -> float:
    """Return a rough cost of a step of a stack, to start the costliest first."""
    trunks = [member.spec.network.trunk for member in stack.members]
    return float(sum(t.copies * t.width * (t.width * t.shared_depth + 256) for t in trunks))


def make_executor(dataset: Dataset, *, n_workers: int | None = None) -> Executor:
    """Return the executor that suits the dataset's device and the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = n_workers if n_workers is not None else cores
    # A class made in the user's script or notebook exists in this process only.
    homemade = any(spec.__module__ == "__main__" for registry in (TRUNKS, TASKS) for spec in registry.kinds().values())
    if dataset.device.type != "cpu" or wanted <= 1 or homemade:
        torch.set_num_threads(1 if dataset.device.type == "cpu" else torch.get_num_threads())
        return InProcess(dataset)
    return Processes(dataset, wanted)


def packed_bytes(data: Any) -> bytes:
    """Return data as bytes for a worker."""
    return pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL)


def send(pipe: Any, packed: bytes) -> None:
    """Write one message: its length in 8 bytes, then its bytes."""
    pipe.write(len(packed).to_bytes(8, "big"))
    pipe.write(packed)
    pipe.flush()


def receive(pipe: Any) -> bytes:
    """Return the bytes of the next message; raises EOFError where the other end is gone."""
    head = pipe.read(8)
    size = int.from_bytes(head, "big")
    packed: bytes = pipe.read(size) if len(head) == 8 else b""
    if len(head) < 8 or len(packed) < size:
        raise EOFError
    return packed
