"""The oracle of a federation across hosts: the local engine over the replies that the run's log says were accepted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from edgetune.core.events import Event, RoundFinished
from edgetune.core.ledger import Ledger
from edgetune.core.progress import Progress, silent
from edgetune.federation.device import Device
from edgetune.federation.hands import Member, Task
from edgetune.federation.tuning import tune_prepared
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import Recipe


class ServerKilled(Exception):
    """The server died in a round, and with it what it knew of who holds which state."""


class Accepted:
    """Devices of this process, of which only those answer that a log names (`federation.hands.Party`).

    Args:
        accepted: devices by round.
        killed: rounds in which the server dies once, after it has opened them.
        why: others did not, by round and device.
    """

    processes, beside_bytes = 1, 0
    members: Mapping[int, Member] | None = None

    def __init__(
        self,
        accepted: Mapping[int, Collection[int]],
        killed: Collection[int],
        why: Mapping[int, Mapping[int, str]],
    ) -> None:
        self._accepted, self._killed, self._why, self._round = accepted, set(killed), why, 1
        self._devices: Mapping[int, Device] = {}
        self.unanswered: Mapping[int, str] = {}

    def __enter__(self) -> Accepted:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def enlist(self, devices: Mapping[int, Device], start: str = "") -> Accepted:
        """Take the devices."""
        self._devices = devices
        return self

    def answer(self, tasks: list[Task], progress: Progress = silent) -> dict[int, bytes]:
        """Return the replies of those whose replies were accepted."""
        if self._round in self._killed:
            self._killed.remove(self._round)
            raise ServerKilled
        heard = self._accepted[self._round]
        why = self._why.get(self._round, {})
        self.unanswered = {
            one.device: why.get(one.device, "late") for one in tasks if one.device not in heard
        }
        return {one.device: one.done_by(self._devices[one.device]) for one in tasks if one.device in heard}

    def closed(self, round: int) -> None:
        """Go on to the next round."""
        self._round = round + 1

    def close(self) -> None:
        """Nothing is open."""


def replayed(
    recipe: Recipe,
    folder: Path,
    accepted: Mapping[int, Collection[int]],
    killed: Collection[int] = (),
    why: Mapping[int, Mapping[int, str]] | None = None,
) -> tuple[Ledger, dict[int, dict[str, Any]]]:
    """Return the ledger of a run over these replies, and what each of its rounds sent, by round.

    Args:
        recipe: of the run.
        folder: an empty one, created if missing.
        accepted: devices by round, whose replies count.
        killed: rounds in which the server lost its memory of who holds which state.
        why: others did not answer, by round and device: to one that was away nothing was sent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rounds, hands = dict[int, dict[str, Any]](), Accepted(accepted, killed, why or {})

    def listen(event: Event) -> None:
        if isinstance(event, RoundFinished):
            told = {"up": event.payload_up_bytes, "down": event.payload_down_bytes}
            rounds[event.round] = {**told, "digest": event.digest, "loss": event.loss}

    while True:
        try:
            ledger, _ = tune_prepared(prepare(recipe), folder / "tuned.ledger", listener=listen, crew=hands)
        except ServerKilled:
            continue
        return ledger, rounds


def undisturbed(recipe: Recipe, folder: Path) -> tuple[Ledger, dict[int, dict[str, Any]]]:
    """Return `replayed` where everybody answers."""
    everybody = range(recipe.federation.devices or 0)
    return replayed(recipe, folder, dict.fromkeys(range(1, recipe.federation.rounds + 1), everybody))
