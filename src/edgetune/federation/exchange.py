"""The messages of a round: state down, where it is asked numbers up and a choice down, change up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgetune.federation.fleet import ABSENT, Fates
from edgetune.federation.flight import Flight
from edgetune.federation.hands import Hands, Member, Task
from edgetune.federation.pace import Pace
from edgetune.federation.plan import Plan
from edgetune.federation.server import Closed, Server
from edgetune.federation.turns import Turns


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a round's messages were, and what came of them.

    Args:
        down: states, by device.
        up: changes that arrived, by device.
        fates: who answered, and when.
        closed: what the server made of them.
        before: numbers that were sent before the round, by device.
        chosen: the answers to them, by device.
        layers: which layers they name.
    """

    down: dict[int, bytes]
    up: dict[int, bytes]
    fates: Fates
    closed: Closed
    before: dict[int, bytes]
    chosen: dict[int, bytes]
    layers: dict[str, list[int]]

    def told(self) -> dict[str, Any]:
        """Return what a round's event says of it."""
        closed = self.closed
        return {
            "devices": list(self.down),
            "train_loss": closed.loss,
            "payload_up_bytes": [
                len(self.before.get(id, b"")) + len(self.up.get(id, b""))
                for id in dict.fromkeys([*self.down, *self.up])
                if id in self.before or id in self.up
            ],
            "payload_down_bytes": [
                len(payload) + len(self.chosen.get(id, b""))
                for id, payload in self.down.items()
                if self.fates.unanswered.get(id) != ABSENT
            ],
            "dropped": closed.dropped,
            "refused": list(closed.refused),
            "reasons": list(closed.refused.values()),
            "unanswered": dict(Counter(self.fates.unanswered.values())),
            "void": closed.void,
            "aggregation_residual": closed.residual,
            "layers": self.layers,
            "staleness": list(closed.staleness),
        }


class Exchanges:
    """Carries messages between a server and the devices of this machine, round after round.

    Args:
        server: opens and closes rounds.
        devices: by id.
        plan: of the run.
        hands: who lets devices answer.
        flight: replies on their way, where a step may take those to earlier rounds.
    """

    def __init__(
        self, server: Server, devices: Mapping[int, Member], plan: Plan, hands: Hands, flight: Flight | None
    ) -> None:
        self._server, self._devices, self._plan, self._hands = server, len(devices), plan, hands
        self._turns = Turns(list(devices), server.participation, seed=plan.seed)
        self._flight = flight
        self._held = dict[int, int]()

    def round(self, pace: Pace) -> Exchange:
        """Let a round's devices answer, and close it; who was heard holds the state that it received from then on."""
        server, flight = self._server, self._flight
        down, coming = server.open_round(self._held, flight.devices if flight else ()), server.round + 1
        fates = self._plan.fates(coming, list(down), self._devices, server.method.local_steps)
        tasks = [
            Task(id, down[id], self._turns.before(id, coming), server.recall(down[id]))
            for id in fates.answering
        ]
        before, chosen = self._chosen(tasks)
        missed = dict(self._hands.unanswered) if before else {}
        if chosen is not None:
            tasks = [replace(task, choice=chosen[task.device]) for task in tasks if task.device in chosen]
        up = self._hands.answer(tasks, pace.step) if tasks else {}
        missed |= self._hands.unanswered
        if missed:
            fates = replace(fates, unanswered={**fates.unanswered, **missed})
        self._held |= dict.fromkeys(up, server.round)
        if flight is not None:
            up, seconds = flight.landed(up, fates.times, coming)
            fates = replace(fates, seconds=seconds)
        return Exchange(down, up, fates, server.close_round(up), before, chosen or {}, server.chosen)

    def _chosen(self, tasks: Sequence[Task]) -> tuple[dict[int, bytes], dict[int, bytes] | None]:
        """Return what devices sent before the round, and the server's answers to it; None where there are none."""
        asked = [replace(task, survey=True) for task in tasks] if self._server.surveys else []
        before = self._hands.answer(asked) if asked else {}
        return before, self._server.choose(before)
