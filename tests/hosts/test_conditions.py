"""When a device works: mains power from a made-up /sys, and the load of others."""

from __future__ import annotations

import gc
import math
import stat
import threading
from pathlib import Path

import pytest

from edgetune.core.errors import ConfigError
from edgetune.hosts import charging, idle
from edgetune.hosts.charging import Charging, linux_power, macos_power
from edgetune.hosts.conditions import condition_of
from edgetune.hosts.hook import Hook
from edgetune.hosts.idle import Idle, OwnLoad

NOTHING = "does not say"


def supply(root: Path, name: str, **files: str) -> None:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text + "\n")


def on(root: Path) -> str | None:
    return Charging(lambda: linux_power(root)).refusal()


@pytest.mark.parametrize("kind", ["Mains", "USB", "USB_C", "Wireless"])
def test_a_device_works_on_a_supply_that_is_online(tmp_path: Path, kind: str) -> None:
    supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    supply(tmp_path, "AC", type=kind, online="1")
    assert on(tmp_path) is None


@pytest.mark.parametrize("status", ["Charging", "Full"])
def test_a_battery_that_is_fed_is_mains_power(tmp_path: Path, status: str) -> None:
    supply(tmp_path, "BAT0", type="Battery", status=status)
    assert on(tmp_path) is None


@pytest.mark.parametrize("status", ["Discharging", "Not charging", "Unknown"])
def test_a_battery_that_is_not_fed_is_named_as_the_reason(tmp_path: Path, status: str) -> None:
    supply(tmp_path, "BAT0", type="Battery", status=status)
    supply(tmp_path, "AC", type="Mains", online="0")
    refusal = on(tmp_path)
    assert refusal is not None
    assert f"BAT0 is {status.lower()}" in refusal
    assert "AC is not connected" in refusal


def test_the_battery_of_a_mouse_says_nothing_of_the_machine(tmp_path: Path) -> None:
    supply(tmp_path, "mouse", type="Battery", status="Full", scope="Device")
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", scope="System")
    assert on(tmp_path) is not None


@pytest.mark.parametrize(
    "shown", [{}, {"type": "Mains"}, {"type": "Battery"}, {"type": "USB", "online": "yes"}]
)
def test_a_machine_that_says_nothing_refuses_to_start_and_names_the_hook(
    tmp_path: Path, shown: dict[str, str]
) -> None:
    if shown:
        supply(tmp_path, "rpi", **shown)
    with pytest.raises(ConfigError, match=r"does not say.*hook:COMMAND"):
        on(tmp_path)


def test_a_supply_that_can_no_longer_be_read_stops_the_device_with_a_reason(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", status="Full")
    condition = Charging(lambda: linux_power(tmp_path))
    (tmp_path / "BAT0" / "status").unlink()
    refusal = condition.refusal()
    assert refusal is not None
    assert "cannot be read" in refusal


@pytest.mark.parametrize(
    ("printed", "power"),
    [
        ("Now drawing from 'AC Power'\n -InternalBattery-0 (id=1)\t100%; charged;", ""),
        ("Now drawing from 'Battery Power'\n", "it draws from Battery Power"),
        ("Now drawing from 'UPS Power'\n", "it draws from UPS Power"),
        ("usage: pmset\n", None),
        ("", None),
    ],
)
def test_what_pmset_prints_is_understood(tmp_path: Path, printed: str, power: str | None) -> None:
    pmset = tmp_path / "pmset"
    pmset.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
    pmset.chmod(pmset.stat().st_mode | stat.S_IXUSR)
    assert macos_power((str(pmset),)) == power


def test_a_system_without_pmset_says_nothing() -> None:
    assert macos_power(("/nowhere/pmset",)) is None


def test_an_unknown_platform_names_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charging.sys, "platform", "plan9")
    with pytest.raises(ConfigError, match="hook:COMMAND"):
        condition_of("charging")


@pytest.mark.parametrize(
    ("load", "own", "works"), [(1.9, 0.0, True), (2.1, 0.0, False), (5.9, 4.0, True), (0.1, 3.0, True)]
)
def test_half_of_the_cores_may_be_busy_with_others_and_all_with_this_process(
    load: float, own: float, works: bool
) -> None:
    refusal = Idle(lambda: load, lambda: own, cores=4).refusal()
    assert (refusal is None) is works


def test_a_busy_machine_says_how_busy() -> None:
    refusal = Idle(lambda: 5.0, lambda: 2.0, cores=4).refusal()
    assert refusal is not None
    assert "0.75" in refusal


def test_a_system_without_a_load_names_the_hook() -> None:
    def none() -> float:
        raise OSError("no load here")

    with pytest.raises(ConfigError, match="hook:COMMAND"):
        Idle(none)


def test_own_work_is_averaged_as_the_kernel_averages_the_load() -> None:
    clock, used = [1000.0], [0.0]
    own = OwnLoad(lambda: used[0], lambda: clock[0], age=600.0)
    assert own.look() == 0.0
    kernel = 0.0
    for second in range(5, 185, 5):
        threads = 3 if second <= 120 else 0
        clock[0], used[0] = clock[0] + 5, used[0] + 5 * threads
        kernel = kernel * math.exp(-5 / 60) + threads * (1 - math.exp(-5 / 60))
        assert own.look() == pytest.approx(kernel)
    assert own.look() == pytest.approx(3 * (1 - math.exp(-2)) * math.exp(-1), rel=0.01)


def test_what_a_young_process_used_before_the_first_look_counts() -> None:
    own = OwnLoad(lambda: 20.0, lambda: 50.0, age=10.0)
    assert own.look() == pytest.approx(2 * (1 - math.exp(-10 / 60)))


def test_the_thread_that_looks_ends_with_its_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "EVERY", 0.01)
    condition = condition_of("idle")
    ours = [thread for thread in threading.enumerate() if thread.name == "own load"]
    assert len(ours) == 1
    assert ours[0].daemon
    del condition
    gc.collect()
    ours[0].join(5)
    assert not ours[0].is_alive()


def test_conditions_are_read_by_name() -> None:
    assert isinstance(condition_of("hook:true --quiet"), Hook)
    assert condition_of("hook: true 'a b'") == Hook(("true", "a b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chargin", "did you mean 'charging'"),
        ("", "no condition"),
        ("idle:0.9", "takes nothing"),
        ("always", "no condition"),
    ],
)
def test_what_is_no_condition_is_refused_with_the_nearest(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        condition_of(text)
