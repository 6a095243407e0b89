"""What a few records say along random lines: losses record by record, so that the spread of slopes is seen as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edgetune.core.batch import Batch, RecordLosses
from edgetune.core.tuned import PerturbableTuned


@dataclass(frozen=True, slots=True)
class Look:
    """One batch at some points of one line.

    Args:
        sums: float64 [points, records].
        counts: float64 [records], the weights of a mean over records.
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """Loss of the batch at every point, float64 [points]."""
        total: npt.NDArray[np.float64] = self.sums.sum(axis=1) / self.counts.sum()
        return total

    def slope(self, above: int, below: int, distance: float) -> tuple[float, float]:
        """Return the batch's slope between two points, and the variance of one record's.

            g = sum_b g_b / n,   variance of  m (g_b - g n_b) / n   over the m records of n response tokens

        so that the slope of a batch of k records varies by a k-th of it. A single record shows no variance: all of its
        squared slope counts as that.

        Args:
            above, below: the points.
            distance: between them, in units of the direction.
        """
        each = (self.sums[above] - self.sums[below]) / distance
        total, records = self.counts.sum(), len(self.counts)
        slope = float(each.sum() / total)
        if records == 1:
            return slope, slope**2
        return slope, float(np.var((each - slope * self.counts) * records / total, ddof=1))


class Lines:
    """Looks along lines through the present weights, and counts what they cost.

    Args:
        tuned: the handle, at its base.
        losses: losses of single records.
        batch: (number of the batch, its records) to training records; a pure function.
        keys: directions, one a line.
    """

    def __init__(
        self,
        tuned: PerturbableTuned,
        losses: RecordLosses,
        batch: Callable[[int, int], Batch],
        keys: Sequence[int],
    ) -> None:
        self.tuned, self.keys, self.spent = tuned, keys, 0
        self._losses, self._batch = losses, batch

    @torch.no_grad()
    def look(self, line: int, records: int, scales: Sequence[float]) -> Look:
        """Evaluate the records of batch `line` along direction `line` at every scale.

        Cost: one forward pass of the records a scale.
        """
        batch = self._batch(line, records)
        sums, counts = self.tuned.record_losses(self._losses, batch, self.keys[line], scales)
        self.spent += len(scales) * len(batch.input_ids)
        return Look(
            sums.cpu().double().numpy(), counts.cpu().double().numpy()
        )  # not every device has float64
