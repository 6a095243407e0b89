"""glibc's allocator, told to give large freed blocks back to the system."""

from __future__ import annotations

import ctypes
import os

THRESHOLD = 1 << 20
"""Bytes from which a block is of the system's own pages."""
_M_MMAP_THRESHOLD = -3
_CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold")


def return_freed_blocks() -> bool:
    """Have blocks of a megabyte and more returned to the system when they are freed, in this whole process.

    By default glibc keeps freed blocks of up to 32 MB for later once it has seen one of their size: activations
    that are gone then fill the memory of a device (docs/results/bench.md has both figures). Only programs of this
    package call it: a library does not set what belongs to the process.

    Returns:
        Whether the allocator took it: it is glibc's, and the environment chooses no threshold.
    Cost: fresh pages for every large block; a forward pass of the benchmark takes no longer.
    Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    if _CHOSEN[0] in os.environ or _CHOSEN[1] in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return int(mallopt(_M_MMAP_THRESHOLD, THRESHOLD)) == 1


def trim() -> None:
    """Have glibc's allocator return what it keeps of freed blocks, once; nothing happens with another.

    For a library, which may not set the process's threshold: after a decoder block of 9 M weights 500 of 770 MB were
    kept.

    Cost: some milliseconds.
    Source: malloc_trim(3).
    """
    try:
        release = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library
        return
    release(0)
