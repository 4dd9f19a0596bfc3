"""Worker processes: what becomes of them, and of their driver, when one of them is killed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from mtl_bento.dataset import Dataset
from mtl_bento.errors import RunError
from mtl_bento.network import NetworkSpec
from mtl_bento.training import Member, MemberSpec, Stack, TrainingSpec, advance
from mtl_bento_search.executors.local import InProcess, Processes

HOURS = 10_000_000
"""Steps that no test waits for."""


def stack(network: NetworkSpec, *, steps: int) -> Stack:
    spec = MemberSpec(network=network, training=TrainingSpec(batch_size=32, steps=steps))
    return Stack((Member(spec, seed=0),), seed=0)


def test_a_worker_that_is_killed_while_it_trains_is_one_line_at_once(
    dataset: Dataset, small_network: NetworkSpec
) -> None:
    with Processes(dataset, 2) as workers:
        workers.advance([stack(small_network, steps=1)] * 2, 1, reference=None, deadline=math.inf)
        kill = threading.Timer(0.3, os.kill, (workers._workers[0]._process.pid, signal.SIGKILL))
        kill.start()
        # The other worker would train for hours.
        with pytest.raises(
            RunError,
            match=r"^A worker process was ended by SIGKILL, as the system does where memory runs out\. "
            r"Run the same search again: it goes on where it stopped\.$",
        ):
            workers.advance([stack(small_network, steps=HOURS)] * 2, HOURS, reference=None, deadline=math.inf)


def test_a_worker_that_is_killed_before_it_has_the_dataset_is_one_line(
    dataset: Dataset, small_network: NetworkSpec
) -> None:
    # BrokenPipeError came out of the constructor.
    with Processes(dataset, 1) as workers:
        workers._workers[0]._process.kill()
        with pytest.raises(RunError, match=r"^A worker process was ended by SIGKILL.*again: it goes on"):
            workers.advance([stack(small_network, steps=1)], 1, reference=None, deadline=math.inf)


def test_a_worker_that_is_stopped_while_it_imports_lives_and_trains_no_step(
    dataset: Dataset, small_network: NetworkSpec
) -> None:
    # The signal ended the process: its handler comes seconds after its start.
    with Processes(dataset, 1) as workers:
        workers.stop()
        (done,) = workers.advance([stack(small_network, steps=8)], 8, reference=None, deadline=math.inf)
        assert done is not None
        assert (done.stopped, done.step) == (True, 0)


def test_a_worker_that_cannot_read_what_it_is_sent_ends_with_its_traceback(
    dataset: Dataset, small_network: NetworkSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    with Processes(dataset, 1) as workers:
        workers._workers[0]._unsent = [b"not a pickle"]
        with pytest.raises(RunError, match=r"^A worker process ended with code 1\. Run the same search again"):
            workers.advance([stack(small_network, steps=1)], 1, reference=None, deadline=math.inf)
    assert capfd.readouterr().err.splitlines()[-1].startswith("_pickle.UnpicklingError")


@pytest.mark.parametrize("already_training", [False, True])
def test_margins_of_trees_reach_the_workers(
    dataset: Dataset, small_network: NetworkSpec, already_training: bool
) -> None:
    on_trees = small_network.model_copy(update={"offset": True})
    margins = torch.linspace(-1, 1, len(dataset.blocks[0])).unsqueeze(1).repeat(1, 6)  # heads of 1, 3, 1 and 1 outputs
    expected = advance(stack(on_trees, steps=8), dataset.with_margins(margins), 8)
    assert expected.losses != advance(stack(on_trees, steps=8), dataset.with_margins(0 * margins), 8).losses
    for executor in (InProcess(dataset), Processes(dataset, 2)):
        with executor:
            if already_training:  # else the dataset itself is yet to be sent, and margins with it
                executor.advance([stack(small_network, steps=1)] * 2, 1, reference=None, deadline=math.inf)
            executor.change(partial(Dataset.with_margins, margins=margins))
            done = executor.advance([stack(on_trees, steps=8)] * 2, 8, reference=None, deadline=math.inf)
        assert [found.losses for found in done if found is not None] == [expected.losses] * 2


DRIVER = """
import math, sys
sys.path[:0] = {paths!r}
from small import make_dataset, make_table, network_spec
from test_executors import HOURS, stack
from mtl_bento_search.executors.local import Processes
dataset = make_dataset(make_table())[1]
workers = Processes(dataset, 1)
network = network_spec(dataset)
workers.advance([stack(network, steps=1)], 1, reference=None, deadline=math.inf)
print(workers._workers[0]._process.pid, flush=True)
workers.advance([stack(network, steps=HOURS)], HOURS, reference=None, deadline=math.inf)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="asks /proc which processes there are")
def test_a_worker_ends_in_the_middle_of_its_training_when_its_driver_is_killed() -> None:
    # It trained on, for hours, beside the search that had been started again.
    here = Path(__file__).parent
    script = DRIVER.format(paths=[str(here), str(here.parent)])
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        worker = int(driver.stdout.readline())
        time.sleep(0.3)
        assert lives(worker)
        driver.kill()
    end = time.monotonic() + 20
    while lives(worker) and time.monotonic() < end:
        time.sleep(0.02)
    assert not lives(worker)


def lives(pid: int) -> bool:
    """Return whether a process runs: one that ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
