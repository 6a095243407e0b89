"""What the devices of other hosts did in a run, from its log alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgetune.core.events import Event, RoundFinished
from edgetune.core.host_events import DeviceSeen, HostsRound
from edgetune.core.reasons import most_common, shortened
from edgetune.report.rounds import by_round


@dataclass(frozen=True, slots=True)
class Carried:
    """Bytes of a device, a round or a run: what the method sent, and what the socket carried for it.

    Args:
        payload_up_bytes: `len(payload)` from devices.
        payload_down_bytes: the same to devices.
        transport_up_bytes: on the socket, from devices: payloads, requests, encryption, polls, retries.
        transport_down_bytes: the same to devices.
    """

    payload_up_bytes: int = 0
    payload_down_bytes: int = 0
    transport_up_bytes: int = 0
    transport_down_bytes: int = 0

    def __add__(self, other: Carried) -> Carried:
        """Return the sums."""
        return Carried(
            self.payload_up_bytes + other.payload_up_bytes,
            self.payload_down_bytes + other.payload_down_bytes,
            self.transport_up_bytes + other.transport_up_bytes,
            self.transport_down_bytes + other.transport_down_bytes,
        )

    @property
    def payload(self) -> int:
        """Bytes of payloads, both ways."""
        return self.payload_up_bytes + self.payload_down_bytes

    @property
    def transport(self) -> int:
        """Bytes on the socket, both ways."""
        return self.transport_up_bytes + self.transport_down_bytes


@dataclass(frozen=True, slots=True)
class HostRound:
    """One round on the network: its event, what its payloads were, and why replies did not come, counted."""

    event: HostsRound
    carried: Carried
    unanswered: dict[str, int]


@dataclass(frozen=True, slots=True)
class HostDevice:
    """One device over all rounds that count."""

    answered: int = 0
    """Rounds whose reply came in time."""
    unanswered: dict[str, int] = field(default_factory=dict)
    """Rounds that it was asked in and did not answer, by why."""
    late: int = 0
    """Replies to earlier rounds, refused."""
    carried: Carried = Carried()


@dataclass(frozen=True, slots=True)
class Hosts:
    """A run across hosts."""

    registered: int | None
    """Devices with a key; None before the first round."""
    rounds: tuple[HostRound, ...]
    devices: dict[int, HostDevice]
    """By number, ascending; those that were asked or heard of."""
    turned_away: dict[str, int]
    """Devices and strangers that were let in nowhere, by why."""

    @property
    def carried(self) -> Carried:
        """Bytes of all rounds."""
        return sum((done.carried for done in self.rounds), Carried())

    @property
    def unanswered(self) -> dict[str, int]:
        """Replies that did not come in time, by why."""
        return most_common(sum((Counter(done.unanswered) for done in self.rounds), Counter()))


def hosts_of(log: Sequence[Event], rounds: Iterable[RoundFinished]) -> Hosts | None:
    """Reduce the events of other hosts to what counts.

    Args:
        log: events of one run, in order.
        rounds: those of it that count.

    Returns:
        What the network did in these rounds; None for a run in one process.
    """
    seen = [event for event in log if isinstance(event, DeviceSeen)]
    told = by_round(HostsRound, log)
    if not seen and not told:
        return None
    finished = {done.round: done for done in rounds}
    pairs = [(one, finished[one.round]) for one in told if one.round in finished]
    refused = Counter(shortened(one.why or "refused") for one in seen if one.state == "refused")
    return Hosts(
        registered=told[-1].registered if told else None,
        rounds=tuple(_round(*pair) for pair in pairs),
        devices=_devices(pairs),
        turned_away=most_common(refused),
    )


def hosts_json(hosts: Hosts | None) -> dict[str, Any] | None:
    """Return `hosts` of `summary.json`; `report.summary.write_summary` documents the keys."""
    if hosts is None:
        return None
    return {
        "registered": hosts.registered,
        "rounds": [
            {
                "round": done.event.round,
                "online": done.event.online,
                "accepted": len(done.event.accepted),
                "unanswered": done.unanswered,
                "late": len(done.event.late),
                **asdict(done.carried),
                "waited_seconds": done.event.waited_seconds,
            }
            for done in hosts.rounds
        ],
        "unanswered": hosts.unanswered,
        "late": sum(len(done.event.late) for done in hosts.rounds),
        "turned_away": hosts.turned_away,
        **asdict(hosts.carried),
        "devices": {
            str(number): {
                "answered": one.answered,
                "unanswered": one.unanswered,
                "late": one.late,
                **asdict(one.carried),
            }
            for number, one in hosts.devices.items()
        },
    }


def _round(event: HostsRound, done: RoundFinished) -> HostRound:
    carried = Carried(
        sum(done.payload_up_bytes),
        sum(done.payload_down_bytes),
        sum(event.transport_up_bytes.values()),
        sum(event.transport_down_bytes.values()),
    )
    return HostRound(event, carried, most_common(Counter(map(shortened, event.unanswered.values()))))


def _devices(pairs: Sequence[tuple[HostsRound, RoundFinished]]) -> dict[int, HostDevice]:
    answered, late = Counter[int](), Counter[int]()
    unanswered, carried = dict[int, Counter[str]](), dict[int, Carried]()
    for event, done in pairs:
        answered.update(event.accepted)
        late.update(event.late)
        for number, why in _numbered(event.unanswered).items():
            unanswered.setdefault(number, Counter())[shortened(why)] += 1
        up, down = _numbered(event.transport_up_bytes), _numbered(event.transport_down_bytes)
        sent, received = _payloads(event, done)
        for number in {*up, *down, *sent, *received}:
            here = Carried(
                sent.get(number, 0), received.get(number, 0), up.get(number, 0), down.get(number, 0)
            )
            carried[number] = carried.get(number, Carried()) + here
    return {
        number: HostDevice(
            answered[number],
            most_common(unanswered.get(number, Counter())),
            late[number],
            carried.get(number, Carried()),
        )
        for number in sorted({*answered, *late, *unanswered, *carried})
    }


def _payloads(event: HostsRound, done: RoundFinished) -> tuple[dict[int, int], dict[int, int]]:
    """Return the payloads of a round from and to each device.

    The round's event names no senders: they are those who were asked, in its order, or of these the ones that answered
    in time. A round with other counts (one with an exchange before it that somebody did not end) is nobody's.
    """
    asked, accepted = set(done.devices), set(event.accepted)
    heard = [number for number in done.devices if number in accepted]
    heard += [number for number in event.accepted if number not in asked]
    sent = next((who for who in (heard, done.devices) if len(who) == len(done.payload_up_bytes)), [])
    received = done.devices if len(done.devices) == len(done.payload_down_bytes) else []
    return (
        dict(zip(sent, done.payload_up_bytes, strict=False)),
        dict(zip(received, done.payload_down_bytes, strict=False)),
    )


def _numbered(values: Mapping[str, Any]) -> dict[int, Any]:
    """Return a table with its keys as numbers; JSON has them as text, and a strange log anything."""
    return {
        int(key): value for key, value in values.items() if key.isascii() and key.isdigit() and len(key) < 10
    }
