"""One stage: matrices that read the same input, stacked by rows; one factorisation and one sweep for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from edgetune.compress.grid import unit_of
from edgetune.compress.hessian import Factor, damped, factorise, repaired_diagonal, uncoupled
from edgetune.compress.method import CompressionMethod
from edgetune.compress.rounding import require_finite
from edgetune.compress.sweep import ColumnRule, Section, sweep
from edgetune.compress.target import aimed_at_dense, pull
from edgetune.core.events import LayerCompressed, Listener
from edgetune.core.quantised import BlockGrid, QuantisedMatrix

AT_ONCE = 1 << 24
"""Weights swept together, 64 MB; what a stage needs beyond its matrices is some ten times that."""
JUDGED = 64
"""Rows of a matrix, evenly spaced, on which the reported errors are measured."""


@dataclass(frozen=True, slots=True)
class Solved:
    """A compressed matrix.

    Args:
        weights: float32 [out, in], what the model computes with from now on.
        stored: the same weights as a file holds them, bit for bit; None where the rule leaves plain floats.
    """

    weights: torch.Tensor
    stored: QuantisedMatrix | None

    def times(self, unit: float) -> Solved:
        """Return the same with weights so many times as large, a power of two."""
        stored = None if self.stored is None else replace(self.stored, unit=unit)
        return Solved(self.weights * unit, stored)


@dataclass(frozen=True, slots=True)
class Moments:
    """What calibration says of a stage's inputs.

    Args:
        hessian: float32 [d, d], `Hessian.matrix` undamped.
        drift: float32 [d, d], `Hessian.drift` of the same tokens; None if the dense model's outputs are no aim.
    """

    hessian: torch.Tensor
    drift: torch.Tensor | None = None


def solve_stage(
    matrices: Mapping[str, torch.Tensor],
    moments: Moments | None,
    method: CompressionMethod,
    listener: Listener,
    grid: BlockGrid | None = None,
) -> dict[str, Solved]:
    """Compress matrices that share one input; report each against the same without a sweep.

    Args:
        matrices: name to float32 [out, d]; d a multiple of the grid's block.
        moments: of their input; None where there are none, which counts as the identity.
        method: what to do.
        grid: in place of the method's, where that does not fit or another was allotted.
        listener: gets one `LayerCompressed` a matrix, whose `rounding_error` is that of `ColumnRule.alone` (rounding to
            the same grid, as many weights pruned), and whose `fallback` says that compensation was asked for and
            impossible.

    Returns:
        name to solution.

    Raises:
        ModelError: if weights or inputs are not finite, or a scale cannot be stored.
    Cost: one factorisation, one sweep and as many more as there are passes. Memory: the result, and about ten times
        `AT_ONCE` weights.
    """
    names, chosen = " + ".join(matrices), grid or method.grid
    rule = method.rule_on(chosen)
    first = next(iter(matrices.values()))
    for name, weights in matrices.items():
        require_finite(weights, (Section(name, len(weights)),))
    diagonal = torch.ones_like(first[0]) if moments is None else moments.hessian.diagonal()
    importance = repaired_diagonal(diagonal, names)
    swept = moments is not None and (method.compensate or method.refines)
    if moments is None or not swept:
        factor = Factor(torch.empty(0, 0), 0.0, fallback=method.compensate)
    elif not method.compensate:
        factor = uncoupled(importance)
    else:
        factor = factorise(moments.hessian, method.damping, name=names)
    units = {name: 1.0 if chosen is None else unit_of(weights, chosen) for name, weights in matrices.items()}
    matrices = {
        name: weights if units[name] == 1 else weights / units[name] for name, weights in matrices.items()
    }
    if method.mask is not None:  # what was never seen goes first
        importance = torch.where(diagonal > 0, importance, 0.0)
    pulled = None
    rows = sum(len(weights) for weights in matrices.values())
    if moments is not None and moments.drift is not None and rows > len(importance) and not factor.fallback:
        pulled = pull(moments.drift, factor)
    stage = _Stage(method, chosen, rule, moments, importance, factor, pulled)
    pieces: dict[str, list[Solved]] = {name: [] for name in matrices}
    for parts in _chunks(matrices, AT_ONCE // first.shape[1], whole=stage.rule.whole):
        for name, solved in stage.solved(parts).items():
            pieces[name].append(solved)
    results = {name: _joined(parts) for name, parts in pieces.items()}
    for name, weights in matrices.items():
        listener(stage.judged(name, weights, results[name]))
    return {
        name: solved if units[name] == 1 else solved.times(units[name]) for name, solved in results.items()
    }


@dataclass(frozen=True, slots=True)
class _Stage:
    """What is the same for all rows of a stage."""

    method: CompressionMethod
    grid: BlockGrid | None
    rule: ColumnRule
    moments: Moments | None
    importance: torch.Tensor
    factor: Factor
    pulled: torch.Tensor | None

    @property
    def sweeps(self) -> bool:
        """Whether columns make up for each other."""
        able = self.moments is not None and not self.factor.fallback
        return able and (self.method.compensate or self.method.refines)

    def target(self, weights: torch.Tensor) -> torch.Tensor:
        """Return what is solved for."""
        if self.moments is None or self.moments.drift is None:
            return weights
        if self.pulled is not None:
            return torch.addmm(weights, weights, self.pulled)
        return aimed_at_dense(weights, self.moments.drift, self.factor)

    def solved(self, parts: list[tuple[str, torch.Tensor]]) -> dict[str, Solved]:
        """Compress some rows of some matrices."""
        sections = tuple(Section(name, len(weights)) for name, weights in parts)
        stacked = parts[0][1] if len(parts) == 1 else torch.cat([weights for _, weights in parts])
        target = self.target(stacked)
        if self.moments is None or not self.sweeps:
            found, whole = self.rule.alone(sections, target, self.importance)
            stored_of: Callable[[slice], QuantisedMatrix | None] = (
                whole.rows if whole is not None else lambda _: None
            )
        else:
            block = -(-self.method.block // self.rule.span) * self.rule.span
            decide = self.rule.begin(sections, target, self.importance)
            found = sweep(target, self.factor.upper, decide, block)
            if self.method.refines:
                repaired = repaired_diagonal(self.importance)
                damping = self.factor.damping or self.method.damping  # none where nothing compensates
                with damped(self.moments.hessian, repaired, damping):
                    found = decide.refine(target, self.moments.hessian, self.method.passes)
            stored_of = decide.stored
        results, first = {}, 0
        for section in sections:
            rows = slice(first, first + section.rows)
            first = rows.stop
            results[section.name] = Solved(found[rows], stored_of(rows))
        return results

    def judged(self, name: str, weights: torch.Tensor, solved: Solved) -> LayerCompressed:
        """Return the event of a matrix: its error, and that of rounding, on some of its rows."""
        every = -(-len(weights) // JUDGED)
        some, target, rounded = weights[::every], self.target(weights[::every]), solved.weights[::every]
        counted = solved.weights if self.method.mask is not None else solved.weights[::every]
        if self.sweeps:
            rounded, _ = self.rule.alone((Section(name, len(some)),), some, self.importance)
        hessian = None if self.moments is None else self.moments.hessian
        energy, error, rounding = (
            _energy(rows, hessian) for rows in (target, solved.weights[::every] - target, rounded - target)
        )
        return LayerCompressed(
            name=name,
            grid=self.grid.name if self.grid else "float",
            error=_share(error, energy),
            rounding_error=_share(rounding, energy),
            damping=self.factor.damping,
            fallback=self.factor.fallback,
            sparsity=1 - int(counted.count_nonzero()) / max(counted.numel(), 1),
        )


def _chunks(
    matrices: Mapping[str, torch.Tensor], rows: int, *, whole: bool
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Yield rows of the matrices in order, at most so many together; a matrix in one piece where it has to be."""
    parts: list[tuple[str, torch.Tensor]] = []
    free = rows = max(rows, 1)
    for name, weights in matrices.items():
        for part in (weights,) if whole else _cut(weights, free, rows):
            if parts and len(part) > free:
                yield parts
                parts, free = [], rows
            parts.append((name, part))
            free -= len(part)
    if parts:
        yield parts


def _cut(weights: torch.Tensor, first: int, most: int) -> Iterator[torch.Tensor]:
    """Yield the rows of a matrix in pieces, the first of which fills up what was begun."""
    if 0 < first < len(weights):
        yield weights[:first]
        weights = weights[first:]
    yield from torch.split(weights, most)


def _joined(parts: list[Solved]) -> Solved:
    if len(parts) == 1:
        return parts[0]
    weights = torch.cat([part.weights for part in parts])
    stored = [part.stored for part in parts if part.stored is not None]
    if not stored:
        return Solved(weights, None)
    numbers = tuple(torch.cat(pieces) for pieces in zip(*(one.numbers for one in stored), strict=True))
    return Solved(weights, QuantisedMatrix(stored[0].grid, torch.cat([one.codes for one in stored]), numbers))


def _energy(weights: torch.Tensor, hessian: torch.Tensor | None) -> torch.Tensor:
    """Return float64 [rows]: w H w^T of every row."""
    product = weights if hessian is None else weights @ hessian
    return (product * weights).sum(dim=1, dtype=torch.float64)


def _share(part: torch.Tensor, whole: torch.Tensor) -> float:
    total = float(whole.sum())
    return float(part.sum()) / total if total > 0 else 0.0
