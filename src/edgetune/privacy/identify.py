"""Which records a device trained on, of some that an attacker has: what each would have sent, against what was sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
SWEEPS = 10
"""Times that every place of a subset is filled again, at most."""
TINY = 1e-300
"""Takes the place of a length of 0: an upload of nothing is like none."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What every candidate would have sent alone, by its products with all others.

    Args:
        gram: float64 [candidates, candidates], `<c_i, c_j>`.
        weights: float64 [candidates], above 0: what a record counts in a batch, its tokens or 1.
    """

    gram: Floats
    weights: Floats

    def cosines(self, along: Floats) -> Floats:
        """Return how alike each candidate's upload is to what was sent, but for the length of that.

            <u, c_i> / |c_i|

        Args:
            along: float64 [candidates], `<u, c_i>`.

        Returns:
            Float64 [candidates]; 0 where either is 0.
        """
        return np.asarray(along / np.maximum(np.sqrt(np.diag(self.gram)), TINY))

    def subset(self, along: Floats, count: int) -> list[int]:
        """Return the candidates whose weighted mean is closest to what was sent, by greedy choice and exchange.

            min over S of | u - sum_S n_i c_i / sum_S n_i |,   |S| = count

        Exact where an upload is linear in the gradient and the choice finds the minimum; of one record it is the
        nearest upload.

        Args:
            along: as `cosines`.
            count: records of the batch, at least 1.
        Cost: `SWEEPS` x count passes over the products with all candidates.
        """
        chosen = list[int]()
        for _ in range(count):
            chosen.append(int(np.argmin(self._costs(along, chosen))))
        for _ in range(SWEEPS):
            before = sorted(chosen)
            for place in range(count):
                others = chosen[:place] + chosen[place + 1 :]
                chosen[place] = int(np.argmin(self._costs(along, others)))
            if sorted(chosen) == before:
                break
        return chosen

    def _costs(self, along: Floats, kept: list[int]) -> Floats:
        """Return the squared distance of `kept` and each candidate together, less that of nothing."""
        n, mine = self.weights, self.weights[kept]
        total, rows = mine.sum() + n, mine @ self.gram[kept]
        square = mine @ self.gram[np.ix_(kept, kept)] @ mine + 2 * n * rows + n * n * np.diag(self.gram)
        costs = square / total**2 - 2 * (mine @ along[kept] + n * along) / total
        costs[kept] = np.inf
        return np.asarray(costs)
