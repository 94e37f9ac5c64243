"""The heap: once asked, a freed block is used again instead of being returned and zeroed."""

import platform
import subprocess
import sys

from sandglass.engine import heap

SIZE = 24 * 2**20

# A block of its own mapping is zeroed by the kernel at every use: a page fault for each 4 KiB of it.
PROGRAM = f"""
import ctypes, resource
from sandglass.engine import heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.mallopt(-3, 2**20)  # glibc's own threshold moves; this holds it
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        block = libc.malloc({SIZE})
        ctypes.memset(block, 1, {SIZE})
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
usual = faults()
assert heap.keep_freed()
print(usual, faults())
"""


def test_a_freed_block_is_not_zeroed_again():
    if platform.libc_ver()[0] != "glibc":
        assert heap.keep_freed() in (True, False)
        return
    usual, kept = map(int, subprocess.check_output([sys.executable, "-c", PROGRAM], text=True).split())
    assert 0 < 2 * kept < usual  # zeroed once, and not each of four times


def test_a_c_library_without_it_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert heap.keep_freed() is False
