"""How far a run of rounds is while its devices still step, so that it can be said from the first step when it ends."""

from __future__ import annotations

from edgetune.core.progress import Progress

STEPPING = 0.95
"""Part of a round that is its devices' steps; the rest is combining and measuring."""


class Pace:
    """Tells, besides how far each device of a round is, how far the rounds are.

        rounds done + 0.95 (sum of the devices' parts) / devices

    Args:
        progress: who is told.
        what: name of the bar of all rounds.
        rounds: how many there are.
    """

    def __init__(self, progress: Progress, what: str, rounds: int) -> None:
        self._progress, self._what, self._rounds = progress, what, rounds
        self._done, self._devices, self._parts = 0, 1, dict[str, float]()

    def begin(self, done: int, devices: int = 1) -> None:
        """Say how many rounds are done; the next one asks so many devices."""
        self._done, self._devices = done, max(1, devices)
        self._parts.clear()
        self._progress(self._what, done, self._rounds)

    def step(self, what: str, done: float, total: int) -> None:
        """Say how far one device is."""
        self._progress(what, done, total)
        self._parts[what] = done / total
        stepped = min(1.0, sum(self._parts.values()) / self._devices)
        self._progress(self._what, self._done + STEPPING * stepped, self._rounds)
