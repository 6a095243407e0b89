"""Time several sides in turn, so that a shared machine's moods hit all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Ratio:
    """How long one side takes relative to another.

    Args:
        what: the measured side and what it is measured against.
        ratio: median over rounds of (time of the side / time of the other side in the same round).
        low: lower quartile of that ratio.
        high: upper quartile.
        seconds: median time of the measured side, once.
        other_seconds: median time of the other side, once.
        note: how it was obtained, where that is not plain.
    """

    what: str
    ratio: float
    low: float
    high: float
    seconds: float
    other_seconds: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def take_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, wait: Callable[[], object] = bool
) -> dict[str, list[float]]:
    """Run every side once to warm up, then all in turn `rounds` times.

    Args:
        sides: name to work.
        rounds: at least 3.
        wait: called before the clock is read; on a GPU, returns when its work is done.

    Returns:
        Seconds of each run by name, in order.
    """
    for work in sides.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            wait()
            start = time.perf_counter()
            work()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def waiting(device: torch.device) -> Callable[[], object]:
    """Return what waits until a device has done its work: nothing on the CPU, which has."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else bool


def compare(
    seconds: Mapping[str, list[float]], side: str, other: str, *, scale: float = 1.0, note: str = ""
) -> Ratio:
    """Return the ratio of two sides, round by round.

    Args:
        seconds: from `take_turns`.
        side: the measured side.
        other: what it is measured against.
        scale: factor on the side's times, for a side that was only sampled; `note` must say so.
        note: how it was obtained.
    """
    ratios = [scale * a / b for a, b in zip(seconds[side], seconds[other], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Ratio(
        what=f"{side} / {other}",
        ratio=middle,
        low=low,
        high=high,
        seconds=scale * statistics.median(seconds[side]),
        other_seconds=statistics.median(seconds[other]),
        note=note,
    )
