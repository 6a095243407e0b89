"""Who came, went and answered, as lines of a terminal: each of a few, sums of many."""

from __future__ import annotations

from collections import Counter

from rich.markup import escape

from edgetune.core.host_events import DeviceSeen, HostsRound
from edgetune.core.reasons import counted_reasons, numbers, shortened

FEW = 8
"""Lines of a kind between two rounds; a fleet of a thousand must not scroll everything else away."""
STEPS = (1, 2, 5)
"""Beyond these few a line comes with the 10th, 20th, 50th, 100th, ... of a kind."""
SAID = {"online": "came", "offline": "went", "refused": "were refused"}


class Presence:
    """Says what happens to devices of other hosts, and at the close of a round what was left unsaid."""

    def __init__(self) -> None:
        self._seen = Counter[str]()
        self._reasons = Counter[str]()
        self._round: HostsRound | None = None

    def seen(self, event: DeviceSeen) -> str | None:
        """Return a line of markup, or None where only the sum will be said."""
        self._seen[event.state] += 1
        count = self._seen[event.state]
        why = shortened(event.why)
        if event.state == "refused":
            self._reasons[why or "no reason told"] += 1
        if count > FEW:
            if not _round_number(count):
                return None
            return f"devices {self._times(event.state)} since the last round"
        who = "a stranger" if event.device is None else f"device {event.device}"
        if event.state == "refused":
            return f"[yellow]{who} refused[/]{f': {escape(why)}' if why else ''}"
        return f"{who} {escape(shortened(event.state))}{f': {escape(why)}' if why else ''}"

    def closed(self, event: HostsRound) -> str | None:
        """Take what a round was like; return what was left unsaid since the last one, None if nothing."""
        self._round = event
        many = [state for state, count in self._seen.items() if count > FEW]
        line = f"devices {', '.join(map(self._times, many))} since the last round" if many else None
        self._seen.clear()
        self._reasons.clear()
        return line

    def of_round(self, round: int) -> str | None:
        """Return what the line of a round says of its network; None for a round in one process."""
        event, self._round = self._round, None
        if event is None or event.round != round:
            return None
        said = f", {event.online:,} of {event.registered:,} online, {len(event.accepted):,} answered"
        said += f" ({numbers(event.accepted)})" if event.accepted else ""
        lost = counted_reasons(Counter(map(shortened, event.unanswered.values())))
        said += f", [yellow]no reply: {escape(lost)}[/]" if lost else ""
        return said + (f", {len(event.late):,} late refused" if event.late else "")

    def _times(self, state: str) -> str:
        why = f" ({escape(counted_reasons(self._reasons))})" if state == "refused" else ""
        return f"{SAID.get(state, escape(shortened(state)))} {self._seen[state]:,} times{why}"


def _round_number(count: int) -> bool:
    """Return whether a count is 1, 2 or 5 times a power of ten."""
    while count % 10 == 0:
        count //= 10
    return count in STEPS
