"""What a reader should know first: one line about the result, one about a run that did not end well."""

from __future__ import annotations

from datetime import datetime, timezone

from edgetune.report import units
from edgetune.report.summary import Summary


def verdict(summary: Summary) -> str:
    """Say in one line what the run came to, from what it measured.

    Args:
        summary: a run, complete or not.

    Returns:
        Quality, traffic and file, as far as they are known, separated by semicolons.
    """
    return "; ".join(points(summary))


def points(summary: Summary) -> list[str]:
    """Return the parts of the verdict: quality, traffic, file; those that are known."""
    known = [part for part in (_quality(summary), _bytes(summary), _file(summary)) if part]
    return known or ["nothing has been measured yet"]


def trouble(summary: Summary) -> str | None:
    """Say what is wrong with a run that did not finish.

    Args:
        summary: a run, complete or not.

    Returns:
        A sentence, or None for a finished run.
    """
    if summary.status == "finished":
        return None
    done = _progress(summary)
    if summary.failure:
        what, code = summary.failure.what, summary.failure.exit_code
        return f"This run failed {done}, with exit code {code}: {what}"
    when = datetime.fromtimestamp(summary.last_time, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"This run has not finished: its log stops {done}, last written {when}. "
        "It is still going, or it was killed; what is shown is what it had measured by then."
    )


def _progress(summary: Summary) -> str:
    later = [stage.name for stage in summary.stages if stage.name != "base"]
    if later:
        return f"after stage “{later[-1]}”"
    return f"after round {summary.rounds[-1].round}" if summary.rounds else "before its first round"


def _quality(summary: Summary) -> str | None:
    known = [stage for stage in summary.stages if stage.name in ("base", "pruned", "tuned", "compressed")]
    if not known:
        losses = [done.loss for done in summary.rounds if done.loss is not None]
        return f"held-out loss {units.loss(losses[0])} → {units.loss(losses[-1])}" if losses else None
    steps = [f"{units.rouge(stage.rouge_l)} ({stage.name})" for stage in known]
    records = next((stage.records for stage in known if stage.records is not None), None)
    on = f" on {records:,} held-out records" if records is not None else " on held-out records"
    return f"Rouge-L {' → '.join(steps)}{on}"


def _bytes(summary: Summary) -> str | None:
    traffic = summary.traffic
    if not traffic.total_bytes:
        return None
    up, down = units.size(traffic.payload_up_bytes), units.size(traffic.payload_down_bytes)
    return f"{up} up and {down} down a device and round"


def _file(summary: Summary) -> str | None:
    stage = summary.stage("compressed")
    if stage is None:
        return None
    checked = "checked" if summary.verified else "not checked"
    return f"{units.size(stage.size_bytes)} file, {checked} in llama.cpp"
