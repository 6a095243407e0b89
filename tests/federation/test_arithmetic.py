"""A run goes on with the arithmetic that it began with, or says what to set."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.core.errors import DigestError
from edgetune.core.event_log import EventLog
from edgetune.core.events import RunStarted
from edgetune.directions import few, kernel, native
from edgetune.federation.arithmetic import refuse_other_arithmetic


def log_of(folder: Path) -> Path:
    """A run that is computed by whatever the environment asks for."""
    path = folder / "events.jsonl"
    EventLog(path)(RunStarted("edgetune run", {}, "fedkseed", "", 0, {"kernel": kernel.describe_kernel()}, 1))
    return path


@pytest.mark.parametrize("started", ["torch", *(f"c-{name}" for name in native.LEVELS)])
def test_a_run_of_another_kernel_is_not_resumed(
    started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if started != "torch" and (
        native.library() is None or native.LEVELS.index(started[2:]) > native.best_level()
    ):
        pytest.skip(f"this machine has no {started}")
    monkeypatch.setenv(kernel.VARIABLE, started)
    path = log_of(tmp_path)
    refuse_other_arithmetic(path)
    other = "torch" if started != "torch" else "c"
    monkeypatch.setenv(kernel.VARIABLE, other)
    if native.library() is not None:
        with pytest.raises(
            DigestError, match=r"computed by (torch|c).*EDGETUNE_KERNEL and EDGETUNE_PRODUCT_ROWS"
        ):
            refuse_other_arithmetic(path)


@pytest.mark.skipif(native.library() is None, reason="no compiled kernel: no C compiler at install")
def test_a_run_with_another_number_of_rows_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernel.VARIABLE, "c")
    monkeypatch.setenv(few.VARIABLE, "100")
    path = log_of(tmp_path)
    refuse_other_arithmetic(path)
    monkeypatch.setenv(few.VARIABLE, "101")
    with pytest.raises(DigestError, match=r"up to 100 rows.*up to 101 rows"):
        refuse_other_arithmetic(path)


def test_a_log_that_does_not_say_is_no_reason(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    refuse_other_arithmetic(path)
    for versions in ("", ', "versions": []', ', "versions": {"torch": "2"}'):
        path.write_text('{"event": "round"}\n{"event": "run_started"' + versions + '}\n{"event": "run_sta')
        refuse_other_arithmetic(path)
