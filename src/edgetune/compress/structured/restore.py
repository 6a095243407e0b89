"""Least squares on what stays: a reader of fewer channels or heads gives what the dense model had there."""

from __future__ import annotations

import torch

from edgetune.compress.hessian import Hessian, factorise


class Wanted:
    """What a reader reads and what it should give, as running means over tokens.

        H = (2/n) sum_t x_t x_t^T,   M = (2/n) sum_t o_t x_t^T

    Args:
        rows, columns: outputs and inputs of the reader.
        device: where the moments live; 4 (rows + columns) columns bytes.
    """

    def __init__(self, rows: int, columns: int, device: torch.device | str = "cpu") -> None:
        self.inputs = Hessian(columns, device)
        """H, undamped, and the number of tokens."""
        self.outputs = torch.zeros(rows, columns, device=device)
        """float32 [rows, columns], M."""

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Take in more tokens.

        Args:
            inputs: float [n, columns], x: what the reader reads in the pruned model.
            outputs: float [n, rows], o: what it should give.
        Cost: n (rows + columns) columns multiply-adds.
        """
        if len(inputs):
            total = self.inputs.tokens + len(inputs)
            x, o = inputs.to(torch.float32), outputs.to(torch.float32)
            self.outputs.addmm_(o.T, x, beta=self.inputs.tokens / total, alpha=2.0 / total)
            self.inputs.add(x)


def restored(
    weights: torch.Tensor, wanted: Wanted, keep: torch.Tensor, damping: float, *, name: str = "the Hessian"
) -> torch.Tensor:
    """Return the weights on the columns that stay which give what is wanted, as nearly as any can.

        V = argmin_V ||V X_K - O||^2 + lambda ||V - W_K||^2 = W_K + (M_K - W_K H_KK) (H_KK + lambda I)^-1

    With the dense outputs for O on inputs as they were, M = W H and V tends to W H_K (H_KK + lambda I)^-1.

    Args:
        weights: float32 [rows, d], W.
        wanted: H and M of the reader.
        keep: int64 [k] columns that stay.
        damping: lambda in means of the diagonal of H_KK, in (0, 1].
        name: of the layer, for errors.

    Returns:
        float32 [rows, k]; W_K itself where H_KK cannot be factorised.

    Raises:
        ModelError: if the inputs hold NaN or infinity.
    Cost: 2/3 k^3 multiply-adds and three products of all rows with a [k, k] matrix.
    Source: the restoration of FASP (arXiv 2501.09412); OBC (2208.11580) for whole columns; outputs of the dense model
        as in GPTAQ (2504.02692).
    """
    kept, inner = weights[:, keep], wanted.inputs.matrix[keep][:, keep]
    factor = factorise(inner, damping, name=name)
    if factor.fallback:
        return kept
    missing = wanted.outputs[:, keep] - kept @ inner
    return kept + (missing @ factor.upper.T) @ factor.upper
