"""The model card of a run's file: what it was made from, how, with what result, and under which licence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from edgetune.core.files import write_text_atomic
from edgetune.report import units
from edgetune.report.grids import Grid, divergences, stages
from edgetune.report.summary import Summary, read_summary

CARD, LIBRARY = "README.md", "edgetune"
OURS = f"library_name: {LIBRARY}"
"""In the metadata of a card that was written here."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""How the Hub names a model; anything else is a folder or a file of this machine, and no link."""
LICENCES = {"apache 2.0": "apache-2.0", "mit license": "mit"}
"""Names that GGUF files bear, to the identifiers of a card."""
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]{1,38}")
MEASURED = ("llama.cpp", "compressed", "tuned")
"""Stages whose figures a card gives as the model's, the first that there is."""


def card(summary: Summary) -> str:
    """Return the card of a run, Markdown with the metadata of a Hugging Face model card.

    Nothing of the data is in it: neither records nor answers, numbers only. What was not measured is not said.

    Args:
        summary: a finished run.
    Source: huggingface.co/docs/hub/model-cards; written by `huggingface_hub`.
    """
    parts = [_title(summary), *_sections(summary)]
    return f"---\n{metadata(summary).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def write_card(folder: Path) -> Path | None:
    """Write a run's card beside its model file, atomically.

    Returns:
        The file; None where a README of somebody else is, which stays.

    Raises:
        DataError: if there is no readable event log.
        OutputError: if it cannot be written.
    """
    path = folder / CARD
    if somebody_elses(path):
        return None
    write_text_atomic(path, card(read_summary(folder)))
    return path


def metadata(summary: Summary) -> ModelCardData:
    """Return the metadata of a run's card.

    The licence is the base's, `unknown` if its files name none: nobody but its maker can say more.
    """
    said = summary.start.licence if summary.start else ""
    tags = ["edgetune", "federated-learning", *(["gguf"] if summary.verified else [])]
    return front(_base(summary), said, _name(summary), tags, _results(summary))


def front(
    base: str, licence: str, name: str, tags: list[str], results: list[EvalResult], library: str = LIBRARY
) -> ModelCardData:
    """Return metadata of a card; a base that is no model of the Hub is not named, an unknown licence is `unknown`."""
    known = LICENCES.get(licence.lower(), licence.lower())
    named = known if IDENTIFIER.fullmatch(known) else "other" if licence else "unknown"
    found: dict[str, object] = {
        "license": named,
        "license_name": licence if named == "other" else None,
        "base_model": base if HUB_ID.fullmatch(base) and not Path(base).exists() else None,
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": tags,
        "model_name": name,
        "eval_results": results or None,
    }
    return ModelCardData(**{key: value for key, value in found.items() if value is not None})  # type: ignore[arg-type]


def result(name: str, value: float) -> EvalResult:
    """Return a figure on held-out records as a card states it."""
    return EvalResult(
        task_type="text-generation",
        dataset_type="private",
        dataset_name="held-out records of the run",
        metric_type=name,
        metric_name="Rouge-L F1" if name == "rouge" else name,
        metric_value=round(value, 4),
    )


def somebody_elses(path: Path) -> bool:
    """Return whether there is a README that no command of this package has written."""
    return path.exists() and OURS not in path.read_text("utf-8", errors="replace").partition("\n---\n")[0]


def _results(summary: Summary) -> list[EvalResult]:
    stage = next((one for name in MEASURED if (one := summary.stage(name))), None)
    if stage is None:
        return []
    values = {"rouge": stage.rouge_l, "perplexity": stage.perplexity, stage.metric or "": stage.score}
    return [
        result(name, value)
        for name, value in values.items()
        if name and value is not None and abs(value) < float("inf")
    ]


def _base(summary: Summary) -> str:
    model = summary.start.config.get("model", {}) if summary.start else {}
    return str(model.get("source", "")) if isinstance(model, dict) else ""


def _name(summary: Summary) -> str:
    base = Path(_base(summary)).name or "model"
    return f"{base}, tuned with {summary.method}" if summary.rounds else base


def _title(summary: Summary) -> str:
    return f"# {code(_name(summary))}"


def _sections(summary: Summary) -> Iterator[str]:
    yield "\n".join(f"- {line}" for line in _facts(summary))
    for title, grid in (("Quality", stages(summary)), ("Beside the tuned model", divergences(summary))):
        if grid.rows:
            yield f"## {title}\n\nMeasured on held-out records, which no device had.\n\n{table(grid)}"
    if summary.start is not None:
        yield f"## To do it again\n\n```\n{summary.start.command.replace('`', '')}\n```"
        versions = ", ".join(f"{name} {version}" for name, version in summary.start.versions.items())
        yield f"With {versions}."


def _facts(summary: Summary) -> Iterator[str]:
    start, data, planned = summary.start, summary.data, summary.planned
    if start is not None:
        yield f"Base: {code(_base(summary))}, {start.weights:,} weights, digest {code(start.base_digest)}"
        yield f"Licence of the base: {code(start.licence) if start.licence else 'not named in its files'}"
    if data is not None:
        yield (
            f"Data: {data.trained:,} records {_where(summary)}, prompt {code(data.prompt)}; "
            f"{data.held_out:,} held out, {data.calibration:,} of the server's own"
        )
    if summary.rounds:
        traffic = summary.traffic
        yield (
            f"Tuning: {code(str(summary.method))}, {len(summary.rounds)} rounds, {units.size(traffic.total_bytes)} of "
            f"payload in all"
        )
        yield f"State after the last round: {code(summary.rounds[-1].digest)}"
    spent = summary.privacy
    if spent is None:
        yield "Privacy: no differential privacy was asked for"
    else:
        yield f"Privacy: epsilon {spent.epsilon:.3g}, delta {spent.delta:.1g}, a {spent.unit} at a time"
    if planned is not None:
        method = start.config.get("compression", {}).get("name") if start is not None else None
        size = (summary.verified and summary.verified.size_bytes) or planned.size_bytes
        yield f"File: {planned.architecture}, mostly {planned.file_type} ({method}), {units.size(size)}"
    if summary.calibration is not None:
        yield f"Calibrated on {summary.calibration.tokens:,} tokens"


def _where(summary: Summary) -> str:
    """Say where the records were."""
    if summary.hosts is not None:
        return "on their devices, which they never left"
    return "on devices that this run simulated" if summary.rounds else "to train on"


def table(grid: Grid) -> str:
    """Return a table in Markdown."""
    rows = [grid.head, ["---", *["---:"] * (len(grid.head) - 1)], *grid.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def code(text: str) -> str:
    """Return a name that may hold anything as code in one line."""
    return f"`{' '.join(text.replace('`', '').split())}`"
