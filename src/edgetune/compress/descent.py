"""After the sweep: one code, then one scale at a time moves to where the layer's error is least, the others fixed."""

from __future__ import annotations

import torch

from edgetune.core.quantised import BLOCK, BlockGrid

TOGETHER = 128
"""Columns between two products with the rest of the Hessian, a multiple of a block."""


def descend(
    target: torch.Tensor,
    hessian: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    grid: BlockGrid,
    passes: int,
) -> None:
    """Lower the error of codes and scales in place, coordinate by coordinate.

        f(Q) = (Q - T) H (Q - T)^T,   G = (Q - T) H,   Q_j = c_j s
        c_j <- clamp(round((Q_j - G_j / H_jj) / s)),   then a block  s <- fp16(s - (c . G_b) / (c H_bb c^T))

    Every move is the exact minimum along its coordinate, so that f never rises (but by rounding of s, which is undone).

    Args:
        target: float32 [d, rows], T, a column of the matrix in one piece.
        hessian: float32 [d, d], damped as the sweep's was.
        codes: int8 [d, rows], changed.
        scales: float16 [d / 32, rows], changed.
        grid: of both.
        passes: over all columns and blocks, at least 0.
    Cost: rows d^2 multiply-adds a pass over the codes and as many over the scales.
    Source: Gauss-Seidel on OPTQ's objective; QuantEase (arXiv 2309.01885) for the codes.
    """
    for _ in range(passes):
        _over_codes(target, hessian, codes, scales, grid)
        _over_scales(target, hessian, codes, scales)


def _quantised(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return Q, float32 [d, rows]."""
    return codes.float() * scales.float().repeat_interleave(BLOCK, dim=0)


def _over_codes(
    target: torch.Tensor, hessian: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, grid: BlockGrid
) -> None:
    gradient = hessian @ (_quantised(codes, scales) - target)
    for start in range(0, len(target), TOGETHER):
        end = min(start + TOGETHER, len(target))
        inner, open_block = hessian[start:end, start:end], gradient[start:end]
        moved = torch.empty_like(open_block)
        for j in range(end - start):
            scale = scales[(start + j) // BLOCK].float()
            before = codes[start + j].float()
            wanted = before * scale - open_block[j] / inner[j, j]
            after = torch.where(scale != 0, wanted / scale, 0.0).round().clamp(grid.low, grid.high)
            moved[j] = (after - before) * scale
            codes[start + j] = after.to(torch.int8)
            open_block.addr_(inner[j], moved[j])
        gradient[end:].addmm_(hessian[end:, start:end], moved)


def _over_scales(
    target: torch.Tensor, hessian: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> None:
    gradient = hessian @ (_quantised(codes, scales) - target)
    for start in range(0, len(target), BLOCK):
        end = start + BLOCK
        block, inner = codes[start:end].float(), hessian[start:end, start:end]
        old = scales[start // BLOCK].float()
        slope = (block * gradient[start:end]).sum(0)
        curvature = (block * (inner @ block)).sum(0)
        new = torch.where(curvature > 0, old - slope / curvature.clamp(min=1e-30), old).half().float()
        step = new - old
        falls = step * (2 * slope + step * curvature) < 0  # of f, with the scale as it is stored
        step = torch.where(falls & torch.isfinite(new) & (new != 0), step, 0.0)
        scales[start // BLOCK] = (old + step).half()
        gradient.addmm_(hessian[:, start:end], block * step)
