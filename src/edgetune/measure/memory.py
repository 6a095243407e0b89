"""Peak resident memory of the whole process."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

import psutil
import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_SAMPLE_SECONDS = 0.002

# The kernel keeps one high-water mark a process: whoever resets it must first hand its value to all who are measuring.
_measuring: list[PeakMemory] = []
_lock = threading.Lock()


class PeakMemory:
    """Measure the peak resident memory of this process during a block.

        with PeakMemory() as memory:
            work()
        memory.peak_bytes

    On Linux the kernel's own high-water mark is reset and read, so that no peak is missed; elsewhere, or where
    that is forbidden, a thread samples every 2 ms. Blocks may nest and overlap, also across threads. The whole process
    counts, other threads included; memory-mapped weights count once touched.

    Attributes:
        start_bytes: resident memory at the start.
        peak_bytes: greatest resident memory within the block; 0 before its end.
        cuda_peak_bytes: greatest memory allocated by torch on the current CUDA device within the block; 0 without CUDA.
        exact: True if the kernel measured, False if a thread sampled.
    Cost: microseconds (Linux); one thread (elsewhere).
    """

    def __init__(self) -> None:
        self.start_bytes = self.peak_bytes = self.cuda_peak_bytes = 0
        self.exact = False
        self._seen = self._cuda_seen = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        """Start measuring."""
        if self in _measuring:
            raise RuntimeError("this PeakMemory is measuring already; make a second one")
        with _lock:
            _hand_out()
            self._seen = self._cuda_seen = self.peak_bytes = self.cuda_peak_bytes = 0
            self.exact = _reset()
            self.start_bytes = _resident()
            _measuring.append(self)
        if not self.exact:
            self._done.clear()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop measuring."""
        if self._thread is not None:
            self._done.set()
            self._thread.join()
            self._thread = None
        with _lock:
            _hand_out()
            _measuring.remove(self)
        self.peak_bytes, self.cuda_peak_bytes = max(self._seen, self.start_bytes), self._cuda_seen

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self._seen = max(self._seen, _resident())


def _hand_out() -> None:
    """Let everyone who measures see the mark before it is reset or read."""
    resident, cuda = _high_water(), _cuda_peak()
    for memory in _measuring:
        memory._seen = max(memory._seen, resident if memory.exact else 0)
        memory._cuda_seen = max(memory._cuda_seen, cuda)


def _reset() -> bool:
    if _cuda_in_use():
        torch.cuda.reset_peak_memory_stats()
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return _high_water() > 0


def _high_water() -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _cuda_peak() -> int:
    return int(torch.cuda.max_memory_allocated()) if _cuda_in_use() else 0


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
