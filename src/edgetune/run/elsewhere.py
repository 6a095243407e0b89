"""What a run asks of devices on other hosts: `edgetune.hosts` provides it."""

from __future__ import annotations

from typing import Protocol

from edgetune.core.events import Listener
from edgetune.core.progress import Progress
from edgetune.federation.hands import Party
from edgetune.recipe.prepare import Prepared


class Elsewhere(Protocol):
    """Devices whose data this process never sees."""

    def stood_in(self, prepared: Prepared) -> Prepared:
        """Return what a run works on, its lesson too, with the server's own sample for every device's records.

        What is found before a run by looking at records (a learning rate) is found on those.
        """
        ...

    def meet(self, prepared: Prepared, *, resumed: bool, progress: Progress) -> dict[int, int]:
        """Tell devices of the run and wait for them; return how many examples those have that have said so.

        Args:
            prepared: the run, with everything settled that is sent to devices.
            resumed: the run goes on, so that nobody is waited for.
            progress: told how many are there.
        """
        ...

    def party(self, tell: Listener) -> Party:
        """Return the devices as those who answer; what happened to them so far is told first."""
        ...
