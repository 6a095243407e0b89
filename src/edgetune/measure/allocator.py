"""Peak bytes of torch's allocator: what tensors and operators take, without the rest of the process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch


def allocator_peak(work: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Peak bytes torch's allocator held above the start while `work` ran.

        peak = max_t sum_{allocations since the start, less their frees, up to t} bytes

    Counts tensors and what operators allocate within, in this thread, torch's own worker threads and backward.
    Does not count Python objects, memory that C code takes from malloc, other Python threads, or library caches.
    On the CPU a free of memory from before the start is not subtracted.

    Args:
        work: called once, without arguments; what it returns is dropped after the measurement.
        device: `cpu`, or a CUDA device, whose own peak statistics are reset.

    Returns:
        Bytes, at least 0, exact on the CPU; in blocks of 512 bytes on CUDA.
    Cost: on the CPU about 50 microseconds and 1 KB for every operator and allocation; nothing on CUDA.
    Source: memory events of torch's profiler; `torch.cuda.max_memory_allocated`.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _cuda_peak(work, device)
    profile = torch.autograd.profiler.profile(use_kineto=False, profile_memory=True)
    with _silent():
        profile.__enter__()  # type: ignore[no-untyped-call]
    try:
        result = work()
    finally:
        with _silent():
            profile.__exit__(None, None, None)  # type: ignore[no-untyped-call]
    del result
    live: dict[int, int] = {}
    held = peak = 0
    for address, size in _allocations(profile):
        # A free names the size of an earlier owner of the address, if that was freed while nobody measured.
        change = size if size > 0 else -live.pop(address, 0)
        if size > 0:
            live[address] = size
        held += change
        peak = max(peak, held)
    return peak


def _allocations(profile: torch.autograd.profiler.profile) -> list[tuple[int, int]]:
    """Return (address, bytes; negative for a free) of every CPU event, in the order of time."""
    if profile.kineto_results is None:
        return []
    found, waiting = [], list(profile.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        fields: Any = event.extra_fields
        if event.tag == torch._C._profiler._EventType.Allocation and fields.device.type == "cpu":
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    return [(address, size) for _, address, size in sorted(found, key=lambda event: event[0])]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Divert standard error: the profiler's C++ part writes there, past Python, when it starts and stops."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _cuda_peak(work: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    start = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return max(0, torch.cuda.max_memory_allocated(device) - start)
