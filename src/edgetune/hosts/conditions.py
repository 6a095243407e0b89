"""When a device works: conditions by name, as `--only-when` says them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from edgetune.core.errors import ConfigError
from edgetune.core.part import by_name
from edgetune.hosts.charging import Charging
from edgetune.hosts.hook import Hook
from edgetune.hosts.idle import Idle

WHERE = "--only-when"


class Condition(Protocol):
    """Something that is asked before every round."""

    def refusal(self) -> str | None:
        """Return why the device does not work now, in a few words on one line; None if it may."""
        ...


def _plain(make: Callable[[], Condition]) -> Callable[[str], Condition]:
    def read(more: str) -> Condition:
        if more:
            raise ConfigError(f"it takes nothing, not {more!r}", where=WHERE)
        return make()

    return read


CONDITIONS: Mapping[str, Callable[[str], Condition]] = {
    "charging": _plain(Charging),
    "idle": _plain(Idle),
    "hook": Hook.of,
}
"""What makes a condition, by its name, of the text behind the colon."""


def condition_of(text: str) -> Condition:
    """Read `charging`, `idle` or `hook:COMMAND`.

    Raises:
        ConfigError: if it is none of them, naming the nearest; if this machine cannot tell whether it holds.
    """
    name, _, more = text.partition(":")
    try:
        read = by_name(name.strip(), CONDITIONS, "condition")
    except ConfigError as error:
        raise ConfigError(error.what, where=WHERE, hint=error.hint) from error
    return read(more.strip())
