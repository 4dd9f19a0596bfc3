"""Memory that the process keeps: freed tensors are used again instead of being given back and faulted in anew.

By default glibc makes each tensor of megabytes a fresh mapping whose pages are zeroed on first touch, which took more
time than the arithmetic on them. Elsewhere than on glibc nothing here does anything.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt."""
LARGEST_ON_HEAP = 32 * 2**20
"""Bytes: glibc's upper limit for M_MMAP_THRESHOLD; a larger value is ignored."""


def keep_memory(*, one_arena: bool = False) -> None:
    """Have glibc keep freed memory, for the whole process.

    With `one_arena`, threads that start later share one heap. Otherwise each has heaps of 64 MiB of its own, which are
    given back as soon as they are empty: so call it where another thread than the first does the work.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    if one_arena:
        mallopt(M_ARENA_MAX, 1)
