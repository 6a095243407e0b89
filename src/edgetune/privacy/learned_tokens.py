"""Which tokens a batch has, by what other records of the kind would have sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of which the best is taken, in units of the mean square of an upload."""
DRAWN = 192
"""Batches that are made up of the attacker's records."""
LEAST = np.finfo(float).tiny


@dataclass(frozen=True, slots=True)
class Reference:
    """Records that an attacker has, by what each of them alone would have sent.

    Args:
        gram: float64 [records, records], products of their uploads.
        tokens: float64 [records, vocabulary], 1 where a record has a token.
        weights: float64 [records], above 0: what a record counts in a batch.
    """

    gram: Floats
    tokens: Floats
    weights: Floats

    def learned(self, along: Floats, squares: Floats, count: int, draw: np.random.Generator) -> Floats:
        """Return a score of every token by ridge regression of token sets on uploads.

            s = m + k^T (K + r I)^-1 (Y - m),   m = mean of Y,   K, k: centred products of uploads

        Of batches, uploads are the weighted means of those of their records, which is what a batch sends where that is
        linear in the gradient. Uploads as they are or all of length 1, and r, are those that do best on batches of half
        of the records, learnt from the other half. With nothing to learn s is m, the guess of the most frequent tokens.

        Args:
            along: float64 [sent, records], products of what was sent with their uploads.
            squares: float64 [sent], of what was sent with itself.
            count: records of a batch.
            draw: makes up batches.

        Returns:
            Float64 [sent, vocabulary].
        Cost: some fifteen solutions of `DRAWN` equations.
        """
        half = draw.permutation(len(self.gram))
        first, second = (self._mixed(part, count, draw) for part in np.array_split(half, 2))
        both = np.concatenate([first, second])
        gram, has, seen = both @ self.gram @ both.T, (both @ self.tokens > 0).astype(float), along @ both.T
        lengths, sent = np.sqrt(np.maximum(np.diag(gram), LEAST)), np.sqrt(np.maximum(squares, LEAST))
        scaled = ((gram, seen), (gram / np.outer(lengths, lengths), seen / np.outer(sent, lengths)))
        apart = has - has[: len(first)].mean(axis=0)
        alike = apart @ apart.T
        choices = [
            (_judged(one, alike, len(first), ridge), way, ridge)
            for way, (one, _) in enumerate(scaled)
            for ridge in RIDGES
        ]
        _, way, ridge = min(choices)
        mean = has.mean(axis=0)
        return np.asarray(mean + _weights(*scaled[way], ridge) @ (has - mean))

    def _mixed(self, part: npt.NDArray[np.int64], count: int, draw: np.random.Generator) -> Floats:
        """Return batches of some records as float64 [batches, records], each row the weights of a mean."""
        chosen = (
            part[:, None]
            if count == 1
            else np.stack(
                [draw.choice(part, min(count, len(part)), replace=False) for _ in range(DRAWN // 2)]
            )
        )
        mixed = np.zeros((len(chosen), len(self.gram)))
        np.put_along_axis(mixed, chosen, self.weights[chosen], axis=1)
        return np.asarray(mixed / mixed.sum(axis=1, keepdims=True))


def _judged(gram: Floats, alike: Floats, known: int, ridge: float) -> float:
    """Return the squared error of the batches after the first `known` ones, learnt from those.

        | Y_2 - W Y_1 |^2 = tr S_22 - 2 <W, S_21> + <W S_11, W>,   S = Y Y^T

    Args:
        gram: products of uploads.
        alike: S, products of token sets less the mean of the first ones.
    """
    by = _weights(gram[:known, :known], gram[known:, :known], ridge)
    missed = np.trace(alike[known:, known:]) - 2 * (by * alike[known:, :known]).sum()
    return float(missed + ((by @ alike[:known, :known]) * by).sum())


def _weights(gram: Floats, seen: Floats, ridge: float) -> Floats:
    """Return `k^T (K + r I)^-1` for some products with the known uploads, centred, float64 [uploads, known]."""
    rows = gram.mean(axis=0)
    centred = gram - rows[:, None] - rows[None, :] + rows.mean()
    apart = seen - seen.mean(axis=1, keepdims=True) - rows + rows.mean()
    level = ridge * max(float(np.trace(centred)) / len(gram), LEAST)
    return np.asarray(np.linalg.solve(centred + level * np.eye(len(gram)), apart.T).T)
