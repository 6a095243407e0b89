"""All points of a step in one walk of the model; and the questions that a model must answer before it is relied on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from edgetune.core.batch import Batch, mean_losses, response_loss, response_losses
from edgetune.core.blank import is_blank
from edgetune.core.errors import ModelError
from edgetune.core.perturbation import NotStackableError, Perturbation

PROBE = (3, 7)
"""Records and tokens of the batch that questions are asked with: no length that occurs is a multiple of twice three."""
RADIUS = 1e-2
"""Perturbation radius of the comparison; large, so that points that change places differ by far more than rounding."""


class Walked(Protocol):
    """What a walk needs of a handle."""

    perturbation: Perturbation | None

    def perturbed(self, seed: int, scale: float) -> AbstractContextManager[None]:
        """While entered, forward passes compute with `w + scale * z(seed)`."""
        ...

    def hiding(self, names: Iterable[str]) -> AbstractContextManager[None]:
        """While entered, the parameters themselves hold NaN; readers see what they held."""
        ...


def one_walk(
    tuned: Walked, model: nn.Module, batch: Batch, now: Perturbation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Evaluate the response loss of every record at several points, every module computing for all of them.

        L_b(w + s_1 z_1), L_b(w + s_2 z_2), ...   on copies of the batch, one after the other

    Args:
        tuned: the handle.
        model: its model.
        batch: its records times the copies are the points times the records of a point.
        now: the points.

    Returns:
        Sums [copies, records of the batch] and numbers of response tokens [records of the batch].

    Raises:
        NotStackableError: if a module cannot tell the points apart.
    Cost: one walk; the activations of all copies.
    """
    records = len(batch.input_ids)
    copies = len(now.scales) * now.records // records
    said = (batch.input_ids, batch.attention_mask, batch.labels)
    ids, mask, labels = (torch.cat([one] * copies) for one in said)
    all_of = Batch(ids, mask, labels)
    before, tuned.perturbation = tuned.perturbation, now
    try:
        summed, counts = response_losses(model, all_of)
    finally:
        tuned.perturbation = before
    return summed.view(copies, records), counts[:records]


def probe_batch(model: nn.Module) -> Batch | None:
    """Return a small fixed batch for a language model, or None for any other module."""
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    if embeddings is None:
        return None
    ids = torch.arange(PROBE[0] * PROBE[1], device=embeddings.weight.device).view(PROBE) % len(
        embeddings.weight
    )
    return Batch(ids, torch.ones_like(ids), ids)


def refuse_direct_reads(tuned: Walked, model: nn.Module, names: Sequence[str], batch: Batch) -> None:
    """Refuse a model in which a module reads another one's parameters itself: they would not be perturbed.

    Raises:
        ModelError: naming the parameters.
    Cost: two small forward passes; one more a parameter to name them.
    """

    def missed(hidden: Sequence[str]) -> bool:
        with tuned.hiding(hidden), tuned.perturbed(0, 0.0):
            return math.isnan(float(response_loss(model, batch)))

    held = not any(map(is_blank, model.parameters()))  # else the model gives NaN with or without this handle
    if not missed(names) or (held and math.isnan(float(response_loss(model, batch)))):
        return
    found = [name for name in names if missed([name])] if held else []
    raise ModelError(
        "a module of this architecture reads parameters of another one itself, so they cannot be perturbed",
        where=", ".join(found[:3]) or type(model).__name__,
        hint="tune LoRA on it",
    )


def stacks(tuned: Walked, model: nn.Module, batch: Batch) -> bool:
    """Say whether one walk gives the losses of two: a model may mix its records.

    The batch and the radius are fixed, so that the answer is the model's and not the data's.
    Cost: three small forward passes.
    """
    scales, alone = (RADIUS, -RADIUS), []
    for scale in scales:
        with tuned.perturbed(0, scale):
            alone.append(float(response_loss(model, batch)))
    try:
        found = mean_losses(*one_walk(tuned, model, batch, Perturbation(0, scales, len(batch.input_ids))))
    except NotStackableError:
        return False
    allowed = 1e-2 * abs(alone[0] - alone[1])
    return all(abs(one - other) <= allowed for one, other in zip(found, alone, strict=True))
