"""How a run stands: what its log says, and what the server that is at work on it says beside it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from edgetune.core.errors import DataError
from edgetune.core.reasons import LONGEST, most_common
from edgetune.hosts.following import Following, Run
from edgetune.hosts.status_fields import FAILED, FINISHED, KILLED, RUNNING, SERVER, UNFINISHED, checked, whole

STATUS, LOG = "status.json", "events.jsonl"
"""What a server writes while it runs, and the log of a run."""
SLACK = 5.0
"""Seconds by which two clocks of one machine may differ."""


def status_of(folder: Path) -> dict[str, Any]:
    """Return how the run in a folder stands, as `Statuses.now` does.

    Cost: one pass over the log; whoever asks again and again keeps a `Statuses`.
    """
    return Statuses(folder).now()


class Statuses:
    """How the run in a folder stands, asked again and again; for one thread at a time.

    Args:
        folder: of a run on this machine, across hosts or in one process; complete, going on, or killed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._log = folder, Following(folder / LOG)

    def now(self) -> dict[str, Any]:
        """Return values that JSON has; every key is always there, in this order.

        - `command`, `method`: of the run, null before it began; `state`: running, finished, failed, killed or
          unfinished (nobody says whether somebody is at work); `failure`: null, or why it failed.
        - of the server, null for a run in one process: `pid`, `phase` (waiting, asking, closing or done), `round` (that
          it is in; the last whole one without a server), `rounds` (how many there will be), `asked`, `heard` and
          `online` (numbers of devices), `registered`, `since` (unix seconds).
        - `done`: the last whole round; `losses` (held out) and `train_losses`: lists of [round, nats a token].
        - `payload_up_bytes`, `payload_down_bytes`, and on the sockets `transport_up_bytes` and `transport_down_bytes`,
          of all rounds that count, all devices.
        - `refused`: devices and strangers that were turned away, why to count; `unanswered`: replies that did not come
          in time, why to count; `late`: those that came in a later round.
        - `last_time`: when the last line of the log was written, unix seconds, or null.

        Raises:
            DataError: if there is no run in the folder, or its files are damaged.
        """
        told, run = _told(self._folder / STATUS), self._log.run()
        if told is None and run is None:
            hint = "give the --out of a run, or HOST:PORT of a server"
            raise DataError("no run in this folder", where=self._folder, hint=hint)
        run = run or Run()
        return {
            "command": _text(run.start.get("command")),
            "method": _text(run.start.get("method")),
            "state": _state(told, run, self._folder),
            "failure": run.failure if run.over else None,
            **_server(told, run),
            **_counts(run),
        }


def _told(path: Path) -> dict[str, Any] | None:
    """Return what a server said last, None where none was."""
    try:
        return checked(json.loads(path.read_bytes()), SERVER)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=path) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError("not what a server writes", where=path, hint="delete it") from error


def _state(told: dict[str, Any] | None, run: Run, folder: Path) -> str:
    server = told is not None and _alive(told["pid"], told["since"])
    if told is not None and told["phase"] != "done" and server:
        return RUNNING
    if run.over:
        return FAILED if run.failure is not None else FINISHED
    if server or _held(folder):
        return RUNNING
    return UNFINISHED if told is None else KILLED


def _alive(pid: int, since: float) -> bool:
    """Return whether a process is there, and is not a later one that got its number."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= since + SLACK
    except psutil.AccessDenied:
        return True
    except (psutil.Error, ValueError, OverflowError):
        return False


def _held(folder: Path, locks: Path = Path("/proc/locks")) -> bool:
    """Return whether a run is seen to own a folder (`core.files.owned_folder`), without taking its lock.

    A run in a container has another number there, and one in one process tells none. Where the system or the file
    system does not show locks, nobody is seen.
    """
    try:
        found, lines = folder.stat(), locks.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return False
    inode = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any(words[1:2] == ["FLOCK"] and inode in words for words in map(str.split, lines))


def _server(told: dict[str, Any] | None, run: Run) -> dict[str, Any]:
    if told is not None:
        return told
    network, config = run.counted, run.start.get("config")
    federation = config.get("federation") if isinstance(config, dict) else None
    rounds = federation.get("rounds") if isinstance(federation, dict) else None
    return {
        **dict.fromkeys(SERVER),
        "round": max(run.rounds, default=0),
        "rounds": rounds if whole(rounds) else None,
        "registered": network[-1].registered if network else None,
    }


def _counts(run: Run) -> dict[str, Any]:
    rounds, network = sorted(run.rounds.items()), run.counted
    unanswered: Counter[str] = sum((one.unanswered for one in network), Counter())
    return {
        "done": max(run.rounds, default=0),
        "losses": [[number, done.loss] for number, done in rounds if done.loss is not None],
        "train_losses": [[number, done.train_loss] for number, done in rounds if done.train_loss is not None],
        "payload_up_bytes": sum(done.up for _, done in rounds),
        "payload_down_bytes": sum(done.down for _, done in rounds),
        "transport_up_bytes": sum(one.up for one in network),
        "transport_down_bytes": sum(one.down for one in network),
        "refused": most_common(run.refused),
        "unanswered": most_common(unanswered),
        "late": sum(one.late for one in network),
        "last_time": run.last_time,
    }


def _text(value: Any) -> str | None:
    return value[: 8 * LONGEST] if isinstance(value, str) else None
