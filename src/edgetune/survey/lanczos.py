"""Eigenvalues of a symmetric matrix of which only products with vectors are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]
Product = Callable[[torch.Tensor], torch.Tensor]
"""From a vector, float64 [d], to the matrix times it."""
ENDED = 1e-12
"""A part that is new by less than this share of the spectrum's size is rounding: the space is exhausted."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What a few products say of all eigenvalues.

    Args:
        values: Ritz values, ascending, float64 [k].
        weights: the share of all eigenvalues that each stands for, at least 0, of sum 1, float64 [k].
        errors: how far from an eigenvalue each is at most, float64 [k].
    """

    values: Floats
    weights: Floats
    errors: Floats

    @property
    def size(self) -> float:
        """The largest magnitude."""
        return float(np.abs(self.values).max())


def lanczos(product: Product, start: torch.Tensor, steps: int) -> Spectrum:
    """Return the spectrum as Lanczos' method sees it from one vector.

        A Q_k = Q_k T_k + b_k q_{k+1} e_k^T,   T_k = U diag(theta) U^T
        weight_i = U_1i^2,   |theta_i - lambda| <= b_k |U_ki| for some eigenvalue lambda

    For a random start, sum_i weight_i f(theta_i) estimates tr f(A) / d (stochastic Lanczos quadrature): every
    eigenvalue weighs 1 / d on average. Each new vector is made orthogonal to all before it, twice: without, rounding
    makes copies of eigenvalues that were found. An eigenvalue of several vectors appears once, with their weight.

    Args:
        product: of the matrix.
        start: any vector but 0, float64 [d].
        steps: most products, at least 1.

    Returns:
        min(steps, d) values, fewer where the space ends; NaN if a product is no number.
    Cost: `steps` products and as many vectors of d numbers.
    Source: Lanczos 1950; Ubaru, Chen and Saad 2017, doi:10.1137/16M1104974.
    """
    vectors = [start / start.norm()]
    diagonal, beside = list[float](), list[float]()
    for step in range(min(steps, len(start))):
        new = product(vectors[-1])
        diagonal.append(float(vectors[-1] @ new))
        known = torch.stack(vectors)
        for _ in range(2):
            new = new - known.T @ (known @ new)
        beside.append(float(new.norm()))
        if not np.isfinite([diagonal[-1], beside[-1]]).all():
            return Spectrum(*(np.full(1, np.nan) for _ in range(3)))
        if beside[-1] <= ENDED * max(map(abs, diagonal + beside)) or step + 1 == len(start):
            beside[-1] = 0.0
            break
        vectors.append(new / beside[-1])
    matrix = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
    values, parts = np.linalg.eigh(matrix)
    return Spectrum(values, parts[0] ** 2, beside[-1] * np.abs(parts[-1]))
