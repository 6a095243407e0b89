"""Tests of devices on other hosts, which need the extra flower; it needs Python 3.11."""

from importlib.util import find_spec

MISSING = find_spec("flwr") is None
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_report_header() -> str:
    """Say what is left out, and why."""
    return "tests/hosts is left out: the extra flower is not installed" if MISSING else ""
