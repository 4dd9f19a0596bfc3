"""Memory that the process keeps."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import numpy as np
from mtl_bento.memory import keep_memory

if sys.argv[1] == "kept":
    keep_memory(one_arena=sys.argv[2] == "thread")

def work():
    for _ in range(12):
        tensors = [np.ones(2**20) for _ in range(12)]  # 8 MiB each, more than one heap of a thread
        del tensors
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        tensors = [np.ones(2**20) for _ in range(12)]
        del tensors
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start() if sys.argv[2] == "thread" else work()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_freed_memory_is_used_again_in_the_first_thread_and_in_others(where: str) -> None:
    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how, where], capture_output=True, text=True, check=True, timeout=60
        )
        return int(done.stdout)

    # 4 x 12 x 8 MiB are 98,304 pages of 4 KiB.
    assert faults("kept") < 1000 < faults("by default")
