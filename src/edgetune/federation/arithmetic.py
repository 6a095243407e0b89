"""What rounds a run's sums besides its recipe: the kernel, its instruction set, and how products are formed."""

from __future__ import annotations

from pathlib import Path

from edgetune.core.errors import DigestError
from edgetune.core.events import read_events
from edgetune.directions import few, kernel


def refuse_other_arithmetic(events: Path) -> None:
    """Refuse to go on with a run whose log says that another kernel computed it: its bits would be of no single run.

    Args:
        events: the run's log; one that is missing, or says nothing of the kernel, is no reason.

    Raises:
        DigestError: naming both.
        DataError: if the log is damaged.
    """
    lines = read_events(events) if events.exists() else ()
    versions = [one.get("versions") for one in lines if one["event"] == "run_started"]
    before = versions[-1].get("kernel") if versions and isinstance(versions[-1], dict) else None
    now = kernel.describe_kernel()
    if before is not None and before != now:
        raise DigestError(
            f"this folder holds a run computed by {before}, and this would go on with {now}",
            where=events,
            hint=f"set {kernel.VARIABLE} and {few.VARIABLE} as they were, or choose another --out",
        )
