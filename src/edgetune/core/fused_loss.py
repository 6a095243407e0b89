"""The loss on responses where gradients of it are taken: logits of a few positions at a time, head and loss fused."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from edgetune.core.batch import Batch, Objective, response_loss
from edgetune.core.heads import Apart, mean_by_chunks, positions

_APART: WeakKeyDictionary[nn.Module, Apart] = WeakKeyDictionary()
"""What was found out of models, as long as they live."""


def differentiated(objective: Objective) -> Objective:
    """Return an objective as gradients are taken of it: that of responses in chunks, any other as it is."""
    return fused_response_loss if objective is response_loss else objective


def fused_response_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean next-token cross-entropy over all response tokens of the batch, float32 [] in nats, for a backward pass.

        e_t = (softmax(H h_t) - x_t+1) / N:   dL/dh_t = H^T e_t, dL/dH = sum_t e_t h_t^T, while logits of t are there

    What `response_loss` is, but for the order of additions, and its gradients; without gradients, and of a model whose
    head cannot be called by itself (`core.heads.Apart`), `response_loss`.

    Args:
        model: a causal language model.
        batch: token ids with labels.

    Returns:
        A scalar that can be passed backward through once.

    Cost: a forward pass, the head's at response positions alone, and the part of the backward pass that is the head's;
        two copies of `core.heads.LOGITS_AT_ONCE` logits.
    Source: `core.heads.mean_by_chunks`.
    """
    where = positions(batch)
    apart = _APART.setdefault(model, Apart())
    if not (torch.is_grad_enabled() and len(where[0]) and apart.comes_apart(model, batch)):
        return response_loss(model, batch)

    def losses(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _CrossEntropy.apply(apart.logits(model, rows), labels)  # type: ignore[no-untyped-call]
        return found

    labels = batch.labels[:, 1:][where]
    return mean_by_chunks(losses, (apart.rows(model, batch, where), labels), apart.width, len(labels))


class _CrossEntropy(torch.autograd.Function):
    """The cross-entropy of every row, float [tokens]; torch's own, in a backward pass of one copy instead of three."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return `- log softmax(logits)` at the labels."""
        ctx.logarithms, ctx.labels = logits.log_softmax(-1), labels.unsqueeze(1)
        found: torch.Tensor = -ctx.logarithms.gather(1, ctx.labels)[:, 0]
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return `(softmax(logits) - one at the label) error`, where the logarithms were: once."""
        found, ctx.logarithms = ctx.logarithms.exp_(), None
        return found.scatter_add_(1, ctx.labels, -torch.ones_like(found[:, :1])).mul_(
            error.unsqueeze(1)
        ), None
