"""The devices of other hosts as a run sees them: met before its first round, remembered between its starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from edgetune.core.errors import DataError
from edgetune.core.events import Event, Listener
from edgetune.core.files import write_text_atomic
from edgetune.core.progress import Progress
from edgetune.federation.hands import Party
from edgetune.hosts.lessons import served_lesson
from edgetune.hosts.link import Link
from edgetune.hosts.opening import opening_of
from edgetune.hosts.remote import Remote
from edgetune.hosts.shown import Shown
from edgetune.hosts.waiting import Patience
from edgetune.recipe.asking import asked_devices
from edgetune.recipe.prepare import Prepared

FILE = "devices.json"
"""Beside a run's ledger: how many examples each device has said that it holds."""


class Fleet:
    """Devices on other hosts (`run.elsewhere.Elsewhere`).

    Args:
        link: carries the messages.
        devices: all ids.
        out: the run's folder.
        shown: keeps what `edgetune status` shows.
        timeout: seconds after which a round takes no more replies.
        wait: devices that must be there before the first round; those that a round waits for if not given.
        say: told in one line what is waited for.
    """

    def __init__(
        self,
        link: Link,
        devices: Sequence[int],
        out: Path,
        shown: Shown,
        *,
        timeout: float,
        wait: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._link, self._devices, self._file = link, devices, out / FILE
        self._shown, self._timeout, self._wait = shown, timeout, wait
        self._say = say
        self._untold = list[Event]()
        self._tell: Listener = self._untold.append
        self._remote: Remote | None = None
        self._written = dict[str, int]()

    def stood_in(self, prepared: Prepared) -> Prepared:
        """Return what a run works on with the server's own sample in the stead of every device's records."""
        devices = dict.fromkeys(self._devices, prepared.calibration_examples)
        return replace(prepared, devices=devices, lesson=served_lesson(prepared))

    def meet(self, prepared: Prepared, *, resumed: bool, progress: Progress) -> dict[int, int]:
        """Tell devices of the run and wait for them; return how many examples those have that have said so."""
        remote = self._remote = self._remote or self._opened(prepared, resumed=resumed)
        self._shown.begin(remote)
        remote.open(opening_of(prepared))
        wanted = self._awaited(prepared, remote, resumed=resumed)
        if wanted > len(remote.ready):
            self._say(f"waiting for {wanted} of {len(self._devices)} devices")
            remote.wait(wanted, progress)
        return {id: one.examples for id, one in remote.known.items() if one.examples}

    def party(self, tell: Listener) -> Party:
        """Return the devices as those who answer; what happened to them so far is told first."""
        assert self._remote is not None  # noqa: S101 - `meet` comes first
        for event in self._untold:
            tell(event)
        self._tell = tell
        return self._remote

    def _awaited(self, prepared: Prepared, remote: Remote, *, resumed: bool) -> int:
        """Return how many devices must be there before the first round."""
        if prepared.method.private:  # the noise is found for every device's number of records
            return 0 if all(one.examples for one in remote.known.values()) else len(self._devices)
        if resumed:
            return 0
        section = prepared.recipe.federation
        return asked_devices(len(self._devices), section.participation) if self._wait is None else self._wait

    def _opened(self, prepared: Prepared, *, resumed: bool) -> Remote:
        section = prepared.recipe.federation
        wanted = asked_devices(len(self._devices), section.participation)
        patience = Patience(wanted, section.minimum_replies, self._timeout)
        return Remote(
            self._link, self._devices, patience,
            listener=lambda event: self._tell(event), changed=self._changed,
            known=self._remembered() if resumed else {},
        )  # fmt: skip

    def _changed(self) -> None:
        remote = self._remote
        if remote is None:
            return
        self._shown.show()
        examples = {str(id): one.examples for id, one in remote.known.items() if one.examples}
        if examples != self._written:
            write_text_atomic(self._file, json.dumps(examples) + "\n")
            self._written = examples

    def _remembered(self) -> dict[int, int]:
        """Return what the devices of a run that goes on said before."""
        try:
            said = json.loads(self._file.read_text("utf-8"))
            return {int(id): int(count) for id, count in said.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise DataError(
                "what the devices said of themselves is damaged", where=self._file,
                hint="delete the file: they say it again",
            ) from error  # fmt: skip
