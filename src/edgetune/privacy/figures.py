"""How far an attack gets: where it ranks what is true among what might be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Found:
    """What a ranking of candidates finds of a secret batch.

    Args:
        top1: 1 if the first candidate is in the batch, else 0.
        recall: share of the batch among the first candidates, as many as it has records, in [0, 1].
        auc: probability that a record of the batch stands before one that is not in it, ties counting half.
    """

    top1: float
    recall: float
    auc: float


def found(scores: Scores, secret: Collection[int], ties: np.random.Generator) -> Found:
    """Return what scores find of a batch.

    Args:
        scores: float64 [candidates], the greatest first.
        secret: the places of the batch, at least one and not all.
        ties: orders equal scores.
    """
    first = ranked(scores, ties)[: len(secret)].tolist()
    hits = len(set(first) & set(secret))
    return Found(float(first[0] in secret), hits / len(secret), auc(scores, secret))


def auc(scores: Scores, secret: Collection[int]) -> float:
    """Return the area under the curve of true by false alarms.

        P(s_i > s_j) + P(s_i = s_j) / 2,   i in the batch, j not

    Args:
        scores: float64 [candidates].
        secret: as `found`.
    """
    inside = np.zeros(len(scores), bool)
    inside[list(secret)] = True
    mine, others = scores[inside][:, None], scores[~inside][None, :]
    return float((mine > others).mean() + (mine == others).mean() / 2)


def ranked(scores: Scores, ties: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return places from the greatest score to the least, equal ones in random order."""
    return np.lexsort((ties.permutation(len(scores)), -scores)).astype(np.int64)


def recovered(guessed: Sequence[int], true: Collection[int], known: Collection[int] = ()) -> float:
    """Return the share of what is true, and not known before, that was guessed; NaN if all was known."""
    left = set(true) - set(known)
    return len(left & set(guessed)) / len(left) if left else float("nan")
