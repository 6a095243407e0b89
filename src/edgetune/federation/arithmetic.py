"""What rounds a run's sums besides its recipe: the kernel, its instruction set, and how products are formed."""

from __future__ import annotations

from pathlib import Path

from edgetune.core.errors import DigestError
from edgetune.core.event_log import read_events
from edgetune.directions import few, kernel


def refuse_other_arithmetic(events: Path, device: str = "cpu") -> None:
    """Refuse to go on with a run that another kernel or device computed: its bits would be of no single run.

    Args:
        events: the run's log; one that is missing, or says nothing of the kernel, is no reason.
        device: type of the device that this would go on with.

    Raises:
        DigestError: naming both.
        DataError: if the log is damaged.
    """
    lines = read_events(events) if events.exists() else ()
    started = [one for one in lines if one["event"] == "run_started"]
    versions = started[-1].get("versions") if started else None
    before = versions.get("kernel") if isinstance(versions, dict) else None
    place = started[-1].get("device", device) if started else device
    if place != device:
        raise DigestError(
            f"this folder holds a run computed on {place}, and this would go on on {device}",
            where=events,
            hint=f"--device {place}, or choose another --out",
        )
    now = kernel.describe_kernel()
    if before is not None and before != now:
        raise DigestError(
            f"this folder holds a run computed by {before}, and this would go on with {now}",
            where=events,
            hint=f"set {kernel.VARIABLE} and {few.VARIABLE} as they were, or choose another --out",
        )
