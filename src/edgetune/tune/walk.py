"""Both points of a step in one walk of the model; and the questions that a model must answer before it is relied on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from edgetune.core.batch import Batch, mean_losses, response_loss, response_losses
from edgetune.core.errors import ModelError
from edgetune.tune.readers import NotStackableError, Perturbation

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
    tuned: Walked, model: nn.Module, batch: Batch, seed: int, scales: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Evaluate the response loss of every record at two points, every module computing for both.

        L_b(w + s_1 z), L_b(w + s_2 z)   on the batch and its copy

    Returns:
        Sums [2, records] and numbers of response tokens [records].

    Raises:
        NotStackableError: if a module cannot tell the halves apart.
    Cost: one walk; the activations of twice the batch.
    """
    records = len(batch.input_ids)
    said = (batch.input_ids, batch.attention_mask, batch.labels)
    ids, mask, labels = (torch.cat([one, one]) for one in said)
    twice = Batch(ids, mask, labels)
    tuned.perturbation = Perturbation(seed, tuple(scales), records)
    try:
        summed, counts = response_losses(model, twice)
    finally:
        tuned.perturbation = None
    return summed.view(2, records), counts[:records]


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

    if not missed(names) or math.isnan(float(response_loss(model, batch))):
        return
    found = [name for name in names if missed([name])]
    raise ModelError(
        "a module of this architecture reads parameters of another one itself, so they cannot be perturbed",
        where=", ".join(found[:3]),
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
        found = mean_losses(*one_walk(tuned, model, batch, 0, scales))
    except NotStackableError:
        return False
    allowed = 1e-2 * abs(alone[0] - alone[1])
    return all(abs(one - other) <= allowed for one, other in zip(found, alone, strict=True))
