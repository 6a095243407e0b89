from __future__ import annotations

import mmap
import threading
import time
from pathlib import Path

import pytest
import torch

from edgetune.measure import memory
from edgetune.measure.memory import PeakMemory

MIB = 1 << 20
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel keeps no peak here")


def touch(mebibytes: int) -> None:
    """Hold fresh pages for a moment; malloc might hand out pages that are resident already."""
    with mmap.mmap(-1, mebibytes * MIB) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1


def test_the_peak_is_seen_although_it_is_over() -> None:
    with PeakMemory() as peak:
        touch(200)
    assert 195 * MIB < peak.peak_bytes - peak.start_bytes < 230 * MIB


def test_an_earlier_peak_does_not_count() -> None:
    touch(200)
    with PeakMemory() as peak:
        touch(20)
    assert 15 * MIB < peak.peak_bytes - peak.start_bytes < 50 * MIB


def test_blocks_nest() -> None:
    with PeakMemory() as outer:
        touch(200)
        with PeakMemory() as inner:
            touch(40)
        with PeakMemory() as second:
            pass
    assert outer.peak_bytes - outer.start_bytes > 195 * MIB
    assert 35 * MIB < inner.peak_bytes - inner.start_bytes < 100 * MIB
    assert second.peak_bytes - second.start_bytes < 30 * MIB
    with PeakMemory() as outer, PeakMemory() as inner:
        touch(200)
    assert min(outer.peak_bytes, inner.peak_bytes) - outer.start_bytes > 195 * MIB


def test_blocks_of_two_threads_overlap() -> None:
    begun, may_end = threading.Event(), threading.Event()
    other = PeakMemory()

    def measure() -> None:
        with other:
            begun.set()
            may_end.wait(10)

    thread = threading.Thread(target=measure)
    with PeakMemory() as mine:
        thread.start()
        begun.wait(10)
        touch(200)
    with PeakMemory():
        may_end.set()
        thread.join()
    assert min(mine.peak_bytes - mine.start_bytes, other.peak_bytes - other.start_bytes) > 195 * MIB


def test_an_error_ends_the_measurement() -> None:
    peak = PeakMemory()
    with pytest.raises(KeyError), peak:
        raise KeyError
    assert peak.peak_bytes >= peak.start_bytes > 0
    assert memory._measuring == []
    with peak, pytest.raises(RuntimeError, match="measuring already"):
        peak.__enter__()
    assert memory._measuring == []


@LINUX
def test_the_kernel_measures_on_linux() -> None:
    with PeakMemory() as peak:
        pass
    assert peak.exact
    assert peak.cuda_peak_bytes == 0 or torch.cuda.is_available()


def test_a_thread_samples_where_the_kernel_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_RESET", tmp_path / "absent" / "clear_refs")
    threads = threading.active_count()
    with PeakMemory() as outer:
        with PeakMemory() as inner, mmap.mmap(-1, 200 * MIB) as held:
            for page in range(0, len(held), mmap.PAGESIZE):
                held[page] = 1
            wait_until_sampled(inner, outer)
        assert not inner.exact
    assert min(inner.peak_bytes, outer.peak_bytes) - outer.start_bytes > 195 * MIB
    assert threading.active_count() == threads


def wait_until_sampled(*measuring: PeakMemory) -> None:
    """Hold the pages until every thread has looked: on a busy machine one may not run for seconds."""
    end = time.monotonic() + 60
    while min(one._seen - one.start_bytes for one in measuring) < 195 * MIB and time.monotonic() < end:
        time.sleep(0.001)
