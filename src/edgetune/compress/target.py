"""What a layer is solved for where its inputs are not what they were: the dense model's outputs."""

from __future__ import annotations

import torch

from edgetune.compress.hessian import Factor


def aimed_at_dense(
    weights: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor, factor: Factor
) -> torch.Tensor:
    """Return the weights that give the dense outputs from the compressed layers' inputs, as nearly as any can.

        T = argmin_T ||T X - W Y||^2 + lambda ||T - W||^2 = W + W (C - H) (H + lambda I)^-1,   C = Y X^T, H = X X^T

    The error of rounded weights Q to the dense outputs is (Q - T) H (Q - T)^T and a constant, so that the same sweep
    rounds T instead of W. With inputs as they were, C = H and T = W.

    Args:
        weights: float32 [rows, d], W.
        hessian: float32 [d, d], H undamped.
        cross: float32 [d, d], C of the same tokens.
        factor: of H with its damping lambda; one that fell back has no inverse, and W stays.

    Returns:
        float32 [rows, d].
    Cost: three products of all rows with a [d, d] matrix.
    Source: the objective of GPTAQ (arXiv 2504.02692) and Qronos (2505.11695); solved for the target, where they change
        the sweep.
    """
    if factor.fallback:
        return weights
    missing = weights @ (cross - hessian)
    return weights + (missing @ factor.upper.T) @ factor.upper
