"""Tests of devices on other hosts, which need the extra flower; it needs Python 3.11."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

MISSING = find_spec("flwr") is None
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_report_header() -> str:
    """Say what is left out, and why."""
    return "tests/hosts is left out: the extra flower is not installed" if MISSING else ""


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a link in memory that is the clock of `Remote` as well."""
    from memory_link import MemoryLink

    from edgetune.hosts import remote

    made = MemoryLink()
    monkeypatch.setattr(remote, "time", made)
    return made


@pytest.fixture
def told() -> list[Any]:
    """Return what the run's log is told."""
    return []


@pytest.fixture
def make(link: Any, told: list[Any]) -> Callable[..., Any]:
    """Open a run for devices, and wait for those that will open."""
    from edgetune.federation.pipes import Message
    from edgetune.hosts.kinds import OPEN
    from edgetune.hosts.remote import Remote
    from edgetune.hosts.waiting import Patience

    def make(
        devices: int, wanted: int, minimum: int = 1, seconds: float = 60.0, wait: int | None = None
    ) -> Remote:
        patience = Patience(wanted, minimum, seconds)
        made = Remote(link, range(devices), patience, listener=told.append, changed=lambda: None, known={})
        made.open(Message(OPEN, {"recipe": {}}))
        made.wait(devices if wait is None else wait)
        return made

    return make
