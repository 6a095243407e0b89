"""Devices on other hosts answer: who is there is told of the run, is asked, and is waited for so long and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType

from edgetune.core.errors import DigestError
from edgetune.core.events import Event
from edgetune.core.host_events import DeviceSeen, HostsRound
from edgetune.core.progress import Progress, silent
from edgetune.federation.fleet import ABSENT
from edgetune.federation.hands import Hands, Member, Task
from edgetune.federation.pipes import Message
from edgetune.federation.tasks import told_task
from edgetune.hosts.envelope import seal, unseal
from edgetune.hosts.kinds import ERROR, OPENED, OVER, RECALL, REPLY
from edgetune.hosts.link import Carried, Link
from edgetune.hosts.waiting import MOST, Patience, Registered, Sent, why_not
from edgetune.wire.frame import HEADER

PAUSE = 0.01, 0.05
"""Seconds between two looks at the link: at first, and the most that they grow to while nothing happens."""
AGAIN = 15.0
"""Seconds after which a device that would not take part is asked again, while the round needs it."""
WAITING, ASKING, CLOSING, DONE = "waiting", "asking", "closing", "done"
"""What a server is doing: for devices, for replies, with them, nothing any more."""
FAREWELL = 8.0
"""Seconds that devices have to hear that the run is over: more than between two looks of one that nobody asks."""


class Remote:
    """The devices of other hosts (`federation.hands.Party`).

    A reply is a function of the state that the message gives, so whoever asks twice gets the same bytes: a device that
    came back, or whose server did, is asked again, and counts once.

    Args:
        link: carries the messages.
        devices: all ids.
        patience: how long a round waits.
        listener: told of devices that come, go or are refused, and of every round.
        changed: told after anything that `status` shows has changed.
        known: how many examples devices have said before this server was started, by device.
    """

    processes, beside_bytes = 1, 0

    def __init__(
        self,
        link: Link,
        devices: Sequence[int],
        patience: Patience,
        *,
        listener: Callable[[Event], None],
        changed: Callable[[], None],
        known: Mapping[int, int],
    ) -> None:
        self._link, self._patience = link, patience
        self._listener, self._changed = listener, changed
        self.known = {id: Registered(known.get(id, 0)) for id in devices}
        self.members: Mapping[int, Member] | None = self.known
        self.unanswered: Mapping[int, str] = {}
        self.asked, self.heard, self.phase, self.round = list[int](), list[int](), WAITING, 0
        self._opening, self._start = b"", ""
        self._online = dict[int, str]()
        self._under_way, self._stale = dict[str, Sent](), dict[str, int]()
        self._late, self._carried = list[int](), dict[int, Carried]()
        self._waited = 0.0

    def __enter__(self) -> Remote:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End: devices stay where they are, for a server that comes back, unless the run is over."""

    @property
    def online(self) -> list[int]:
        """Devices that are there."""
        return sorted(self._online)

    @property
    def ready(self) -> list[int]:
        """Devices that are there and can take part."""
        return sorted(id for id, session in self._online.items() if self.known[id].session == session)

    def open(self, opening: Message) -> None:
        """Take what devices are told of the run before anything else; those that are there are told at once."""
        self._opening = seal(opening)
        for one in self.known.values():
            one.session = one.refused = ""
        # Whoever has not answered what it was told before would seem to know what it is told now.
        self._take_back([ticket for ticket, sent in self._under_way.items() if sent.task is None])
        self._meet(dict(self._link.sessions()))

    def wait(self, count: int, progress: Progress = silent) -> None:
        """Wait until so many devices can take part."""
        pause = PAUSE[0]
        while len(self.ready) < count:
            self._look({})
            progress("devices", len(self.ready), count)
            time.sleep(pause)
            pause = min(2 * pause, PAUSE[1])

    def enlist(self, devices: Mapping[int, Member], start: str = "") -> Hands:
        """Take the digest of the run's start, if it has one."""
        self._start = start
        return self

    def answer(self, tasks: list[Task], progress: Progress = silent) -> dict[int, bytes]:
        """Return the replies that arrive in time; why others do not is in `unanswered`."""
        open, up = {task.device: task for task in tasks}, dict[int, bytes]()
        begin, pause = time.monotonic(), PAUSE[0]
        self.asked, self.heard, self.phase = sorted(open), [], ASKING
        self.round = HEADER.unpack_from(tasks[0].payload)[5]
        declined, until = dict[int, str](), dict[int, float]()
        self._changed()
        while not self._enough(open, up, declined, time.monotonic() - begin):
            came = self._look(open)
            for id, (reply, why) in came.items():
                if reply is not None and len(up) >= self._patience.wanted:
                    break  # several came at once, and the first ones count
                if reply is not None:
                    up[id] = reply
                    open.pop(id)
                    declined.pop(id, None)
                    self._heard(id)
                else:
                    declined[id], until[id] = why, time.monotonic() + AGAIN
            self._send([open[id] for id in open if until.get(id, 0.0) <= time.monotonic()])
            progress("replies", len(up), min(self._patience.wanted, len(tasks)))
            pause = PAUSE[0] if came else min(1.5 * pause, PAUSE[1])
            time.sleep(pause)
        self._waited = time.monotonic() - begin
        self._close(open, declined, full=len(up) >= self._patience.wanted)
        return up

    def closed(self, round: int) -> None:
        """Tell of the round."""
        now = self._link.carried()
        since = {id: (one, self._carried.get(id, Carried())) for id, one in now.items()}
        self._carried = dict(now)
        self._listener(
            HostsRound(
                round=round,
                online=len(self._online),
                registered=len(self.known),
                accepted=sorted(self.heard),
                unanswered={str(id): why for id, why in sorted(self.unanswered.items())},
                late=self._late,
                transport_up_bytes={str(id): one.up - old.up for id, (one, old) in sorted(since.items())},
                transport_down_bytes={
                    str(id): one.down - old.down for id, (one, old) in sorted(since.items())
                },
                waited_seconds=self._waited,
            )
        )
        self._late = []

    def close(self) -> None:
        """Tell the devices that the run is over."""
        self._link.forget([*self._under_way, *self._stale])
        self._under_way, self._stale, self._opening, self.phase = {}, {}, b"", DONE
        self._meet(dict(self._link.sessions()))
        self._changed()
        tickets = [self._link.send(id, seal(Message(OVER))) for id in self._online]
        until = time.monotonic() + FAREWELL
        while tickets and time.monotonic() < until:
            heard = self._link.replies(tickets)
            tickets = [one for one in tickets if one not in heard]
            time.sleep(PAUSE[0])

    def _enough(
        self, open: Mapping[int, Task], up: Mapping[int, bytes], declined: Mapping[int, str], seconds: float
    ) -> bool:
        """Say whether a round waits no longer: for nobody, or not any more."""
        if not open or len(up) >= self._patience.wanted:
            return True
        least = min(self._patience.minimum, len(open) + len(up))
        return len(up) >= least and (seconds > self._patience.seconds or set(open) <= set(declined))

    def _look(self, open: Mapping[int, Task]) -> dict[int, tuple[bytes | None, str]]:
        """See who is there and what was said; whoever said something and left has said it."""
        now = dict(self._link.sessions())
        came = self._take(open, now)
        self._meet(now)
        return came

    def _meet(self, now: dict[int, str]) -> None:
        """See who came and who went, and tell those that came of the run."""
        for stranger, why in self._link.turned_away():
            self._listener(DeviceSeen(stranger, "refused", why))
        for id in sorted(now.keys() | self._online.keys()):
            here, before = now.get(id), self._online.get(id)
            if here == before:
                continue
            self._listener(DeviceSeen(id, "offline" if here is None else "online"))
            lost = [ticket for ticket, sent in self._under_way.items() if sent.device == id]
            late = [ticket for ticket, device in self._stale.items() if device == id]
            self._take_back([*lost, *late])
        changed, self._online = now != self._online, now
        told = {sent.device for sent in self._under_way.values() if sent.task is None}
        for id, session in now.items():
            known = self.known[id]
            if self._opening and known.session != session and known.refused != session and id not in told:
                self._under_way[self._link.send(id, self._opening)] = Sent(id, session, None)
        if changed:
            self._changed()

    def _take_back(self, tickets: Sequence[str]) -> None:
        self._link.forget(tickets)
        for ticket in tickets:
            self._under_way.pop(ticket, None)
            self._stale.pop(ticket, None)

    def _send(self, tasks: Sequence[Task]) -> None:
        """Send what is to be done to devices that can take part and have it not yet."""
        busy = {sent.device for sent in self._under_way.values() if sent.task is not None}
        for task in tasks:
            session = self._online.get(task.device)
            if session is None or session != self.known[task.device].session or task.device in busy:
                continue
            self._post(task, session, b"")
            self._sent(task.device)

    def _post(self, task: Task, session: str, recalled: bytes) -> None:
        told = told_task(replace(task, payload=recalled + task.payload))
        head = {**told.head, "start": self._start, "recalled": len(recalled), "round": self.round}
        ticket = self._link.send(task.device, seal(Message(told.kind, head, told.body)))
        self._under_way[ticket] = Sent(task.device, session, task, bool(recalled))

    def _take(self, open: Mapping[int, Task], now: Mapping[int, str]) -> dict[int, tuple[bytes | None, str]]:
        """Return what devices said to this round's messages: a reply, or why there is none."""
        found = dict[int, tuple[bytes | None, str]]()
        for ticket, body in self._link.replies([*self._under_way, *self._stale]).items():
            late = self._stale.pop(ticket, None)
            if late is not None:
                self._late.append(late)
                continue
            sent = self._under_way.pop(ticket)
            try:
                said = unseal(body)
            except DigestError as error:
                said = Message(ERROR, {"what": error.what})
            if sent.task is None:
                self._told(sent, said)
            elif said.kind == RECALL and sent.task.recall and not sent.whole and sent.device in open:
                if now.get(sent.device) == sent.session:
                    self._post(sent.task, sent.session, sent.task.recall)
            elif said.kind == REPLY:
                found[sent.device] = said.body, ""
            else:
                found[sent.device] = None, why_not(said)
        return {id: one for id, one in found.items() if id in open}

    def _told(self, sent: Sent, said: Message) -> None:
        """Take what a device said when it was told of the run."""
        known, examples = self.known[sent.device], said.head.get("examples")
        if said.kind == OPENED and type(examples) is int and 0 < examples <= MOST:
            known.examples, known.session = examples, sent.session
        else:
            known.refused = sent.session
            self._listener(DeviceSeen(sent.device, "refused", why_not(said)))
        self._changed()

    def _close(self, open: Mapping[int, Task], declined: Mapping[int, str], *, full: bool) -> None:
        """Give up on those that have not answered, and say why they have not."""
        self.unanswered = {
            id: declined.get(id) or (ABSENT if id not in self._online else "not needed" if full else "late")
            for id in open
        }
        given_up = {ticket: sent.device for ticket, sent in self._under_way.items() if sent.task is not None}
        # Else a slow device would do one round after the other that are over.
        back = self._link.withdraw(given_up)
        self._stale |= {ticket: device for ticket, device in given_up.items() if ticket not in back}
        self._under_way = {one: sent for one, sent in self._under_way.items() if one not in given_up}
        self.phase = CLOSING
        self._changed()

    def _sent(self, device: int) -> None:
        """Take note that a message of this round is on its way."""

    def _heard(self, device: int) -> None:
        """Take note that a reply of this round is here."""
        self.heard.append(device)
        self._changed()
