"""Which devices a round asks, and how often each was asked before: functions of the seed, kept nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from edgetune.core.keys import stream
from edgetune.recipe.asking import asked_devices


def sample_devices(
    devices: Sequence[int], participation: float, *, seed: int, round: int, busy: Collection[int] = ()
) -> list[int]:
    """Return the devices of a round, ascending: drawn without replacement.

    Where some are busy, the first of the round's draw that are not, so that all together are that share.

    Args:
        devices: all ids, ascending.
        participation: share of them, in (0, 1]; at least one is drawn.
        seed: the run's seed, unsigned 32 bits.
        round: from 1.
        busy: devices that were asked in earlier rounds and are still under way.
    """
    count = asked_devices(len(devices), participation)
    chosen = stream(seed, "devices", round).choice(len(devices), count, replace=False)
    free = [device for device in (devices[int(index)] for index in chosen) if device not in busy]
    return sorted(free[: max(0, count - len(busy))])


class Turns:
    """How often devices were asked before a round, so that each goes on where it was in its examples.

    A device that was drawn while it was under way (`federation.flight`) leaves that round's examples out.

    Args:
        devices: all ids.
        participation: as in `sample_devices`.
        seed: the run's seed.
    Cost: one draw a round, once: rounds are counted as they come.
    """

    def __init__(self, devices: Sequence[int], participation: float, *, seed: int) -> None:
        self._devices, self._participation, self._seed = sorted(devices), participation, seed
        self._round, self._asked = 1, Counter[int]()

    def before(self, device: int, round: int) -> int:
        """Return the number of rounds before `round` that asked `device`."""
        if round < self._round:
            self._round, self._asked = 1, Counter()
        while self._round < round:
            asked = sample_devices(self._devices, self._participation, seed=self._seed, round=self._round)
            self._asked.update(asked)
            self._round += 1
        return self._asked[device]
