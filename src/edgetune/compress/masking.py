"""Which weights go: what a weight is worth, and how many of which neighbours are taken for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from edgetune.compress.sweep import RUN
from edgetune.core.errors import ConfigError


class Worth(Protocol):
    """What is lost with a weight, and among which weights the least is looked for."""

    @property
    def by_row(self) -> bool:
        """Whether every row gives up the same share, or a matrix as a whole."""

    @property
    def swept(self) -> bool:
        """Whether it depends on what became of earlier columns, so that a mask is made block by block."""

    @property
    def calibrated(self) -> bool:
        """Whether it depends on calibration text."""

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

    swept: ClassVar[bool] = True
    calibrated: ClassVar[bool] = True
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

    swept: ClassVar[bool] = False
    calibrated: ClassVar[bool] = True
    by_row: bool = True

    def __call__(self, weights: torch.Tensor, pivots: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        """Return float [rows, n]."""
        return weights.square() * importance


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The size of a weight, whatever it is multiplied with:  w_ij^2."""

    swept: ClassVar[bool] = False
    calibrated: ClassVar[bool] = False
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


@dataclass(frozen=True, slots=True)
class Pruning:
    """What a mask is made of.

    Args:
        sparsity: how many weights go, and where.
        worth: what is least where they go.
    """

    sparsity: Sparsity
    worth: Worth

    @property
    def whole(self) -> bool:
        """Whether the rows of a matrix compete."""
        return self.sparsity.span == 1 and not self.worth.by_row

    def removed(self, weights: torch.Tensor, pivots: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        """Return which weights of one matrix go, bool [rows, n].

        Args:
            weights: float [rows, n], neighbouring columns.
            pivots: float [n], U_jj, above 0.
            importance: float [n], H_jj; 0 for an input that calibration never saw, whose weights go first.
        """
        seen = importance > 0
        worth = self.worth(weights, pivots, torch.where(seen, importance, 1.0))
        return self.sparsity.removed(torch.where(seen, worth, 0.0), self.worth.by_row)


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
