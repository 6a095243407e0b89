"""Why something did not happen, as other hosts say it: short, printable, and of many kinds only the first few."""

from __future__ import annotations

from collections.abc import Mapping

REASONS, LONGEST, OTHER = 20, 120, "other reasons"
"""Reasons that are told apart, and characters of one: a device may say anything."""


def shortened(reason: str, longest: int = LONGEST) -> str:
    """Return a reason as one short line without control characters, which would be a terminal's commands."""
    line = "".join(one if one.isprintable() else "?" for one in " ".join(reason.split()))
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def most_common(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts by reason, the commonest first, and those beyond the first few as one."""
    named = ((why, count) for why, count in counts.items() if why != OTHER)
    ordered = sorted(named, key=lambda one: (-one[1], one[0]))
    rest = counts.get(OTHER, 0) + sum(count for _, count in ordered[REASONS:])
    return dict(ordered[:REASONS]) | ({OTHER: rest} if rest else {})


def counted_reasons(counts: Mapping[str, int], most: int = 3) -> str:
    """Return `3 offline, 1 late`, with the reasons beyond the first few summed up as `2 other`."""
    ordered = list(most_common(counts).items())
    rest = sum(count for _, count in ordered[most:])
    said = [f"{count:,} {why}" for why, count in ordered[:most]]
    return ", ".join(said + ([f"{rest:,} other"] if rest else []))


def numbers(devices: list[int], most: int = 8) -> str:
    """Return numbers of devices as `0 1 2`, and of many as `0 1 2 ... (1,000)`."""
    few = " ".join(map(str, devices[:most]))
    return few if len(devices) <= most else f"{few} ... ({len(devices):,})"
