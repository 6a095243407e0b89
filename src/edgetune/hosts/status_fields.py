"""The fields of a status, and what fits them: `status.json` and a server's reply are anybody's text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Fits = Callable[[Any], bool]
PHASES = ("waiting", "asking", "closing", "done")
RUNNING, FINISHED, FAILED, KILLED, UNFINISHED = "running", "finished", "failed", "killed", "unfinished"
STATES = (RUNNING, FINISHED, FAILED, KILLED, UNFINISHED)
"""States of a run; `unfinished` where nobody says whether somebody is still at work on it."""
BYTES = ("payload_up_bytes", "payload_down_bytes", "transport_up_bytes", "transport_down_bytes")
LATEST = 253402300799
"""Unix seconds of the last second of the year 9999, beyond which there are no dates."""


def checked(found: Any, kinds: dict[str, Fits]) -> dict[str, Any]:
    """Return a table's fields of the kinds asked for, and no others.

    Raises:
        ValueError: if it is no table, lacks one, or one is of another kind; names it.
    """
    if not isinstance(found, dict):
        raise ValueError("no table")
    for name, fits in kinds.items():
        if name not in found or not fits(found[name]):
            raise ValueError(f"{name} is missing or damaged")
    return {name: found[name] for name in kinds}


def whole(value: Any) -> bool:
    """Return whether a value is a count."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def wholes(value: Any) -> bool:
    """Return whether a value is a list of counts."""
    return isinstance(value, list) and all(map(whole, value))


def seconds(value: Any) -> bool:
    """Return whether a value is a time that a clock shows."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < LATEST


def text(value: Any) -> bool:
    """Return whether a value is a text, and not a book."""
    return isinstance(value, str) and len(value) <= 1000


def pairs(value: Any) -> bool:
    """Return whether a value is a list of [round, loss]; a loss is finite."""
    return isinstance(value, list) and all(map(_pair, value))


def counts(value: Any) -> bool:
    """Return whether a value is a table of counts by why."""
    return isinstance(value, dict) and all(text(why) and whole(count) for why, count in value.items())


def _pair(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and whole(value[0])
        and isinstance(value[1], (int, float))
        and -1e300 < value[1] < 1e300
    )


def _or_none(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


SERVER: dict[str, Fits] = {
    "pid": whole, "phase": PHASES.__contains__, "round": whole, "rounds": whole, "asked": wholes, "heard": wholes,
    "online": wholes, "registered": whole, "since": seconds,
}  # fmt: skip
"""Fields of `status.json`, and what fits them."""
REPLY: dict[str, Fits] = {
    "command": _or_none(text), "method": _or_none(text), "state": STATES.__contains__, "failure": _or_none(text),
    **{name: _or_none(fits) for name, fits in SERVER.items()},
    "done": whole, "losses": pairs, "train_losses": pairs, **dict.fromkeys(BYTES, whole), "refused": counts,
    "unanswered": counts, "late": whole, "last_time": _or_none(seconds),
}  # fmt: skip
"""Fields of a status, and what fits them."""
