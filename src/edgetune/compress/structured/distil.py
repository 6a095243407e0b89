"""Recovery by self-distillation: the pruned model learns to say what its dense parent says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from edgetune.core.batch import IGNORED, Batch
from edgetune.core.errors import DataError, DivergenceError
from edgetune.core.heads import Apart, mean_by_chunks, positions
from edgetune.core.jensen_shannon import JensenShannon
from edgetune.core.keys import stream
from edgetune.core.progress import Progress, silent

FORWARD = JensenShannon(0.0)
"""What recovery minimises: the parent's modes are all covered."""


def divergence(
    student: nn.Module, teacher: nn.Module, batch: Batch, *, all_tokens: bool = False
) -> torch.Tensor:
    """Return the mean forward divergence of a student from its teacher, float32 [] in nats.

        KL = mean_t sum_v p_t(v) (log p_t(v) - log q_t(v)),   p teacher, q student

    Args:
        student, teacher: causal language models of one vocabulary; the teacher gets no gradient.
        batch: token ids with a mask and labels.
        all_tokens: every real position that has a next token; else those whose next token is in a response.
    Cost: a forward pass of both, and copies of `core.heads.LOGITS_AT_ONCE` logits.
    Source: knowledge distillation with the teacher's own distribution (arXiv 1503.02531), at a temperature of 1.
    """
    batch = batch.to(next(student.parameters()).device)
    where = positions(batch, all_tokens=all_tokens)
    parent, pruned = Apart(), Apart()
    with torch.no_grad():
        said = parent.rows(teacher, batch, where)

    def each(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = parent.logits(teacher, theirs).log_softmax(-1)
        return FORWARD(pruned.logits(student, ours).log_softmax(-1), wanted)

    rows = (pruned.rows(student, batch, where), said)
    return mean_by_chunks(each, rows, pruned.width, max(1, len(said)))


@torch.no_grad()
def mean_divergence(
    student: nn.Module, teacher: nn.Module, batches: Iterable[Batch], *, all_tokens: bool = False
) -> float:
    """Return the mean divergence over all positions of all batches, nats; NaN where there is none."""
    total, count = 0.0, 0
    for batch in batches:
        real = batch.attention_mask[:, 1:].bool()
        some = int((real if all_tokens else real & (batch.labels[:, 1:] != IGNORED)).sum())
        total += float(divergence(student, teacher, batch, all_tokens=all_tokens)) * some
        count += some
    return total / count if count else math.nan


def distil(
    student: nn.Module,
    teacher: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Batch],
    *,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    all_tokens: bool = False,
    progress: Progress = silent,
) -> list[float]:
    """Train some parameters of a pruned model towards the outputs of its dense parent, in place.

        AdamW(0.9, 0.999) without decay, gradients of norm 1; the rate rises over a tenth, then falls as a cosine

    Args:
        student: the pruned model.
        teacher: the dense one; left as it is.
        parameters: what is trained: all weights, or those of an adapter.
        batches: to draw from; each pass takes all of them in an order of its own.
        steps: number of batches, at least 1.
        learning_rate: the highest, positive.
        seed: of the orders.
        all_tokens: as in `divergence`.
        progress: told of every step.

    Returns:
        The divergence before each step.

    Raises:
        DataError: no batches.
        DivergenceError: the divergence is no longer finite.
    Cost: three passes of the student and one of the teacher a step; two float32 moments a trained weight.
    """
    if not batches:
        raise DataError("recovery needs text to train on", hint="--recover none does without")
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    wanted, found, order = [one.requires_grad for one in parameters], list[float](), list[int]()
    for one in parameters:
        one.requires_grad_(True)
    try:
        for step in range(steps):
            if not order:
                order = stream(seed, "distil", step).permutation(len(batches)).tolist()
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * rate(step, steps)
            loss = divergence(student, teacher, batches[order.pop()], all_tokens=all_tokens)
            found.append(float(loss.detach()))
            if not math.isfinite(found[-1]):
                hint = "lower --lr, or recover with --recover none"
                raise DivergenceError(f"the divergence is {found[-1]} at step {step}", hint=hint)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            progress("recovering: steps", step + 1, steps)
    finally:
        optimiser.zero_grad()
        for one, was in zip(parameters, wanted, strict=True):
            one.requires_grad_(was)
    return found


def rate(step: int, steps: int) -> float:
    """Return the share of the highest rate at a step: it rises over a tenth, then falls as a cosine."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))
