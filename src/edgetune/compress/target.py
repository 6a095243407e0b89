"""What a layer is solved for where its inputs are not what they were: the dense model's outputs."""

from __future__ import annotations

import torch

from edgetune.compress.hessian import Factor


def aimed_at_dense(weights: torch.Tensor, drift: torch.Tensor, factor: Factor) -> torch.Tensor:
    """Return the weights that give the dense outputs from the compressed layers' inputs, as nearly as any can.

        T = argmin_T ||T X - W Y||^2 + lambda ||T - W||^2 = W + W D (H + lambda I)^-1,   D = (Y - X) X^T, H = X X^T

    The error of rounded weights Q to the dense outputs is (Q - T) H (Q - T)^T and a constant, so that the same sweep
    rounds T instead of W. With inputs as they were, D = 0 and T = W.

    Args:
        weights: float32 [rows, d], W.
        drift: float32 [d, d], D of the tokens of H.
        factor: of H with its damping lambda; one that fell back has no inverse, and W stays.

    Returns:
        float32 [rows, d].
    Cost: three products of all rows with a [d, d] matrix; one, where `pull` has made the other two once and for all.
    Source: the objective of GPTAQ (arXiv 2504.02692) and Qronos (2505.11695); solved for the target, where they change
        the sweep.
    """
    if factor.fallback:
        return weights
    return weights + (weights @ drift @ factor.upper.T) @ factor.upper


def pull(drift: torch.Tensor, factor: Factor) -> torch.Tensor:
    """Return D (H + lambda I)^-1, float32 [d, d], which pays for more than d rows: then T = W + W pull.

    Args:
        drift: float32 [d, d], D.
        factor: of H; not one that fell back.
    """
    return (drift @ factor.upper.T) @ factor.upper
