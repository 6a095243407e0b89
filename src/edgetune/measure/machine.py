"""What this machine lets this process use: cores and memory, within the limits of a container."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

GROUP = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of this process's control group."""


def usable_cores(group: Path = GROUP) -> int:
    """Return the cores that this process may keep busy, at least 1: those it may run on, within a container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quota, period, *_ = [*_words(group / "cpu.max"), "", ""]
    if quota.isdigit() and period.isdigit() and int(period):
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def usable_memory(group: Path = GROUP) -> int:
    """Return the bytes that can still be used without swapping, within a container's limit."""
    free = int(psutil.virtual_memory().available)
    (limit, *_), (used, *_) = ([*_words(group / name), ""] for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return max(0, free)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return []
