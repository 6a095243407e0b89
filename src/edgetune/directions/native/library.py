"""The compiled kernel's library: where it is, which instruction sets it has, whose threads it uses."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from edgetune.directions.native.structs import Apart, Followed, Job, Ranked, Reading, Tiling

LEVELS = ("baseline", "avx2", "avx512")
"""Instruction sets by number; a machine that has one has those before it."""
MISFIT, NO_MEMORY = 1, 2
"""What the kernel returns if it refuses its arguments, or cannot allocate its scratch."""

MIRRORS = {
    "job": Job,
    "product": Reading,
    "followed": Followed,
    "tiling": Tiling,
    "ranked": Ranked,
    "apart": Apart,
}
"""Structures that the kernel is handed, by its own names for them."""


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled kernel, or return None if it was not built or does not fit this package."""
    for path in sorted(Path(__file__).parent.glob("_kernel*.so")):
        try:
            found = ctypes.CDLL(str(path))
            sizes = [getattr(found, f"edgetune_{name}_size") for name in MIRRORS]
            for size in sizes:
                size.restype = ctypes.c_int64
            if [size() for size in sizes] == [ctypes.sizeof(mirror) for mirror in MIRRORS.values()]:
                return found
        except (OSError, AttributeError):
            continue  # another platform's build; `edgetune doctor` says which kernel runs
    return None


@cache
def team() -> ctypes.c_void_p | None:
    """Return the way into the OpenMP runtime that torch computes with, or None: the kernel then starts threads itself.

    Idle threads of that runtime spin for a while, and threads of our own would share their cores.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = sorted({line.split()[-1] for line in lines if "libgomp" in line.rsplit("/", 1)[-1]})
    if len(paths) != 1:  # none, or not clear which one torch uses
        return None
    return ctypes.cast(ctypes.CDLL(paths[0]).GOMP_parallel, ctypes.c_void_p)


@cache
def best_level() -> int:
    """Return the number of the best instruction set of this machine (see LEVELS); 0 without a kernel."""
    found = library()
    return int(found.edgetune_best()) if found is not None else 0


def installed() -> ctypes.CDLL:
    """Return the compiled kernel.

    Raises:
        RuntimeError: if there is none.
    """
    found = library()
    if found is None:
        raise RuntimeError("the compiled kernel is not installed")
    return found


def check(status: int, name: str) -> None:
    """Turn the kernel's answer into an error.

    Raises:
        RuntimeError: if it refused its arguments; what a user can cause is refused before.
        MemoryError: if it had no memory.
    """
    if status == NO_MEMORY:
        raise MemoryError(f"no memory for the compiled kernel's scratch ({name})")
    if status:
        raise RuntimeError(f"the compiled kernel refused {name!r} (status {status})")
