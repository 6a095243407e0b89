"""Gradient accumulation: one step from several micro-batches along the same directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgetune.core.batch import Batch, Objective, RecordLosses, weight_of
from edgetune.core.update import Dense, Estimate, Projected, Update
from edgetune.estimators.by_record import each_alone
from edgetune.estimators.estimator import Estimator


@dataclass(frozen=True, slots=True)
class Accumulate:
    """Estimate from a batch as if it were evaluated at once, a few records at a time.

        L(w) = sum_b n_b L_b(w) / sum_b n_b      n_b: what L_b is a mean over, response tokens or records

    Slopes are taken of the summed loss, so that a micro-batch whose loss is no number drops its direction, as the whole
    batch would.

    Args:
        estimate: the estimator.
        micro_batch: records a forward pass, at least 1.

    Cost: the passes of the estimate for every micro-batch; activations of one micro-batch.
    """

    estimate: Estimator
    micro_batch: int

    def __call__(self, tuned: Any, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the estimate of the whole batch."""
        parts = batch.split(self.micro_batch)
        weights = [weight_of(objective, part) for part in parts]
        shares = [weight / max(1, sum(weights)) for weight in weights]
        if not self.estimate.adds:
            return self.estimate(_Summed(tuned, parts, shares), objective, batch, *keys)
        loss, total = 0.0, _Total()
        for part, share in zip(parts, shares, strict=True):
            found = self.estimate(tuned, objective, part, *keys)
            loss += share * found.loss
            total.add(found.update, share)
        return Estimate(loss, total.update)


class _Total:
    """A sum of updates that are weighed; dense ones are added in place."""

    def __init__(self) -> None:
        self.update: Update = Projected.none()
        self._dense: dict[str, torch.Tensor] = {}

    def add(self, update: Update, share: float) -> None:
        if isinstance(update, Projected):
            projected = self.update if isinstance(self.update, Projected) else Projected.none()
            self.update = (projected + update.scaled(share)).merged()
            return
        for name, gradient in update.tensors.items():
            total = self._dense.get(name)
            self._dense[name] = gradient * share if total is None else total.add_(gradient, alpha=share)
        self.update = Dense(self._dense)


class _Summed:
    """A handle that evaluates an objective micro-batch by micro-batch; everything else is the handle's own."""

    line_losses = None
    """Points of several lines together: a micro-batch is small so that few activations live at a time."""

    def __init__(self, tuned: Any, parts: Sequence[Batch], shares: Sequence[float]) -> None:
        self._tuned, self._parts, self._shares = tuned, parts, shares

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tuned, name)

    def losses(self, objective: Objective, batch: Batch, seed: int, scales: Sequence[float]) -> list[float]:
        totals = [0.0] * len(scales)
        for part, share in zip(self._parts, self._shares, strict=True):
            for index, loss in enumerate(self._tuned.losses(objective, part, seed, scales)):
                totals[index] += share * loss
        return totals

    def record_losses(
        self, losses: RecordLosses, batch: Batch, seed: int, scales: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = [self._tuned.record_losses(losses, part, seed, scales) for part in self._parts]
        sums, counts = zip(*found, strict=True)
        return torch.cat(sums, dim=1), torch.cat(counts)

    def each_alone(
        self, objective: Objective, batch: Batch, seeds: Sequence[int], scales: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate records along directions of their own, a micro-batch after the other."""
        found, first = [], 0
        for part in self._parts:
            own = seeds[first : first + len(part.input_ids)]
            found.append(each_alone(self._tuned, objective, part, own, scales))
            first += len(own)
        return torch.cat([sums for sums, _ in found], 1), torch.cat([counts for _, counts in found])
