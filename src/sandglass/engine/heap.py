"""Freed memory stays with the process. By default glibc gives large blocks back to the kernel, and the next large
temporary has its pages zeroed anew: on a CPU a third of the time of 32 px views, and a few per cent of a step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def keep_freed() -> bool:
    """For the whole process, from now on; whether the C library knows how. Blocks of 1 GiB and more are still returned,
    of 32 MiB and more where that is the most that glibc allows."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


@contextmanager
def given_back() -> Iterator[None]:
    """As if nobody had asked, for measuring others: what is freed goes back above the highest thresholds that glibc
    moves to by itself. Then freed memory stays again."""
    libc = ctypes.CDLL(None)
    known = hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")
    if known:
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)
    try:
        yield
    finally:
        if known:
            keep_freed()
