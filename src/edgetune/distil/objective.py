"""The objective of distillation: the mean divergence of a student from its teacher over response tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

from edgetune.core.batch import IGNORED, Batch, by_record
from edgetune.core.heads import Apart, Rows, by_chunks, mean_by_chunks, positions
from edgetune.core.jensen_shannon import JensenShannon
from edgetune.distil.teacher import Teacher

HELD = 16
"""Batches whose teacher's pass is kept: all points of a step, and its micro-batches along every direction, share it."""


class Distilled:
    """The divergence from a teacher as what a method minimises (see `core.batch.Objective`).

        L(w) = sum_b sum_{t in response} D(P_bt, Q_bt(w)) / number of response tokens

    The divisor counts the response tokens of the whole batch, so that micro-batches add up to it. A batch without any
    has the loss 0. The temperature is 1.

    Args:
        kind: which divergence.
        teacher: P.
        weight: of a reward, 0 to 1; that of the divergence is the rest. A batch that nobody scored has none.
    Cost: a pass of the student, one of the teacher a batch; of logits `core.heads.LOGITS_AT_ONCE` of each at a time.
    Source: Agarwal et al. 2024, arXiv:2306.13649.
    """

    per_record = False

    def __init__(self, kind: JensenShannon, teacher: Teacher, weight: float = 0.0) -> None:
        self.kind, self.teacher, self.weight = kind, teacher, weight
        self._apart = Apart()
        self._held: OrderedDict[int, tuple[Batch, Rows]] = OrderedDict()

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean over all response tokens of the batch, float32 [] in nats."""
        if torch.is_grad_enabled():
            loss, rows, _ = self._asked(model, batch)
            return mean_by_chunks(loss, rows, self._apart.width, max(1, batch.response_tokens))
        summed, counts = self.records(model, batch)
        return summed.sum() / counts.sum().clamp(min=1)

    def records(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return summed divergences float32 [batch] and numbers of response tokens int64 [batch].

        Raises:
            DataError: as `Teacher.rows`.
        """
        loss, rows, where = self._asked(model, batch)
        said, each = batch.labels[:, 1:] != IGNORED, by_chunks(loss, rows, self._apart.width)
        return by_record(each.float(), where[0], said), said.sum(dim=1)

    def _asked(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Callable[..., torch.Tensor], Rows, tuple[torch.Tensor, torch.Tensor]]:
        """Return what a position's loss is made by, what it is made of, and `positions`."""
        where = positions(batch)
        apart, taught = self._apart, self._taught(batch, where)
        scored = batch.advantages if self.weight else None
        rows = [apart.rows(model, batch, where), batch.labels[:, 1:][where]]
        if scored is not None:
            rows.append(scored[where[0]])

        def loss(row: torch.Tensor, label: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            logits = apart.logits(model, row)
            if scored is None:
                return self.teacher.divergence(self.kind, logits, *others)
            chance = logits.log_softmax(-1).gather(1, label.unsqueeze(1))[:, 0]
            apart_by = self.teacher.divergence(self.kind, logits, *others[1:])
            return (1 - self.weight) * apart_by - self.weight * others[0] * chance

        return loss, (*rows, *taught), where

    def _taught(self, batch: Batch, where: tuple[torch.Tensor, torch.Tensor]) -> Rows:
        """Return the teacher's rows of a batch; every point of a step asks for the same."""
        held = self._held.get(id(batch))  # the batch is held too, so that no other can have its id
        if held is None:
            held = (batch, self.teacher.rows(batch, where))
            self._held[id(batch)] = held
            if len(self._held) > HELD:
                self._held.popitem(last=False)
        return held[1]
