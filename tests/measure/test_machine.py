"""Cores and memory within the limits of a container."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from edgetune.measure import machine
from edgetune.measure.machine import resident_bytes, usable_cores, usable_memory


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        (None, 8),
        ("max 100000", 8),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("9000000 100000", 8),
        ("nonsense", 8),
        ("1 0", 8),
    ],
)
def test_cores_are_those_of_the_affinity_within_the_quota(
    quota: str | None, cores: int, tmp_path: Path
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_cores(tmp_path) == cores


def test_cores_where_there_is_no_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for known, cores in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda known=known: known)
        assert usable_cores(tmp_path) == cores


def test_memory_is_what_the_system_has_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = type("Free", (), {"available": 10_000})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert usable_memory(tmp_path) == 10_000
    (tmp_path / "memory.current").write_text("3000\n")
    for limit, found in (("max", 10_000), ("5000", 2_000), ("50000", 10_000), ("2000", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert usable_memory(tmp_path) == found
    assert machine.GROUP.is_absolute()
    assert resident_bytes() > 1_000_000
