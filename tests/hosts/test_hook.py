"""Commands that say whether a device may work: honest ones, and those that hang, lie and print garbage."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune.core.errors import ConfigError
from edgetune.hosts.hook import Hook

Script = Callable[[str], Hook]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    def make(body: str, seconds: float = 10.0) -> Hook:
        path = tmp_path / "may work"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return Hook((str(path),), seconds)

    return make


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_exit_code_0_lets_the_device_work_whatever_is_printed(script: Script) -> None:
    assert script("echo no; echo never >&2").refusal() is None


def test_exit_code_1_refuses_with_the_first_line(script: Script) -> None:
    assert script("echo the oven is on; echo more; exit 1").refusal() == "the oven is on"


def test_exit_code_1_without_a_word_still_has_a_reason(script: Script) -> None:
    assert script("exit 1").refusal() == "its hook may work says not now"


@pytest.mark.parametrize(("end", "code"), [("exit 3", "3"), ("exit 255", "255"), ("kill -9 $$", "-9")])
def test_any_other_end_is_told_as_an_error_of_the_hook(script: Script, end: str, code: str) -> None:
    assert script(f"echo fine; {end}").refusal() == f"its hook may work failed with exit code {code}"


def test_a_hook_that_hangs_is_killed_with_what_it_started(script: Script, tmp_path: Path) -> None:
    started = time.monotonic()
    refusal = script(f"sleep 60 & echo $! > '{tmp_path}/pid'; wait", 0.5).refusal()
    assert refusal == "its hook may work did not answer within 0.5 s"
    assert time.monotonic() - started < 5
    pid, until = int((tmp_path / "pid").read_text()), time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(pid)


def test_a_hook_that_hangs_with_its_output_closed_is_killed_too(script: Script) -> None:
    refusal = script("exec >&-; sleep 60", 0.5).refusal()
    assert refusal is not None
    assert "did not answer" in refusal


def test_a_hook_that_ignores_being_asked_to_end_is_killed(script: Script) -> None:
    refusal = script("trap '' TERM INT HUP; while :; do sleep 0.1; done", 0.5).refusal()
    assert refusal is not None
    assert "did not answer" in refusal


def test_what_a_hook_leaves_running_does_not_hold_the_round(script: Script, tmp_path: Path) -> None:
    started = time.monotonic()
    refusal = script(f"sleep 30 & echo $! > '{tmp_path}/pid'; echo busy; exit 1").refusal()
    seconds = time.monotonic() - started
    os.kill(int((tmp_path / "pid").read_text()), 9)
    assert refusal == "busy"
    assert seconds < 5


def test_a_flood_is_thrown_away_but_for_its_beginning(script: Script) -> None:
    assert script("echo busy; head -c 30000000 /dev/zero; exit 1").refusal() == "busy"
    refusal = script("head -c 5000000 /dev/zero | tr '\\0' x; exit 1").refusal()
    assert refusal == "x" * 200


def test_an_endless_flood_ends_with_the_time(script: Script) -> None:
    started = time.monotonic()
    assert "did not answer" in (script("exec yes", 0.5).refusal() or "")
    assert time.monotonic() - started < 5


def test_garbage_becomes_one_line_that_a_terminal_can_show(script: Script) -> None:
    refusal = script(r"printf '\033[31mred\007\377\000\342\200\256x\r\nsecond'; exit 1").refusal()
    assert refusal is not None
    assert refusal.isprintable()
    assert "red" in refusal
    assert "second" not in refusal


def test_a_hook_reads_nothing_from_the_device(script: Script) -> None:
    open_, other, before = *os.pipe(), os.dup(0)
    os.dup2(open_, 0)
    try:
        assert script("cat; exit 0", 2.0).refusal() is None
    finally:
        os.dup2(before, 0)
        for handle in (open_, other, before):
            os.close(handle)


def test_words_reach_the_program_as_they_are(tmp_path: Path, script: Script) -> None:
    words = Hook((*script('printf %s "$1"; exit 1').words, "$HOME; *"))
    assert words.refusal() == "$HOME; *"


def test_a_hook_that_vanished_is_a_reason_and_no_crash(script: Script) -> None:
    hook = script("exit 0")
    Path(hook.words[0]).unlink()
    assert "cannot be started" in (hook.refusal() or "")


@pytest.mark.parametrize(
    ("text", "said"), [("", "no command"), ("/nowhere/hook", "no program"), ("echo 'open", "cannot read")]
)
def test_a_hook_that_cannot_be_one_is_refused_at_the_start(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Hook.of(text)
