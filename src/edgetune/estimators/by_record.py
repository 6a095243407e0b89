"""A direction a record: as many slopes from a batch as it has records, at the forward passes of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from edgetune.core.batch import Batch, Objective, records_of, response_losses
from edgetune.core.update import Estimate, Projected
from edgetune.estimators.slopes import Sloped, check_slopes, check_spread, spread_of


@dataclass(frozen=True, slots=True)
class ByRecord(Sloped):
    """Central-difference slopes of the records' losses, each along a direction of its own.

        d_b = (S_b(w + eps z_b) - S_b(w - eps z_b)) / (2 eps N),   estimate = sum_b d_b z_b / spread

    S_b is the summed loss of record b and N the number that the batch's loss is a mean over (response tokens), so that
    the estimate is unbiased as a two-point estimate is; along n independent directions its variance is less. The spread
    is 1, or, standardised, the population's standard deviation of n d_b: a step has a length that neither the loss's
    scale nor the gradient's changes. Record b takes direction b, or b mod n if there are more records.

    Args:
        eps: perturbation radius, > 0, in units of the weights.
        directions: n, at least 1; the records of a batch, or fewer.
        standardised: whether slopes are divided by their spread; then n is at least 2.

    Raises:
        ConfigError: if a number is out of its range.
    Cost: 2 forward passes of the batch where directions are of rank one, else 2 of every record by itself. Slopes that
        are all equal, or of which one alone is finite, have no spread: a standardised step is dropped.
    Source: GRZO, arXiv:2606.02857.
    """

    eps: float
    directions: int = 16
    standardised: bool = False
    name: ClassVar[str] = "by_record"
    options: ClassVar[Mapping[str, str]] = {
        "eps": "eps",
        "directions_per_step": "directions",
        "standardised": "standardised",
    }

    def __post_init__(self) -> None:
        check_slopes(self.eps, self.directions)
        if self.standardised:
            check_spread(self.directions)

    @property
    def passes(self) -> int:
        """Forward passes of a step, of the whole batch."""
        return 2

    def scale(self, slope: float) -> float:
        """Return the slope where it is what a step is divided by."""
        return slope if self.standardised else 1.0

    @torch.no_grad()
    def __call__(self, tuned: Any, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the mean loss of all points, and the slopes along the directions that some record took."""
        records = len(batch.input_ids)
        own = [keys[index % len(keys)] for index in range(records)]
        sums, counts = each_alone(tuned, objective, batch, own, (self.eps, -self.eps))
        above, below = (one.double().cpu().numpy() for one in sums)
        number = max(1, int(counts.sum()))
        with np.errstate(over="ignore", invalid="ignore"):
            moved = (above - below) / (2 * self.eps * number)
            fine = np.isfinite(above + below) & np.isfinite(moved.astype(np.float32))
        kept = dict.fromkeys(key for key, good in zip(own, fine, strict=True) if good)
        slopes = {key: float(sum(moved[fine & (np.array(own) == key)])) for key in kept}
        spread = len(slopes) * spread_of(list(slopes.values())) if self.standardised else 1.0
        if not slopes or not 0 < spread < math.inf:
            return Estimate(math.nan, Projected.of(keys[0], math.nan), len(set(own)))
        loss = float((above[fine] + below[fine]).sum()) / 2 / max(1, int(counts.cpu().numpy()[fine].sum()))
        values = (np.array(list(slopes.values())) / spread).astype(np.float32)
        return Estimate(
            loss, Projected(np.array(list(slopes), np.int64), values), len(set(own)) - len(slopes)
        )


def each_alone(
    tuned: Any, objective: Objective, batch: Batch, seeds: Sequence[int], scales: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Evaluate every record along a direction of its own.

    Args:
        tuned: a perturbable handle.
        objective: of which records have losses of their own.
        batch: the records.
        seeds: one a record.
        scales: signed, in units of the weights.

    Returns:
        float32 [scales, records] sums and int64 [records] counts.

    Raises:
        ConfigError: if the objective says nothing of single records.
    Cost: see `ByRecord`.
    """
    accumulated = getattr(tuned, "each_alone", None)
    found: tuple[torch.Tensor, torch.Tensor]
    if accumulated is not None:
        found = accumulated(objective, batch, seeds, scales)
        return found
    losses = records_of(objective)
    together = getattr(tuned, "own_line_losses", None)
    if together is not None and losses is response_losses:
        found = together(batch, seeds, scales)
        return found
    alone = zip(batch.split(1), seeds, strict=True)
    parts = [tuned.record_losses(losses, one, seed, scales) for one, seed in alone]
    return torch.cat([sums for sums, _ in parts], 1), torch.cat([counts for _, counts in parts])
