"""How a device's steps draw their batches: all records in turn, or every record by chance."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from edgetune.core import secret
from edgetune.core.batch import Batch
from edgetune.core.keys import stream
from edgetune.core.part import CHANCE, RECORDS, Part
from edgetune.data.encode import Example, collate


class Sampling(Part):
    """How batches are drawn; implementations are frozen values."""

    __slots__ = ()

    @abstractmethod
    def batches(
        self,
        examples: Sequence[Example],
        batch_size: int,
        pad_id: int,
        *,
        seed: int,
        device: int,
        first: int = 0,
    ) -> Iterator[Batch]:
        """Yield batches for ever.

        Args:
            examples: at least one.
            batch_size: records a batch, or their mean number.
            pad_id: the padding token.
            seed: the run's.
            device: whose examples they are.
            first: number of the first batch, from 0: steps that the device has taken before.
        """


@dataclass(frozen=True, slots=True)
class Shuffled(Sampling):
    """All records in a random order, then all again in another; see `draw_batches`."""

    name: ClassVar[str] = "shuffled"

    def batches(
        self,
        examples: Sequence[Example],
        batch_size: int,
        pad_id: int,
        *,
        seed: int,
        device: int,
        first: int = 0,
    ) -> Iterator[Batch]:
        """Yield what `draw_batches` does."""
        return draw_batches(examples, batch_size, pad_id, seed=seed, device=device, first=first)


@dataclass(frozen=True, slots=True)
class Poisson(Sampling):
    """Every record is in a batch with probability q, whatever the others are; a batch may be empty.

        q = min(1, b / n)

    This is what privacy accountants of sampled steps assume. The gain is of nobody knowing who is in a batch, and the
    run's seed is known to the server and to every reader of a ledger: the draw is the operating system's, so that a run
    cannot be repeated. Its ledger replays to the same weights.

    Cost: 8 random bytes a record and batch.
    Source: Abadi et al. 2016, arXiv:1607.00133; Mironov et al. 2019, arXiv:1908.10530.
    """

    name: ClassVar[str] = "poisson"

    @property
    def gives(self) -> frozenset[str]:
        """Batches of which nobody knows who is in them."""
        return frozenset({CHANCE})

    @property
    def needs(self) -> frozenset[str]:
        """An estimate that can do with a batch of any size, or of none."""
        return frozenset({RECORDS})

    def batches(
        self,
        examples: Sequence[Example],
        batch_size: int,
        pad_id: int,
        *,
        seed: int,
        device: int,
        first: int = 0,
    ) -> Iterator[Batch]:
        """Yield batches that follow from no argument but the records and their mean number."""
        count = len(examples)
        expected = min(batch_size, count)
        while True:
            rows = np.flatnonzero(secret.uniform(count) <= expected / count)
            chosen = [examples[int(row)] for row in rows]
            batch = collate(chosen, pad_id) if chosen else Batch(*(torch.zeros(0, 1, dtype=torch.int64),) * 3)
            yield Batch(batch.input_ids, batch.attention_mask, batch.labels, expected)


SAMPLINGS: dict[str, type[Sampling]] = {kind.name: kind for kind in (Shuffled, Poisson)}
"""Ways to draw batches by the name that recipes use."""


def draw_batches(
    examples: Sequence[Example], batch_size: int, pad_id: int, *, seed: int, device: int, first: int = 0
) -> Iterator[Batch]:
    """Yield batches for ever: all examples in a random order, then all again in another.

        batch t = records p(tb) ... p(tb + b - 1),   p(i) = element i mod n of the random order of epoch i div n,
        b = min(batch_size, n)

    A pure function of its arguments: whoever goes on at step t sees what an undisturbed run would have seen.

    Args:
        examples: at least one.
        batch_size: records a batch; an epoch may end within one. No record is in one twice because there are few.
        pad_id: the padding token.
        seed: the run's seed; with the device it fixes the orders.
        device: whose examples they are.
        first: number of the first batch, from 0: steps that the device has taken before.
    """
    count, epoch, order = len(examples), -1, np.zeros(0, np.int64)
    batch_size = min(batch_size, count)
    for place in itertools.count(first * batch_size, batch_size):
        rows = []
        for at in range(place, place + batch_size):
            if at // count != epoch:
                epoch = at // count
                order = stream(seed, "batches", device, epoch).permutation(count)
            rows.append(int(order[at % count]))
        yield collate([examples[row] for row in rows], pad_id)
