"""Model cards of what runs leave, and of the folders that `prune`, `compress --format`, `apply` and `adapter` write."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.report import units
from edgetune.report.folder_card import Made, write_folder_card
from edgetune.report.grids import Grid

if TYPE_CHECKING:
    from edgetune.core.ledger import Ledger
    from edgetune.installed.base import Base
    from edgetune.measure.divergence import Divergence
    from edgetune.recipe.prepare import Prepared
    from edgetune.run.pruning import Step


def cards_of_run(folder: Path) -> None:
    """Write the cards of a run's model file and of its pruned folder, where there are such.

    Raises:
        OutputError: if one cannot be written.
    """
    from edgetune.report.card import write_card
    from edgetune.report.folder_card import pruned_in
    from edgetune.report.summary import read_summary
    from edgetune.run.names import MODEL, PRUNED

    if (folder / MODEL).exists():
        write_card(folder)
    pruned = pruned_in(read_summary(folder)) if (folder / PRUNED).is_dir() else None
    if pruned is not None:
        write_folder_card(folder / PRUNED, pruned)


def card_of_pruned(folder: Path, prepared: Prepared, steps: Sequence[Step]) -> None:
    """Write the card of what `edgetune prune` left, with what was measured after each of its steps.

    Raises:
        OutputError: if it cannot be written.
    """
    from edgetune.report.folder_card import said_of_pruning
    from edgetune.run.pruned_base import pruned_event

    metric = prepared.scoring.name if prepared.scoring else None
    head = ("Step", "Weights", "Loss", "KL to dense", "Rouge-L", *([metric] if metric else []))
    rows = tuple(
        (
            step.name,
            f"{step.weights:,}",
            units.loss(step.loss),
            units.divergence(step.divergence),
            units.rouge(step.rouge_l),
            *([units.rouge(step.score)] if metric else []),
        )
        for step in steps
    )
    last = steps[-1]
    figures = {"rouge": last.rouge_l, "perplexity": last.perplexity, metric or "": last.score}
    _write(
        folder,
        "pruned",
        prepared,
        steps[0].weights,
        [said_of_pruning(pruned_event(prepared, list(steps), 0.0, ""))],
        quality=Grid(head, rows),
        results={
            name: value
            for name, value in figures.items()
            if name and value is not None and math.isfinite(value)
        },
    )


def card_of_packed(
    folder: Path, kind: str, prepared: Prepared, size: int, far: Divergence, more: Sequence[str] = ()
) -> None:
    """Write the card of what `edgetune compress --format` left.

    Args:
        folder: with the packed layers.
        kind: of the format.
        prepared: the base and the records.
        size: bytes of weights.
        far: from the model before compression, on the held-out records.
        more: lines about its files.

    Raises:
        OutputError: if it cannot be written.
    """
    method = prepared.recipe.compression.name
    head = ("Beside the model before", "KL, responses", "KL, all tokens", "KL, 99.9 %", "Same first choice")
    row = (
        f"{len(prepared.held_out)} records",
        units.divergence(far.response),
        units.divergence(far.every),
        units.divergence(far.rare),
        units.percent(far.top_1),
    )
    facts = [f"Compressed: {kind}, method `{method}`, {units.size(size)} of weights, read back bit for bit"]
    facts += more
    weights = sum(one.numel() for one in prepared.backbone.model.parameters())
    _write(folder, f"compressed ({kind})", prepared, weights, facts, quality=Grid(head, (row,)))


def card_of_applied(folder: Path, name: str, base: Base, ledgers: Sequence[Path], said: str) -> None:
    """Write the card of a folder that `edgetune apply` wrote.

    Args:
        folder: with ledgers on it.
        name: the base, as it was asked for.
        base: the base.
        ledgers: files, the lowest first.
        said: what came of it, one line.

    Raises:
        OutputError: if it cannot be written.
    """
    from edgetune.core.ledger import read_ledger

    write_folder_card(folder, _tuned(name, base, [read_ledger(path) for path in ledgers], f"Applied: {said}"))


def card_of_adapter(folder: Path, name: str, base: Base, ledger: Ledger, said: str) -> None:
    """Write the card of a folder that `edgetune adapter` wrote for peft.

    Args:
        folder: with the adapter.
        name: the base, as it was asked for.
        base: the base.
        ledger: what the adapter is of.
        said: what is in it, one line.

    Raises:
        OutputError: if it cannot be written.
    """
    made = _tuned(name, base, [ledger], f"Adapter: {said}; the base is not in this folder")
    write_folder_card(folder, replace(made, library="peft", tags=(*made.tags, "peft", "lora")))


def _tuned(name: str, base: Base, ledgers: Sequence[Ledger], said: str) -> Made:
    from edgetune.measure.versions import versions
    from edgetune.models.licence import licence_of

    facts = [
        f"Ledger: `{one.method}`, {one.round} rounds, digest `{one.digest}`, for base `{one.base_digest}`"
        for one in ledgers
    ]
    weights = sum(one.numel() for one in base.outline.parameters())
    methods = " + ".join(one.method for one in ledgers)
    return Made(
        f"tuned with {methods}", name, weights, base.digest, licence_of(base.path), _command(), versions(),
        facts=[*facts, said],
    )  # fmt: skip


def _write(
    folder: Path,
    how: str,
    prepared: Prepared,
    weights: int,
    facts: Sequence[str],
    *,
    quality: Grid,
    results: Mapping[str, float] | None = None,
) -> None:
    from edgetune.measure.versions import versions
    from edgetune.models.licence import licence_of

    backbone, recipe = prepared.backbone, prepared.recipe
    made = Made(
        how,
        recipe.model.source,
        weights,
        backbone.digest,
        licence_of(backbone.folder),
        _command(),
        versions(),
        facts=[*facts, f"Data: {len(prepared.held_out):,} records held out; none of them is in this folder"],
        quality=quality,
        results=results or {},
    )
    write_folder_card(folder, made)


def _command() -> str:
    return shlex.join(["edgetune", *sys.argv[1:]])
