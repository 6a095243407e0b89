"""Which replies a server still takes: those to states that it remembers by name, each once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from edgetune.core.errors import DigestError

State = dict[str, torch.Tensor]


class Tickets:
    """The tickets of the last rounds, and who was heard in answer to each.

    A reply is known by its device and the round whose message it answers; it counts once.

    Args:
        oldest: rounds that a reply may be late by; 0 takes those of the coming round only.
        state: what `state` returned before a restart.
    """

    def __init__(self, oldest: int = 0, state: Mapping[str, torch.Tensor] | None = None) -> None:
        self._oldest = oldest
        self._named = dict[int, bytes]()
        self._heard = set[tuple[int, int]]()
        if state:
            rounds, tickets = state["rounds"].tolist(), state["tickets"].tolist()
            self._named = {round: bytes(ticket) for round, ticket in zip(rounds, tickets, strict=True)}
            self._heard = {(device, round) for device, round in state["heard"].tolist()}

    @property
    def state(self) -> State:
        """Everything that a restart must know: `rounds` int64 [n], `tickets` uint8 [n, 8], `heard` int64 [m, 2]."""
        named, heard = sorted(self._named.items()), sorted(self._heard)
        return {
            "rounds": torch.tensor([round for round, _ in named], dtype=torch.int64),
            "tickets": torch.tensor([list(one) for _, one in named], dtype=torch.uint8).reshape(-1, 8),
            "heard": torch.tensor(heard, dtype=torch.int64).reshape(-1, 2),
        }

    @property
    def rounds(self) -> list[int]:
        """Rounds of which replies are taken, ascending."""
        return sorted(self._named)

    def open(self, round: int, ticket: bytes) -> None:
        """Remember the ticket of a round's state, and forget rounds whose replies would come too late."""
        self._named[round] = ticket
        self._named = {one: name for one, name in self._named.items() if 0 <= round - one <= self._oldest}
        self._heard = {(device, one) for device, one in self._heard if one in self._named}

    def named(self, device: int, round: int, coming: int) -> bytes:
        """Return the ticket that a device's reply to a round must repeat.

        Args:
            device: who replies.
            round: whose message is answered.
            coming: the round that the server is to close.

        Raises:
            DigestError: if the reply is too late, or early, or was heard before.
        """
        late = f"a reply to round {round} arrived in round {coming}"
        if self._oldest and coming - round > self._oldest:
            raise DigestError(f"{late}, and may be {self._oldest} late")
        if round not in self._named or round > coming:
            raise DigestError(late)
        if (device, round) in self._heard:
            raise DigestError(f"this device's reply to round {round} counted before")
        return self._named[round]

    def heard(self, devices: Iterable[tuple[int, int]]) -> None:
        """Note replies that counted, by device and round."""
        self._heard.update(devices)
