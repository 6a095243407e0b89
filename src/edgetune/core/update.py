"""An update is one of two things; codecs, aggregators and optimisers are written against it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Keys = npt.NDArray[np.int64]
Coefficients = npt.NDArray[np.float32]
LARGEST = 1e18
"""Greatest magnitude of a coefficient or an adapter weight that travels or is kept: no use comes near it, and no sum of
those that a federation adds overflows float32."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Types that tensors of an update may have."""


def within(tensor: torch.Tensor) -> bool:
    """Say whether every element of a tensor of one of `FLOATS` is a number of magnitude at most `LARGEST`."""
    if not tensor.numel():
        return True
    low, high = tensor.detach().aminmax()
    return bool(float(low) >= -LARGEST) and bool(float(high) <= LARGEST)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Named tensors: `{name: float [...]}`."""

    tensors: Mapping[str, torch.Tensor]

    @property
    def size(self) -> float:
        """Root mean square of all elements: how far it moves a weight."""
        count = sum(tensor.numel() for tensor in self.tensors.values())
        total = sum(float(tensor.detach().double().square().sum()) for tensor in self.tensors.values())
        return math.sqrt(total / max(1, count))

    @property
    def is_finite(self) -> bool:
        """Whether no element is NaN or infinite."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.tensors.values())

    @property
    def is_bounded(self) -> bool:
        """Whether every element is a number of magnitude at most `LARGEST`."""
        return all(within(tensor) for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True, eq=False)
class Projected:
    """A sum of scaled directions, `sum_i coefficients[i] * z(keys[i])`, never formed until it is applied.

    Args:
        keys: int64 [k]; pool indices or direction seeds, each at least 0.
        coefficients: float32 [k].
    """

    keys: Keys
    coefficients: Coefficients

    def __post_init__(self) -> None:
        if self.keys.shape != self.coefficients.shape or self.keys.ndim != 1:
            raise ValueError("keys and coefficients must be vectors of one length")

    @property
    def size(self) -> float:
        """How far it moves a weight, root mean square, where directions are signs of which no two are alike."""
        return math.sqrt(float(np.square(self.merged().coefficients.astype(np.float64)).sum()))

    @property
    def is_finite(self) -> bool:
        """Whether no coefficient is NaN or infinite."""
        return bool(np.isfinite(self.coefficients).all())

    @property
    def is_bounded(self) -> bool:
        """Whether every coefficient is a number of magnitude at most `LARGEST`."""
        return bool((np.abs(self.coefficients) <= LARGEST).all())

    @classmethod
    def of(cls, key: int, coefficient: float) -> Projected:
        """Return one scaled direction."""
        with np.errstate(over="ignore"):  # a slope beyond float32 becomes infinite, and its step is dropped
            return cls(np.array([key], np.int64), np.array([coefficient]).astype(np.float32))

    @classmethod
    def none(cls) -> Projected:
        """Return the zero update."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.float32))

    @classmethod
    def chain(cls, updates: Sequence[Projected]) -> Projected:
        """Return updates one after the other; call `merged` to add equal keys."""
        return cls(
            np.concatenate([np.zeros(0, np.int64), *(one.keys for one in updates)]),
            np.concatenate([np.zeros(0, np.float32), *(one.coefficients for one in updates)]),
        )

    def scaled(self, factor: float) -> Projected:
        """Return `factor` times this update."""
        return Projected(self.keys, (self.coefficients * np.float32(factor)).astype(np.float32))

    def merged(self) -> Projected:
        """Return the same sum with every key once, in order of first appearance; coefficients add in fp32."""
        unique, first, inverse = np.unique(self.keys, return_index=True, return_inverse=True)
        total = np.zeros(len(unique), np.float32)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # a sum that is no number is found where it is used
            np.add.at(total, inverse, self.coefficients)
        order = np.argsort(first, kind="stable")
        return Projected(unique[order], total[order])

    def sorted(self) -> Projected:
        """Return the same terms in ascending order of key."""
        order = np.argsort(self.keys, kind="stable")
        return Projected(self.keys[order], self.coefficients[order])

    def moving(self) -> Projected:
        """Return the terms whose coefficients are not zero."""
        moves = self.coefficients != 0
        return self if moves.all() else Projected(self.keys[moves], self.coefficients[moves])

    def over(self, keys: Sequence[int]) -> Projected:
        """Return the coefficients of different directions in their order, 0 of those that do not move.

        Args:
            keys: all that this update moves, and others.
        """
        merged, different = self.merged(), list(dict.fromkeys(keys))
        known = dict(zip(merged.keys.tolist(), merged.coefficients.tolist(), strict=True))
        return Projected(
            np.array(different, np.int64), np.array([known.get(key, 0.0) for key in different], np.float32)
        )

    def after(self, count: int) -> Projected:
        """Return the terms beyond the first `count`."""
        return Projected(self.keys[count:], self.coefficients[count:])

    def goes_on_from(self, other: Projected) -> bool:
        """Say whether the first terms of this update are those of another one, bit for bit."""
        count = len(other.keys)
        return np.array_equal(self.keys[:count], other.keys) and np.array_equal(
            self.coefficients[:count], other.coefficients
        )

    def equals(self, other: Projected) -> bool:
        """Say whether both have the same terms in the same order."""
        return len(self.keys) == len(other.keys) and self.goes_on_from(other)

    def __add__(self, other: Projected) -> Projected:
        """Concatenate; call `merged` to add equal keys."""
        return Projected.chain([self, other])


@dataclass(frozen=True, slots=True, eq=False)
class Weighed(Projected):
    """A pool's coefficients, and what its directions are drawn by.

    Args:
        amplitudes: float32 [K], at least 0: how large slopes along each direction are.
    """

    amplitudes: Coefficients


@dataclass(frozen=True, slots=True, eq=False)
class Stepped(Projected):
    """A sum whose last terms are those of one step: what comes next may follow from it.

    Args:
        last: number of those terms, at least 1.
    """

    last: int

    @property
    def step(self) -> Projected:
        """The last step."""
        return self.after(len(self.keys) - self.last)


Update = Dense | Projected


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an estimator learnt from one batch.

    Args:
        loss: the batch's loss in nats, NaN or infinite if the forward pass failed numerically.
        update: the estimated gradient, in the representation that the estimator produces.
        dropped: slopes that were NaN or infinite and are not in the estimate.
    """

    loss: float
    update: Update
    dropped: int = 0

    @property
    def is_finite(self) -> bool:
        """Whether loss and update may be used."""
        return math.isfinite(self.loss) and self.update.is_finite


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one device sends after its local steps.

    Args:
        device: its stable id.
        examples: number of training examples it holds, the aggregation weight.
        loss: mean loss of its steps in nats.
        dropped: slopes (or gradients) dropped because a loss was NaN or infinite.
        update: the change of the weights.
        slopes: what it was computed from, where devices send the slope of every step.
    """

    device: int
    examples: int
    loss: float
    dropped: int
    update: Update
    slopes: Projected | None = None
