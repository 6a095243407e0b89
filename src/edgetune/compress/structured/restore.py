"""Least squares on what stays: a reader of fewer channels or heads gives the dense outputs as nearly as it can."""

from __future__ import annotations

import torch

from edgetune.compress.hessian import factorise


def restored(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    cross: torch.Tensor,
    keep: torch.Tensor,
    damping: float = 0.01,
    *,
    name: str = "the Hessian",
) -> torch.Tensor:
    """Return the weights on the columns that stay which give the dense outputs, as nearly as any can.

        V = argmin_V ||V X_K - W Y||^2 + lambda ||V - W_K||^2 = W_K + (W C_K - W_K H_KK) (H_KK + lambda I)^-1

    X are the reader's inputs in the pruned model, Y in the dense one, C = Y X^T, H = X X^T. Where nothing before has
    been pruned, C = H and V tends to W H_K (H_KK + lambda I)^-1.

    Args:
        weights: float32 [rows, d], W.
        hessian, cross: float32 [d, d], of the same tokens, before any damping.
        keep: int64 [k] columns that stay.
        damping: lambda in means of the diagonal of H_KK, in (0, 1].
        name: of the layer, for errors.

    Returns:
        float32 [rows, k]; W_K itself where H_KK cannot be factorised.

    Raises:
        ModelError: if the inputs hold NaN or infinity.
    Cost: 2/3 k^3 multiply-adds and three products of all rows with a [k, k] matrix.
    Source: the restoration of FASP (arXiv 2501.09412); OBC (2208.11580) for whole columns.
    """
    kept, inner = weights[:, keep], hessian[keep][:, keep]
    factor = factorise(inner, damping, name=name)
    if factor.fallback:
        return kept
    missing = weights @ cross[:, keep] - kept @ inner
    return kept + (missing @ factor.upper.T) @ factor.upper
