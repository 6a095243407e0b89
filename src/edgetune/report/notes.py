"""What a person should know about the records of a run, in sentences."""

from __future__ import annotations

import math

from edgetune.core.compression_events import Allotted, Calibrated, Pruned
from edgetune.core.events import DataPrepared, Privacy, RateFound
from edgetune.core.export_events import ExportPlanned
from edgetune.report import units


def data_notes(found: DataPrepared) -> list[str]:
    """Say what was found in the records; nothing where all is plain.

    Args:
        found: counts and names, from the log or from `recipe.prepare`.

    Returns:
        One sentence a finding, without a full stop.
    """
    said = [
        (found.copies, "{} are left out: their text is held out, or in the server's own sample", "duplicate"),
        (found.cut, "{} are longer than data.max_tokens and lose their end or middle", "record"),
        (found.forgotten, "{} lose their oldest exchanges to fit data.max_tokens", "conversation"),
        (
            found.quoted,
            "{} with the text of a control token: it is encoded as text, not as the token",
            "record",
        ),
        (found.framed, "{} stand as they are, though the chat template would rewrite them", "response"),
        (found.own_ends, "{} brought an end token; every turn ends with one, its template's", "response"),
        (
            found.unknown,
            f"{{}} with characters that the tokenizer does not know: {found.characters}",
            "record",
        ),
    ]
    notes = list(found.notes)
    notes += [text.format(f"{count:,} {name}{'s' * (count != 1)}") for count, text, name in said if count]
    if not found.ends:
        notes.append("no token ends an answer with this tokenizer: answers end at evaluation.max_new_tokens")
    return notes


def words_note(found: DataPrepared | None) -> str | None:
    """Say what Rouge-L counts, or None where the log does not."""
    return f"Rouge-L counts {found.words}" if found else None


def export_notes(planned: ExportPlanned) -> list[str]:
    """Say what the file will be, and what it says otherwise than the model's own files.

    Args:
        planned: what was found out before the run.

    Returns:
        One sentence a finding, without a full stop; the first is always there.
    """
    of = "" if planned.texts >= planned.texts_in_all else f" of {planned.texts_in_all:,}"
    notes = [
        f"file: {planned.architecture}, {planned.file_type}, {units.size(planned.size_bytes)} and the vocabulary; "
        f"llama.cpp makes the same tokens of {planned.texts:,}{of} texts"
    ]
    if planned.composed:
        notes.append(
            f"{planned.composed:,} texts have decomposed characters: the model reads them composed (NFC), and "
            "llama.cpp must be given them so"
        )
    return notes + [f"file: {note}" for note in planned.notes]


def calibration_note(found: Calibrated) -> str:
    """Say what a compression is calibrated on, and whether that is too little.

    Args:
        found: as the log says it.
    """
    few = f", fewer than the {found.widest:,} inputs of the widest layer: give more text with --calibration"
    return (
        f"calibration: {found.tokens:,} tokens in {found.sequences:,} sequences of {found.source}"
        f"{few if found.few else ''}"
    )


def allotted_note(found: Allotted) -> str:
    """Say how a file is kept to its size.

    Args:
        found: as the log says it.
    """
    grids = ", ".join(f"{count} {grid}" for grid, count in found.grids.items())
    return f"size: {found.size} are {found.budget_bytes:,} bytes; matrices: {grids}"


def pruned_note(found: Pruned) -> str:
    """Say what was pruned, and how far the predictions are from those before after every step.

    Args:
        found: as the log says it.
    """
    gone = 1 - found.weights / found.weights_before if found.weights_before else 0.0
    how = {"uniform": "alike in every layer", "per_layer": "layer by layer", "modules": "whole sub-modules"}
    steps = ", ".join(f"{units.divergence(kl)} {step}" for step, kl in found.kl.items())
    base = f"; the base from here on is {found.base_digest[:12]}" if found.base_digest else ""
    return (
        f"pruned: {found.weights:,} of {found.weights_before:,} weights stay ({gone:.1%} removed, "
        f"{how.get(found.width, found.width)}, importance {found.importance}); KL on responses to the model before: "
        f"{steps}{base}"
    )


def rate_note(found: RateFound) -> str:
    """Say which learning rate and radius a run takes that names none, and what finding them cost.

    Args:
        found: as the log says it.
    """
    eps = "" if found.eps is None else f", eps {found.eps:.2g}"
    origin = {"cache": " (cached)", "log": " (at the first start of this run)"}.get(found.origin, "")
    unclear = (
        "" if found.clear else "; no radius is clear of rounding noise: a larger method.batch_size helps"
    )
    return (
        f"learning rate {found.learning_rate:.2g}{eps}: found in {found.seconds:.1f} s by edgetune suggest's quick "
        f"range test{origin}{unclear}"
    )


def privacy_note(spent: Privacy) -> str:
    """Say what a private run spends, and what it takes for granted.

    Args:
        spent: as the log says it.
    """
    if not math.isfinite(spent.epsilon):
        return f"privacy: no noise, so that no {spent.unit} is hidden"
    sampled = f", each with probability {spent.sampling_rate:.2g} at most" if spent.sampling_rate < 1 else ""
    who = "the server and whoever reads the result" if spent.unit == "record" else "whoever reads the result"
    return (
        f"privacy: every {spent.unit} is hidden from {who} with epsilon {spent.epsilon:.3g} at delta "
        f"{spent.delta:g} (add or remove one; at most {spent.releases:,} noisy sums{sampled}, noise multiplier "
        f"{spent.noise_multiplier:.3g}, clip {spent.clip:g})"
    )
