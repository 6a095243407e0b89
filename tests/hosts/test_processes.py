"""Processes of the fleet's tests: their lines are heard, they can be killed and started again, and none survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Processes, Started, alive, mark, owned, sweep, until

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT = "import subprocess, sys; subprocess.Popen(sys.argv[1:]); print('born', flush=True); input()"


def helped(processes: Processes, name: str, *prefix: str) -> Started:
    """Start something that is not edgetune: the prefix takes the command as its arguments, and ignores it."""
    return processes.start(name, prefix=prefix)


def test_what_a_command_says_is_heard_and_its_end_is_told_with_its_last_words(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        version = processes.start("version", "--version")
        assert version.wait_for(r"^edgetune (\d+)\.\d+\.\d+$")[1].isdigit()
        assert version.wait() == 0
        wrong = processes.start("wrong", "no-such-command")
        with pytest.raises(AssertionError, match=r"(?s)ended with 2 without saying 'ready'.*no-such-command"):
            wrong.wait_for("ready")
        silent = helped(processes, "silent", *SLEEPER)
        with pytest.raises(AssertionError, match=r"did not say 'ready' in 0\.1 s"):
            silent.wait_for("ready", timeout=0.1)
    assert silent.code == -signal.SIGTERM
    assert "no-such-command" in (tmp_path / "wrong.log").read_text()


def test_only_lines_of_the_last_start_count(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        script = "import os, sys; print('again' if os.path.exists(sys.argv[1]) else 'first'); open(sys.argv[1], 'w')"
        one = helped(processes, "one", sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "flag"))
        one.wait_for("first")
        one.wait()
        one.start()
        one.wait_for("again")
        assert "first" not in one.said
        assert one.log.read_text().split() == ["first", "again"]


def test_a_process_is_killed_at_once_and_started_again(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        one = helped(processes, "one", *SLEEPER)
        first = one.pid
        one.kill()
        assert one.code == -signal.SIGKILL
        with pytest.raises(AssertionError, match="ended by itself with -9"):
            one.kill()
        one.start()
        assert one.pid != first
        assert one.stop() == -signal.SIGTERM


def test_a_child_that_outlives_its_parent_is_found_and_fails_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processes.PATIENCE", 0.5)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    with pytest.raises(AssertionError, match="what outlived the test"), Processes(tmp_path) as processes:  # noqa: PT012
        parent = helped(processes, "parent", sys.executable, "-c", PARENT, sys.executable, "-c", stubborn)
        parent.wait_for("born")
        parent.wait()  # its standard input is empty
        (child,) = processes.alive()
    assert child not in [pid for pid, _ in owned()]


def test_an_error_of_the_test_is_not_hidden_by_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processes.PATIENCE", 0.2)
    with pytest.raises(ZeroDivisionError), Processes(tmp_path) as processes:  # noqa: PT012
        helped(processes, "parent", sys.executable, "-c", PARENT, *SLEEPER).wait_for("born")
        raise ZeroDivisionError
    assert until(lambda: not processes.alive(), 5)


def test_what_a_killed_test_left_is_ended_by_the_next_and_a_living_one_keeps_its_own(tmp_path: Path) -> None:
    gone = subprocess.Popen(SLEEPER)
    owner = mark(gone.pid)
    assert alive(owner)
    orphan = subprocess.Popen(SLEEPER, env={**os.environ, "EDGETUNE_TEST_OWNER": f"{owner}.0"})
    mine = subprocess.Popen(SLEEPER, env={**os.environ, "EDGETUNE_TEST_OWNER": f"{mark()}.0"})
    assert until(lambda: {orphan.pid, mine.pid} <= {pid for pid, _ in owned()}, 5)
    assert orphan.pid not in sweep()
    gone.kill()
    gone.wait()
    assert not alive(owner)
    assert orphan.pid in sweep()
    assert orphan.wait(5) == -signal.SIGKILL
    assert mine.poll() is None
    mine.kill()
    mine.wait()


def test_memory_and_files_of_a_process_are_measured(tmp_path: Path) -> None:
    script = "import time; kept = [open('/dev/null') for _ in range(50)]; b = bytearray(b'x' * 80_000_000); print('full', flush=True); time.sleep(600)"  # noqa: E501
    with Processes(tmp_path) as processes:
        begin = time.monotonic()
        one = helped(processes, "one", sys.executable, "-c", script)
        one.wait_for("full")
        seen = one.footprint()
        seconds = time.monotonic() - begin
    assert 80e6 < seen.private < 200e6
    assert seen.private <= seen.proportional <= seen.resident
    assert 53 <= seen.files < 70
    assert 0 <= seen.cpu <= seconds + 0.1
