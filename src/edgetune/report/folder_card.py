"""The card of a model folder that one command wrote: what it was made from and how, and under which licence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult

from edgetune.core.compression_events import Pruned
from edgetune.core.files import write_text_atomic
from edgetune.report import units
from edgetune.report.card import CARD, LIBRARY, code, front, result, somebody_elses, table
from edgetune.report.grids import Grid
from edgetune.report.summary import Summary

NOTHING = Grid((), ())


@dataclass(frozen=True, slots=True)
class Made:
    """How a model folder came to be.

    Args:
        how: what was done to the base, in a word or two behind its name.
        base: the base, as it was asked for.
        weights: parameters of the base.
        base_digest: of the base; empty if not known.
        licence: what the base's files say; empty if nothing.
        command: what wrote the folder.
        versions: of this package and what it stands on.
        facts: lines of Markdown; no records, no answers.
        quality: what was measured on held-out records.
        results: the same of what the folder holds, by the names of metrics.
        library: what opens the folder, as the Hub calls it.
        tags: of the metadata.
    """

    how: str
    base: str
    weights: int
    base_digest: str
    licence: str
    command: str
    versions: Mapping[str, str]
    facts: Sequence[str] = ()
    quality: Grid = NOTHING
    results: Mapping[str, float] = field(default_factory=dict)
    library: str = LIBRARY
    tags: Sequence[str] = (LIBRARY,)


def folder_card(made: Made) -> str:
    """Return the card, Markdown with the metadata of a Hugging Face model card.

    Source: as `report.card.card`.
    """
    name = f"{Path(made.base).name or 'model'}, {made.how}"
    results: list[EvalResult] = [result(metric, value) for metric, value in made.results.items()]
    data = front(made.base, made.licence, name, list(made.tags), results, made.library)
    digest = f", digest {code(made.base_digest)}" if made.base_digest else ""
    facts = [
        f"Base: {code(made.base)}, {made.weights:,} weights{digest}",
        f"Licence of the base: {code(made.licence) if made.licence else 'not named in its files'}",
        *made.facts,
    ]
    parts = [f"# {code(name)}", "\n".join(f"- {line}" for line in facts)]
    if made.quality.rows:
        parts.append(f"## Quality\n\nMeasured on held-out records.\n\n{table(made.quality)}")
    parts.append(f"## To do it again\n\n```\n{made.command.replace('`', '')}\n```")
    parts.append(f"With {', '.join(f'{name} {version}' for name, version in made.versions.items())}.")
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def write_folder_card(folder: Path, made: Made) -> Path | None:
    """Write a model folder's card, atomically.

    Returns:
        The file; None where a README of somebody else is, which stays.

    Raises:
        OutputError: if it cannot be written.
    """
    path = folder / CARD
    if somebody_elses(path):
        return None
    write_text_atomic(path, folder_card(made))
    return path


def pruned_in(summary: Summary) -> Made | None:
    """Return how the pruned folder of a run came to be; None for a run that pruned nothing."""
    found, start = summary.pruned, summary.start
    if found is None or start is None:
        return None
    model = start.config.get("model", {})
    base = str(model.get("source", "")) if isinstance(model, dict) else ""
    head = ("Step", "Loss", "KL to dense")
    rows = tuple(
        (name, units.loss(loss), units.divergence(found.kl.get(name))) for name, loss in found.loss.items()
    )
    later = summary.rounds and not found.base_digest
    return Made(
        f"tuned with {summary.method}, pruned" if later else "pruned",
        base,
        found.weights_before,
        "" if found.base_digest else start.base_digest,  # a run names the pruned base then
        start.licence,
        start.command,
        start.versions,
        facts=[said_of_pruning(found)],
        quality=Grid(head, rows),
    )


def said_of_pruning(found: Pruned) -> str:
    """Return the line of a card about what was taken out."""
    gone = 1 - found.weights / found.weights_before
    recovered = "" if found.recover == "none" else f", recovered by {code(found.recover)}"
    return (
        f"Pruned: {found.weights:,} weights stay ({gone:.1%} removed), ratio {found.ratio:g}, width "
        f"{code(found.width)}, importance {code(found.importance)}{recovered}"
    )
