"""Freed memory stays with the process. By default glibc gives large blocks back to the kernel, and the next large
temporary has its pages zeroed anew: on a CPU a third of the time of 32 px views, and a few per cent of a step.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def keep_freed() -> bool:
    """For the whole process, from now on; whether the C library knows how. Blocks of 1 GiB and more are still returned,
    of 32 MiB and more where that is the most that glibc allows."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
