"""Freed blocks go back to the system where glibc would keep them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps what it likes")
PROGRAM = """
import ctypes, sys
from edgetune.core.allocator import return_freed_blocks

taken = return_freed_blocks() if sys.argv[1] == "ours" else None
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def block(size):
    at = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(at, 1, size)
    return at

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

libc.free(ctypes.c_void_p(block(8 << 20)))  # glibc learns the size
before = resident()
pairs = [(block(4 << 20), block(200 << 10)) for _ in range(40)]  # one behind each keeps the heap
for large, _ in pairs:
    libc.free(ctypes.c_void_p(large))
print(taken, (resident() - before) >> 20)
"""


def kept(which: str, **environment: str) -> tuple[str, int]:
    clean = {
        name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "GLIBC_TUNABLES"
    }
    command = [sys.executable, "-c", PROGRAM, which]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    taken, mebibytes = done.stdout.split()
    return taken, int(mebibytes)


@GLIBC
def test_freed_blocks_are_returned() -> None:
    assert kept("theirs")[1] > 100
    taken, mebibytes = kept("ours")
    assert taken == "True"
    assert mebibytes < 20


@GLIBC
@pytest.mark.parametrize(
    "chosen",
    [{"MALLOC_MMAP_THRESHOLD_": "33554432"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432"}],
)
def test_what_the_environment_chooses_stays(chosen: dict[str, str]) -> None:
    assert kept("ours", **chosen)[0] == "False"
