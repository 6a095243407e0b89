"""Which weights go: what a weight is worth, and how many of which neighbours are taken for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from edgetune.core.errors import ConfigError

RUN = 32
"""Neighbouring columns that a sweep keeps up to date within a block; a group of n:m must lie inside one."""


class Worth(Protocol):
    """What is lost with a weight, and among which weights the least is looked for."""

    @property
    def by_row(self) -> bool:
        """Whether every row gives up the same share, or a matrix as a whole."""

    def __call__(self, weights: torch.Tensor, pivots: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        """Return what each weight is worth, not negative.

        Args:
            weights: float [rows, n], n neighbouring columns.
            pivots: float [n], U_jj of these columns, above 0.
            importance: float [n], H_jj of these columns, above 0.
        """


@dataclass(frozen=True, slots=True)
class AfterCompensation:
    """The error that setting a weight to 0 leaves once all later columns have made up for it.

        (w_ij / U_jj)^2

    Source: SparseGPT (arXiv 2301.00774), equation 5; optimal brain surgeon.
    """

    by_row: bool = False

    def __call__(self, weights: torch.Tensor, pivots: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        """Return float [rows, n]."""
        return (weights / pivots).square()


@dataclass(frozen=True, slots=True)
class AtOutput:
    """The error that setting a weight to 0 makes at the output if nothing makes up for it.

        w_ij^2 H_jj

    Source: Wanda (arXiv 2306.11695), section 3, which compares within a row.
    """

    by_row: bool = True

    def __call__(self, weights: torch.Tensor, pivots: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        """Return float [rows, n]."""
        return weights.square() * importance


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The size of a weight, whatever it is multiplied with:  w_ij^2."""

    by_row: bool = False

    def __call__(self, weights: torch.Tensor, pivots: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        """Return float [rows, n]."""
        return weights.square()


class Sparsity(Protocol):
    """How many weights go, and where."""

    @property
    def name(self) -> str:
        """What a user writes, for example `0.5` or `2:4`."""

    @property
    def span(self) -> int:
        """Neighbouring columns decided together within every row; 1 where rows are free."""

    def removed(self, worth: torch.Tensor, by_row: bool) -> torch.Tensor:
        """Return which weights go, bool [rows, n]: those of least worth, among equals the first.

        Args:
            worth: float [rows, n] of one matrix, n a multiple of `span`.
            by_row: whether every row gives up the same share.
        """


@dataclass(frozen=True, slots=True)
class Unstructured:
    """A share of the weights, wherever they are: exactly round(share * n) of n.

    Args:
        share: 0 to 1.

    Raises:
        ConfigError: at construction, for any other share.
    Source: SparseGPT, algorithm 1; the reference code takes one more, and more than that where scores are equal.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(
                f"a share of weights is 0 to 1, not {self.share}", where="sparsity", hint="try 0.5"
            )

    @property
    def name(self) -> str:
        """The share."""
        return f"{self.share:g}"

    @property
    def span(self) -> int:
        """Rows are free."""
        return 1

    def removed(self, worth: torch.Tensor, by_row: bool) -> torch.Tensor:
        """Return bool [rows, n]."""
        if by_row:
            return least(worth, round(self.share * worth.shape[1]))
        return least(worth.reshape(1, -1), round(self.share * worth.numel())).reshape(worth.shape)


@dataclass(frozen=True, slots=True)
class NofM:
    """n of every m neighbours in a row.

    Args:
        n: weights that go, 1 to m - 1.
        m: 2, 4, 8, 16 or 32.

    Raises:
        ConfigError: at construction, for other numbers.
    Source: SparseGPT, section 3.3.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if self.m < 2 or RUN % self.m or not 0 < self.n < self.m:
            raise ConfigError(
                f"no pattern prunes {self.n} of every {self.m} weights: m is 2, 4, 8, 16 or 32 and n less",
                where="sparsity",
                hint="try 2:4",
            )

    @property
    def name(self) -> str:
        """The pattern."""
        return f"{self.n}:{self.m}"

    @property
    def span(self) -> int:
        """A group."""
        return self.m

    def removed(self, worth: torch.Tensor, by_row: bool) -> torch.Tensor:
        """Return bool [rows, n]; a group lies in a row in any case."""
        return least(worth.reshape(-1, self.m), self.n).reshape(worth.shape)


def least(worth: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the `count` least entries of every row, among equals those that stand first.

    Args:
        worth: float [groups, n], no NaN.
        count: 0 to n.

    Returns:
        bool [groups, n], exactly `count` true in every row.
    Cost: a selection and a running sum, both linear.
    """
    if not count:
        return torch.zeros_like(worth, dtype=torch.bool)
    threshold = worth.kthvalue(count, dim=1, keepdim=True).values
    below, equal = worth < threshold, worth == threshold
    missing = count - below.sum(1, keepdim=True)
    return below | (equal & (equal.cumsum(1) <= missing))


def sparsity_named(text: str) -> Sparsity:
    """Return what a user means by `0.5` or `2:4`.

    Raises:
        ConfigError: if it is neither.
    """
    n, colon, m = text.partition(":")
    try:
        return NofM(int(n), int(m)) if colon else Unstructured(float(text))
    except ValueError:
        raise ConfigError(
            f"{text!r} is neither a share of the weights nor a pattern of n in every m",
            where="sparsity",
            hint="try 0.5 or 2:4",
        ) from None
