"""One stage: matrices that read the same input, stacked by rows; one factorisation and one sweep for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgetune.compress.hessian import damped, factorise, repaired_diagonal, uncoupled
from edgetune.compress.method import CompressionMethod
from edgetune.compress.rounding import require_finite, round_to_nearest
from edgetune.compress.sweep import Section, sweep
from edgetune.compress.target import aimed_at_dense
from edgetune.core.events import LayerCompressed, Listener
from edgetune.core.quantised import QuantisedMatrix


@dataclass(frozen=True, slots=True)
class Solved:
    """A compressed matrix.

    Args:
        weights: float32 [out, in], what the model computes with from now on.
        stored: the same weights as a file holds them, bit for bit; None where the rule leaves plain floats.
    """

    weights: torch.Tensor
    stored: QuantisedMatrix | None


def solve_stage(
    matrices: Mapping[str, torch.Tensor],
    hessian: torch.Tensor | None,
    method: CompressionMethod,
    listener: Listener,
    cross: torch.Tensor | None = None,
) -> dict[str, Solved]:
    """Compress matrices that share one input; report each against rounding to nearest.

    Args:
        matrices: name to float32 [out, d]; d a multiple of 32.
        hessian: float32 [d, d], `Hessian.matrix` undamped; None where there is none, which counts as the
            identity.
        method: what to do.
        cross: float32 [d, d], `Hessian.cross` of the same tokens; then what is solved for, and what errors are counted
            from, is `aimed_at_dense`.
        listener: gets one `LayerCompressed` a matrix, whose `rounding_error` is that of the same scales
            without a sweep, and whose `fallback` says that compensation was asked for and impossible.

    Returns:
        name to solution.

    Raises:
        ModelError: if weights or inputs are not finite, or a scale exceeds fp16.
    Cost: one factorisation, one sweep, two more for every pass, three products of all rows with H for the report.
    """
    names = " + ".join(matrices)
    sections = tuple(Section(name, len(weights)) for name, weights in matrices.items())
    stacked = torch.cat(list(matrices.values()))
    require_finite(stacked, sections)
    diagonal = torch.ones_like(stacked[0]) if hessian is None else hessian.diagonal()
    importance = repaired_diagonal(diagonal, names)
    if hessian is None or not method.compensate:
        factor = uncoupled(importance, fallback=method.compensate)
    else:
        factor = factorise(hessian, method.damping, name=names)
    target = stacked
    if hessian is not None and cross is not None:
        target = aimed_at_dense(stacked, hessian, cross, factor)
    rule = method.rule(method.grid, method.scale).begin(sections, stacked.shape[1], stacked.device)
    solved = sweep(target, factor.upper, rule, method.block)
    if method.passes and hessian is not None and not factor.fallback:
        solved = rule.refine(target, damped(hessian, importance, factor.damping), method.passes)
    rounded = round_to_nearest(
        stacked, method.grid, method.scale, importance=importance, name=names
    ).dequantise()

    energy, error, rounding_error = (
        _energy(rows, hessian) for rows in (target, solved - target, rounded - target)
    )
    results, first = {}, 0
    for section in sections:
        rows = slice(first, first + section.rows)
        first = rows.stop
        results[section.name] = Solved(solved[rows], rule.stored(rows))
        listener(
            LayerCompressed(
                name=section.name,
                grid=method.grid.name,
                error=_share(error[rows], energy[rows]),
                rounding_error=_share(rounding_error[rows], energy[rows]),
                damping=factor.damping,
                fallback=factor.fallback,
            )
        )
    return results


def _energy(weights: torch.Tensor, hessian: torch.Tensor | None) -> torch.Tensor:
    """Return float64 [rows]: w H w^T of every row."""
    product = weights if hessian is None else weights @ hessian
    return (product * weights).sum(dim=1, dtype=torch.float64)


def _share(part: torch.Tensor, whole: torch.Tensor) -> float:
    total = float(whole.sum())
    return float(part.sum()) / total if total > 0 else 0.0
