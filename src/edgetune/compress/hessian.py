"""What calibration inputs say of a linear layer: the Hessian of its error, and the factor the sweep uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from edgetune.core.errors import ModelError

RETRY = 10.0
"""A factorisation that fails is tried again with this much more damping, up to 1."""
TRUSTED_CONDITION = 1e5
"""Squared ratio of the largest to the smallest pivot (a lower bound of the condition number) up to which fp32
is used; there its factor is right to about 1 % (measured: 0.4 % at 5e4, 5 % at 5e5), beyond it fp64 takes over."""
STRIPS = 8
"""Parts in which a symmetric product is computed: (1 + 1/8) / 2 of its multiply-adds."""
WIDE = 512
"""Columns from which on D is computed from bfloat16, where the processor multiplies it: half the time, and D, a
difference already taken, keeps its two digits."""
TILE = 256
"""Rows that are reversed, and columns that are inverted, at once."""


class Hessian:
    """Running mean of the second moment of a layer's inputs, and of how far they are from the dense model's.

        H = (2/n) sum_{t=1..n} x_t x_t^T,   D = (2/n) sum_{t=1..n} (y_t - x_t) x_t^T

    x are the inputs that the compressed layers before give, y those that the dense ones give.

    Args:
        columns: input dimension d of the layer.
        device: where it lives; 4 d^2 bytes, twice that with D.
        dense: whether D is wanted.
    Source: OPTQ (arXiv 2210.17323), section 3.1; dividing by n only rescales H and cancels out of the
        solution.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu", *, dense: bool = False) -> None:
        self.matrix = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        """float32 [d, d]."""
        self.drift = torch.zeros_like(self.matrix) if dense else None
        """float32 [d, d], D; None if it is not wanted."""
        self.tokens = 0
        """Number n of inputs seen."""

    def add(self, inputs: torch.Tensor, dense: torch.Tensor | None = None) -> None:
        """Take in more inputs.

        Args:
            inputs: any float dtype [n, d], real tokens only.
            dense: the same tokens' inputs in the dense model; equal to these if not given.
        Cost: 9/16 n d^2 multiply-adds, n d^2 more with D where the inputs differ.
        """
        if not len(inputs):
            return
        total = self.tokens + len(inputs)
        x = inputs.to(torch.float32)
        _add_gram(self.matrix, x, self.tokens / total, 2.0 / total)
        if self.drift is not None:
            self.drift.mul_(self.tokens / total)
            if dense is not None and not torch.equal(dense, inputs):
                _add_product(self.drift, dense.to(torch.float32) - x, x, 2.0 / total)
        self.tokens = total


