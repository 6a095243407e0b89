"""`report.html`: one self-contained file that says what a run did, from its event log alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from edgetune.core.errors import MissingExtraError
from edgetune.core.files import write_text_atomic
from edgetune.report import grids, host_grids, units
from edgetune.report.host_grids import hosts_notes
from edgetune.report.notes import (
    allotted_note,
    calibration_note,
    data_notes,
    export_notes,
    privacy_note,
    pruned_note,
    words_note,
)
from edgetune.report.page import PAGE
from edgetune.report.plots import plots
from edgetune.report.rivals import Rival
from edgetune.report.style import CSS
from edgetune.report.summary import Summary, read_summary
from edgetune.report.svg import Plot
from edgetune.report.table import compensation, forgetting, verification
from edgetune.report.verdict import points, trouble

FEW, MANY = 3, 5
"""Answers side by side at most, on a screen of middling width and on a wide one."""
SHOWN = 12
"""Devices whose table is not folded away."""


def write_report(folder: Path, rivals: Sequence[Rival] = ()) -> Path:
    """Write `report.html` beside the event log, atomically.

    Args:
        folder: where `events.jsonl` is; the run may be still going, killed or failed.
        rivals: files of other tools that stand beside the run's own.

    Returns:
        Path of the file; without matplotlib it holds tables only and says which extra draws the figures.

    Raises:
        DataError: if there is no readable event log.
        OutputError: if the file cannot be written.
    """
    path = folder / "report.html"
    write_text_atomic(path, render(read_summary(folder), rivals))
    return path


def render(summary: Summary, rivals: Sequence[Rival] = ()) -> str:
    """Return the page of a run.

    Args:
        summary: a run, complete or not.
        rivals: as in `write_report`.

    Returns:
        HTML that loads nothing and runs no script; text from the log is escaped.
    """
    drawn, no_plots = _drawn(summary, rivals)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(PAGE)
    return page.render(
        css=CSS,
        run=summary,
        start=summary.start,
        name=summary.method or "method unknown",
        command=summary.command,
        trouble=trouble(summary),
        verdict=[part[:1].upper() + part[1:] for part in points(summary)],
        facts=_facts(summary),
        drawn=drawn,
        no_plots=no_plots,
        stages=grids.stages(summary),
        divergences=grids.divergences(summary),
        notes=[note for note in _notes(summary) if note],
        traffic=grids.traffic(summary),
        total=_total(summary),
        rounds=grids.rounds(summary),
        devices=host_grids.devices(summary),
        few_devices=len(summary.hosts.devices) <= SHOWN if summary.hosts else True,
        hosts=[f"{note[:1].upper()}{note[1:]}." for note in hosts_notes(summary.hosts)],
        layers=grids.layers(summary),
        samples=_samples(summary),
        digest=summary.rounds[-1] if summary.rounds else None,
        config=list(_settings(summary.start.config)) if summary.start else [],
    )


def _notes(summary: Summary) -> list[str | None]:
    found = calibration_note(summary.calibration) if summary.calibration else None
    size = allotted_note(summary.allotted) if summary.allotted else None
    return [
        *_about_data(summary),
        pruned_note(summary.pruned) if summary.pruned else None,
        found,
        size,
        forgetting(summary),
        compensation(summary),
        verification(summary),
    ]


def _about_data(summary: Summary) -> list[str | None]:
    return [
        words_note(summary.data),
        *(data_notes(summary.data) if summary.data else []),
        *([privacy_note(summary.privacy)] if summary.privacy else []),
        *(export_notes(summary.planned) if summary.planned else []),
    ]


def _drawn(summary: Summary, rivals: Sequence[Rival]) -> tuple[dict[str, Plot], str | None]:
    try:
        return {plot.name: plot for plot in plots(summary, rivals)}, None
    except MissingExtraError as error:
        return {}, f"There are no figures in this report: {error}."


def _facts(summary: Summary) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = [("Status", summary.status)]
    if summary.start:
        facts += [
            ("Method", summary.start.method),
            ("Weights", f"{summary.start.weights:,}"),
            ("Seed", str(summary.start.seed)),
        ]
    if summary.rounds:
        facts.append(("Rounds", str(len(summary.rounds))))
        facts.append(("Devices a round", str(max(len(done.devices) for done in summary.rounds))))
    if summary.resumed:
        facts.append(("Taken up again", "once" if summary.resumed == 1 else f"{summary.resumed} times"))
    dropped = sum(done.dropped for done in summary.rounds)
    if dropped:
        facts.append(("Steps dropped, loss not finite", str(dropped)))
    return [*facts, ("Time", units.duration(summary.seconds))]


def _total(summary: Summary) -> str:
    traffic = summary.traffic
    rounds, devices = _counted(traffic.rounds, "round"), _counted(traffic.devices_per_round, "device")
    return f"Whole run, both ways: {units.size(traffic.total_bytes)} in {rounds} with {devices} each."


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _samples(summary: Summary) -> list[dict[str, Any]]:
    prompts: dict[str, dict[str, Any]] = {}
    for sample in summary.samples:
        new = {"prompt": sample.prompt, "expected": sample.expected, "answers": []}
        prompts.setdefault(sample.prompt, new)["answers"].append((sample.stage, sample.answer))
    for shown in prompts.values():
        cards = 1 + len(shown["answers"])
        shown |= {"few": _columns(cards, FEW), "many": _columns(cards, MANY)}
    return list(prompts.values())


def _columns(cards: int, most: int) -> int:
    """Return how many cards stand in a row, so that rows are even and none holds one card unless all do."""
    columns = -(-cards // -(-cards // most))
    while columns > 1 and cards % columns == 1:
        columns -= 1
    return columns


def _settings(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a nested configuration as dotted names and JSON values."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)
