"""How many devices a round asks, and how many replies it waits for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgetune.core.errors import ConfigError
from edgetune.methods.stale import check_stale

if TYPE_CHECKING:
    from edgetune.methods.method import TuningMethod
    from edgetune.recipe.sections import FederationSection


def asked_devices(devices: int, participation: float) -> int:
    """Return how many devices a round needs: that share of them rounded down, at least one."""
    return max(1, math.floor(participation * devices + 1e-9))


def asked_for(devices: int, participation: float, over: float) -> float:
    """Return the share of the devices that is asked so that `participation` of them answer although some do not."""
    wanted = asked_devices(devices, participation)
    return min(1.0, math.ceil(wanted * (1 + over) - 1e-9) / devices)


def check_buffer(section: FederationSection, method: TuningMethod) -> None:
    """Refuse a buffer that a method cannot be served with, and settings of one where there is none.

    Raises:
        ConfigError: saying what to change.
    """
    if section.buffer is not None:
        check_stale(method)
        return
    for name in ("staleness_power", "max_staleness"):
        if getattr(section, name) != type(section).model_fields[name].default:
            raise ConfigError(
                "without a buffer a round waits for its own replies, and none is stale",
                where=f"federation.{name}",
                hint="set federation.buffer, the replies that a step takes",
            )