def _add_gram(matrix: torch.Tensor, x: torch.Tensor, beta: float, alpha: float) -> None:
    """Do matrix = beta matrix + alpha x^T x, of which only what is on and above the diagonal is computed."""
    width = -(-len(matrix) // STRIPS)
    for first in range(0, len(matrix), width):
        here = slice(first, first + width)
        matrix[here, first:].addmm_(x[:, here].T, x[:, first:], beta=beta, alpha=alpha)
        matrix[first + width :, here] = matrix[here, first + width :].T


def _add_product(matrix: torch.Tensor, y: torch.Tensor, x: torch.Tensor, alpha: float) -> None:
    """Do matrix += alpha y^T x."""
    if len(matrix) >= WIDE and matrix.device.type == "cpu" and _multiplies_bfloat16():
        matrix.add_(y.to(torch.bfloat16).T @ x.to(torch.bfloat16), alpha=alpha)
    else:
        matrix.addmm_(y.T, x, alpha=alpha)


def _multiplies_bfloat16() -> bool:
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


@dataclass(frozen=True, slots=True)
class Factor:
    """What the sweep needs of a Hessian.

    Args:
        upper: float32 [d, d], upper triangular U with U^T U = (H + damping)^-1. Row j of U, divided by U_jj,
            says how the columns after j make up for an error in column j once all earlier columns are fixed.
        damping: fraction of the mean diagonal that was added to the diagonal.
        fallback: True if H could not be factorised; `upper` is then diag(H)^-1/2, with which a sweep
            compensates nothing (Round becomes rounding to nearest).
    """

    upper: torch.Tensor
    damping: float
    fallback: bool


def factorise(hessian: torch.Tensor, damping: float = 0.01, *, name: str = "the Hessian") -> Factor:
    """Damp a Hessian and factorise its inverse.

        H + damping * mean(diag H) * I = R R^T   (R upper),   U = R^-1,   so U^T U = (H + ...)^-1

    A dead input (H_jj = 0) gets the mean diagonal of the live ones: its weights are rounded, not zeroed,
    since an input that calibration never saw may still occur. R comes from one Cholesky of H with both axes
    reversed, which spares forming the inverse.

    Args:
        hessian: float32 [d, d], symmetric, positive semi-definite up to rounding.
        damping: first damping to try, in (0, 1].
        name: tensor to name in an error.

    Returns:
        the factor; its `damping` is the one that worked, and `fallback` says that none up to 1 did.

    Raises:
        ModelError: if the diagonal of H holds NaN or infinity.
    Cost: d^3 / 2 multiply-adds an attempt; 1.5 d^2 floats (fp64 where fp32 is not to be trusted) beside H and U.
    Source: OPTQ, section 3.3, steps 2 and 3.
    """
    repaired = repaired_diagonal(hessian.diagonal(), name)
    while damping <= 1.0:
        upper = _inverse_upper(hessian, repaired + damping * repaired.mean())
        if upper is not None:
            return Factor(upper, damping, fallback=False)
        damping *= RETRY
    return uncoupled(repaired, fallback=True)


@contextmanager
def damped(hessian: torch.Tensor, repaired: torch.Tensor, damping: float) -> Iterator[None]:
    """While entered, `hessian` is H + damping * mean(diag H) * I, with the diagonal of `repaired_diagonal`."""
    before = hessian.diagonal().clone()
    hessian.diagonal().copy_(repaired + damping * repaired.mean())
    try:
        yield
    finally:
        hessian.diagonal().copy_(before)


def uncoupled(repaired: torch.Tensor, *, fallback: bool = False) -> Factor:
    """Return the factor of diag H alone, with which no column makes up for another.

    Args:
        repaired: float32 [d], diag H from `repaired_diagonal`.
        fallback: whether this stands in for a factorisation that failed.
    """
    return Factor(torch.diag(repaired.rsqrt()), 0.0, fallback)


def repaired_diagonal(diagonal: torch.Tensor, name: str = "the Hessian") -> torch.Tensor:
    """Set dead entries (not above 0) to the mean of the live ones, or to 1 if none lives.

    Args:
        diagonal: float32 [d], diag H. An input that was ever NaN or infinite shows here.
        name: tensor to name in an error.

    Returns:
        float32 [d], above 0.

    Raises:
        ModelError: if an entry is NaN or infinite.
    """
    if not bool(torch.isfinite(diagonal).all()):
        raise ModelError(
            "calibration inputs hold NaN or infinity, so nothing can be solved for",
            where=name,
            hint="load the model in float32 and check the calibration text",
        )
    live = diagonal > 0
    mean = diagonal[live].mean() if bool(live.any()) else torch.ones_like(diagonal[0])
    return torch.where(live, diagonal, mean)


def _inverse_upper(hessian: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor | None:
    """Return U of H with another diagonal, float32; None if it has none. In place but for one copy of H."""
    for dtype, trusted in ((torch.float32, TRUSTED_CONDITION), (torch.float64, float("inf"))):
        lower = _reversed(hessian, dtype).mT  # a symmetric matrix as LAPACK lies it out
        lower.diagonal().copy_(diagonal.flip(0))
        failed = torch.empty((), dtype=torch.int32, device=lower.device)
        torch.linalg.cholesky_ex(lower, out=(lower, failed))
        pivots = lower.diagonal()
        if int(failed) or bool((pivots.max() / pivots.min()) ** 2 > trusted):
            continue
        _invert_lower(lower)
        upper = _reversed(lower, torch.float32)
        if all(bool(torch.isfinite(end)) for end in upper.aminmax()):  # both are NaN where one entry is
            return upper
    return None


def _reversed(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a copy with both axes reversed, made a tile at a time."""
    found = torch.empty(matrix.shape, dtype=dtype, device=matrix.device)
    for first in range(0, len(matrix), TILE):
        rows = matrix[first : first + TILE]
        last = len(matrix) - first
        found[last - len(rows) : last] = rows.flip(0, 1)
    return found


def _invert_lower(lower: torch.Tensor) -> None:
    """Invert a lower triangular matrix in place, by halves: [A 0; B C]^-1 = [A^-1 0; -C^-1 B A^-1, C^-1]."""
    if len(lower) <= TILE:
        one = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, one, upper=False))
        return
    half = len(lower) // 2
    a, b, c = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert_lower(a)
    _invert_lower(c)
    b.copy_(torch.mm(c, b).mm(a).neg_())
