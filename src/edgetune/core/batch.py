"""A batch of encoded records and the loss on their responses: what estimators and evaluation share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from edgetune.core.errors import ConfigError

LOGITS_AT_ONCE = 1 << 20
"""Logits that the cross-entropy copies at a time; all of them at once would be most of the memory of a small batch."""
IGNORED = -100
"""Label of a position that carries no loss (prompt and padding)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded token ids.

    Args:
        input_ids: int64 [batch, length].
        attention_mask: int64 [batch, length], 1 on real tokens.
        labels: int64 [batch, length]; the token itself on response positions, -100 elsewhere.
        expected: mean number of records where each is in a batch by chance; 0 where a batch is as large as was meant.
        advantages: float32 [batch], how much better a response is than was to be expected; None where nobody scores it.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    expected: int = 0
    advantages: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        ids, mask, labels = (one.to(device) for one in (self.input_ids, self.attention_mask, self.labels))
        scored = None if self.advantages is None else self.advantages.to(device)
        return Batch(ids, mask, labels, self.expected, scored)

    @property
    def response_tokens(self) -> int:
        """Number of positions that carry a loss: what a mean over this batch is a mean of."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def split(self, size: int) -> list[Batch]:
        """Return micro-batches of at most `size` records, in order, each without the padding it does not need."""
        parts = []
        for first in range(0, len(self.input_ids), size):
            rows = slice(first, first + size)
            length = max(1, int(self.attention_mask[rows].sum(dim=1).max()))
            parts.append(
                Batch(
                    self.input_ids[rows, :length],
                    self.attention_mask[rows, :length],
                    self.labels[rows, :length],
                    advantages=None if self.advantages is None else self.advantages[rows],
                )
            )
        return parts


Objective = Callable[[nn.Module, Batch], torch.Tensor]
"""A scalar to minimise, float32 [], of a causal language model on a batch: a mean over its response tokens, or over its
records if it has a true attribute `per_record`."""

RecordLosses = Callable[[nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]]
"""Summed losses float32 [batch] and what they are sums of, int64 [batch], as `response_losses`."""


def weight_of(objective: Objective, batch: Batch) -> int:
    """Return how many things an objective averages over in a batch: its share of a mean over several batches."""
    return len(batch.input_ids) if getattr(objective, "per_record", False) else batch.response_tokens


def response_losses(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the next-token cross-entropy over each record's response.

        loss_b = - sum_{t in response} log p(x_t | x_<t)

    The model is asked for the logits of positions that some record needs, if it can leave out the others.

    Returns:
        (float32 [batch] summed losses, int64 [batch] numbers of response tokens).
    Cost: one forward pass; beside the logits, two copies of LOGITS_AT_ONCE of them.
    """
    hidden_labels = batch.labels[:, 1:]
    said = hidden_labels != IGNORED
    rows, columns = torch.nonzero(said, as_tuple=True)
    labels = hidden_labels[rows, columns]
    needed, kind = torch.nonzero(said.any(dim=0))[:, 0], cast(object, type(model))
    asked = {"logits_to_keep": needed} if _leaves_out(kind) else {}
    logits = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **asked
    ).logits
    if asked:
        columns = torch.searchsorted(needed, columns)
    each = max(1, LOGITS_AT_ONCE // logits.shape[-1])
    parts = [
        functional.cross_entropy(logits[row, column].float(), label, reduction="none")
        for row, column, label in zip(
            *(torch.split(one, each) for one in (rows, columns, labels)), strict=True
        )
    ]
    return by_record(torch.cat(parts), rows, said), said.sum(dim=1)


def by_record(losses: torch.Tensor, rows: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """Sum losses float32 [tokens], those of the positions `said` [batch, length] in order, by record."""
    if losses.is_cuda:  # index_add_ adds in another order every time there
        return losses.new_zeros(said.shape).masked_scatter(said, losses).sum(dim=1)
    return torch.zeros(len(said), dtype=torch.float32, device=losses.device).index_add_(0, rows, losses)


@cache
def _leaves_out(kind: object) -> bool:
    """Say whether such a model can be asked for the logits of some positions only."""
    return "logits_to_keep" in inspect.signature(cast(type[nn.Module], kind).forward).parameters


def response_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean next-token cross-entropy over all response tokens of the batch, float32 [] in nats."""
    summed, counts = response_losses(model, batch)
    return summed.sum() / counts.sum().clamp(min=1)


def records_of(objective: Objective) -> RecordLosses:
    """Return an objective record by record: the mean over a batch is the sum of sums over the sum of counts.

    Raises:
        ConfigError: if it says nothing of single records.
    """
    if objective is response_loss:
        return response_losses
    records: RecordLosses | None = getattr(objective, "records", None)
    if records is None:
        raise ConfigError("this objective is of batches only, and every record's own is needed")
    return records


def mean_losses(sums: torch.Tensor, counts: torch.Tensor) -> list[float]:
    """Return the loss of a batch at every point from those of its records.

    Args:
        sums: float32 [points, records].
        counts: int64 [records].
    """
    return [float(one.sum() / counts.sum().clamp(min=1)) for one in sums]
