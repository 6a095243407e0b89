"""How many threads a piece of work is worth: measured, because cores that others use are no cores."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

WORTH = 0.8
"""Twice the threads are taken if they need at most this share of the time; two idle cores need about half."""
REPEATS = 3
ENOUGH = 1.0
"""Seconds after which a number of threads is not tried again."""


def worthwhile_threads(work: Callable[[], object], most: int) -> int:
    """Return the number of threads, 1, 2, 4, ... up to `most`, from which more threads stop paying.

    Torch's threads wait for each other at every operation: where a core is busy with something else, or the operations
    are small, two threads take longer than one and burn several times its processor time. The bits of a result do not
    depend on the number that is chosen here.

    Args:
        work: does a typical piece of work, some milliseconds at least; called up to 1 + 3 times with each number.
        most: the greatest number to try, at least 1.

    Returns:
        The number; torch is left set to it.
    """
    best, fastest = 1, _seconds(work, 1) if most > 1 else 0.0
    while 2 * best <= most:
        seconds = _seconds(work, 2 * best)
        if seconds > WORTH * fastest:
            break
        best, fastest = 2 * best, seconds
    torch.set_num_threads(best)
    return best


def _seconds(work: Callable[[], object], threads: int) -> float:
    """Return the median time of the work; its first run, which makes the threads, counts only if it is a long one."""
    torch.set_num_threads(threads)
    times = list[float]()
    while len(times) <= REPEATS and sum(times) < ENOUGH:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    counted = sorted(times[1:] or times)
    return counted[len(counted) // 2]
