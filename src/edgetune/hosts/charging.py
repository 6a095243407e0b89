"""Whether a machine runs on mains power: what Linux shows under /sys, or `pmset` on macOS."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.errors import ConfigError

SUPPLIES = Path("/sys/class/power_supply")
"""Where Linux shows a folder for each power supply."""
PMSET = ("pmset", "-g", "batt")
SECONDS = 10
"""A command of the system that takes longer says nothing."""
FED = ("Charging", "Full")
"""Status of a battery that takes nothing from itself."""

Told = Callable[[], "str | None"]
"""Returns "" on mains power, else in a few words what the machine runs on; None where it does not say."""


def linux_power(supplies: Path = SUPPLIES) -> str | None:
    """Read the power supplies of Linux.

    Mains power is a supply that is no battery and `online`, or a battery whose `status` is Charging or Full. Batteries
    of mice and the like (`scope` Device) say nothing about the machine.

    Args:
        supplies: a folder with one folder a supply.

    Source: Documentation/ABI/testing/sysfs-class-power of the Linux kernel.
    """
    found = list[str]()
    for supply in sorted(supplies.glob("*")):
        if _word(supply / "scope") == "Device":
            continue
        status, online = _word(supply / "status"), _word(supply / "online")
        if _word(supply / "type") == "Battery":
            fed, said = status in FED, f"battery {supply.name} is {status.lower()}"
            known = bool(status)
        else:
            fed, said = online.isdigit() and int(online) > 0, f"{supply.name} is not connected"
            known = online.isdigit()
        if known and fed:
            return ""
        if known:
            found.append(said)
    return ", ".join(found) or None


def macos_power(command: tuple[str, ...] = PMSET) -> str | None:
    """Ask `pmset`, whose first line names what the machine draws from, also where there is no battery."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    source = re.search(r"drawing from '([^'\n]{1,40})'", done.stdout.decode("utf-8", "replace"))
    if source is None:
        return None
    return "" if source[1] == "AC Power" else f"it draws from {source[1]}"


SYSTEMS: dict[str, Told] = {"linux": linux_power, "darwin": macos_power}
"""By `sys.platform`."""


def this_machine() -> str | None:
    """Read the power supply of the machine that this process runs on."""
    return SYSTEMS.get(sys.platform, lambda: None)()


@dataclass(frozen=True, slots=True)
class Charging:
    """A device works on mains power only.

    Args:
        told: what the machine runs on.

    Raises:
        ConfigError: if the machine does not say, as most single-board computers and desktops.
    """

    told: Told = this_machine

    def __post_init__(self) -> None:
        if self.told() is None:
            raise ConfigError(
                "this machine does not say whether it is on mains power",
                where="--only-when charging",
                hint="--only-when 'hook:COMMAND', where COMMAND exits with 0 when the device may work",
            )

    def refusal(self) -> str | None:
        """Return why the device does not work now, None if it may."""
        said = self.told()
        if said is None:
            return "not charging as far as it says: its power supply cannot be read any more"
        return f"not charging: {said}" if said else None


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()[:40]
    except OSError:  # a supply may go while it is read
        return ""
