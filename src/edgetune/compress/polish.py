"""Conjugate gradients on the weights that a mask keeps: their best values, without an inverse for every row."""

from __future__ import annotations

import torch


def polish(
    target: torch.Tensor, hessian: torch.Tensor, weights: torch.Tensor, kept: torch.Tensor, steps: int
) -> torch.Tensor:
    """Return kept weights nearer to the target; every row by itself, all rows in one product a step.

        min f(W) = (W - T) H (W - T)^T   over W with W = 0 off the support
        R = P (T - W) H,  Z = R / diag H,  D = Z
        a = <R, Z> / <D, D H>,   W += a D,   R -= a P D H,   D = Z + <R, Z>' / <R, Z> D

    P sets what is not kept to 0. f never rises; in k steps, k the weights that a row keeps, W is the least-squares
    solution on its support (but for rounding).

    Args:
        target: float32 [rows, d], T.
        hessian: float32 [d, d], positive definite.
        weights: float32 [rows, d], where to start; what is not kept counts as 0.
        kept: bool [rows, d], the support.
        steps: at least 0.

    Returns:
        float32 [rows, d], 0 off the support.
    Cost: rows d^2 multiply-adds a step and once before; five copies of the weights.
    Source: ALPS (arXiv 2406.07831), algorithm 2, whose preconditioner is diag H.
    """
    support = kept.to(weights.dtype)
    inverse = support / hessian.diagonal()
    solved = weights * support
    residual = (target - solved) @ hessian * support
    direction = residual * inverse
    slope = (residual * direction).sum(1, keepdim=True)
    for _ in range(steps):
        product = direction @ hessian
        curvature = (direction * product).sum(1, keepdim=True)
        step = torch.where(curvature > 0, slope / curvature, 0.0)
        solved.addcmul_(step, direction)
        residual.sub_(step * product * support)
        preconditioned = residual * inverse
        fresh = (residual * preconditioned).sum(1, keepdim=True)
        direction = preconditioned + torch.where(slope > 0, fresh / slope, 0.0) * direction
        slope = fresh
    return solved
