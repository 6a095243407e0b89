"""How many devices a round asks, and how many replies it waits for."""

from __future__ import annotations

import math


def asked_devices(devices: int, participation: float) -> int:
    """Return how many devices a round needs: that share of them rounded down, at least one."""
    return max(1, math.floor(participation * devices + 1e-9))


def asked_for(devices: int, participation: float, over: float) -> float:
    """Return the share of the devices that is asked so that `participation` of them answer although some do not."""
    wanted = asked_devices(devices, participation)
    return min(1.0, math.ceil(wanted * (1 + over) - 1e-9) / devices)
