"""Which grid each matrix gets, where a recipe bounds the size of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from transformers import PreTrainedModel

from edgetune.compress.allocation import allocate
from edgetune.compress.method import CompressionMethod
from edgetune.compress.sensitivity import choices
from edgetune.core.batch import Batch
from edgetune.core.compression_events import Allotted
from edgetune.core.errors import ConfigError
from edgetune.core.progress import Progress, silent
from edgetune.core.quantised import GRIDS, BlockGrid
from edgetune.core.sizes import parse_budget
from edgetune.export.header import header_bytes
from edgetune.export.plan import ALIGNMENT, ExportPlan, size_of
from edgetune.measure.divergence import Reference
from edgetune.recipe.calibration import calibration_of
from edgetune.recipe.prepare import Prepared

PROBED = 2_048
"""Calibration tokens on which the effect of one matrix is measured."""


@dataclass(frozen=True, slots=True)
class Allotment:
    """How a file keeps to its size.

    Args:
        grids: parameter name to grid.
        event: the same in numbers.
    """

    grids: Mapping[str, BlockGrid] = field(default_factory=dict)
    event: Allotted | None = None


def budget_of(prepared: Prepared, plan: ExportPlan, method: CompressionMethod) -> int | None:
    """Return the bytes that a recipe allows its file; None if it does not bound them.

    Raises:
        ConfigError: if the size cannot be read, no file of this model is as small, or the method uses no grid.
    """
    text = prepared.recipe.compression.size
    if text is None:
        return None
    if method.grid is None:
        hint = "name joint, or leave the size to the sparsity"
        raise ConfigError("a size is kept by grids, and this method has none", where=method.name, hint=hint)
    weights = sum(prod(tensor.shape) for tensor in plan.tensors)
    budget = parse_budget(text, weights, "compression.size")
    coarsest = {tensor.parameter: tensor for tensor in plan.tensors if tensor.type in GRIDS}
    least = _fixed(plan) + sum(
        min(size_of(replace(tensor, type=grid.name)) for grid in _grids(method) if _fits(tensor.shape, grid))
        for tensor in coarsest.values()
    )
    if budget < least:
        raise ConfigError(
            f"the smallest file of this model has {least:,} bytes, {text} are {budget:,}",
            where="compression.size",
            hint=f"allow {8 * least / weights:.2f}bpw, or prune the model first (edgetune prune)",
        )
    return budget


def allot(
    model: PreTrainedModel,
    method: CompressionMethod,
    prepared: Prepared,
    plan: ExportPlan,
    progress: Progress = silent,
) -> Allotment:
    """Return the grids with which a file keeps to its recipe's size and loses least, as far as can be predicted.

    Args:
        model: what is going to be compressed; as it was when this returns.
        method: how.
        prepared: recipe and calibration sample.
        plan: of the file with the method's own grid.
        progress: told of every matrix.

    Raises:
        ConfigError: as `budget_of`.
    Cost: that of `compress.sensitivity.choices`, each comparison on `PROBED` tokens.
    """
    budget = budget_of(prepared, plan, method)
    if budget is None:
        return Allotment()
    batches = calibration_of(prepared).batches
    reference = Reference(model, _some(batches, PROBED))
    found = choices(
        model, batches, lambda: reference.of(model).every, grids=_grids(method), progress=progress
    )
    times = Counter(tensor.parameter for tensor in plan.tensors)
    stored = {tensor.parameter for tensor in plan.tensors if tensor.type in GRIDS}
    weighed = {
        name: [replace(one, size=one.size * times[name]) for one in each]
        for name, each in found.items()
        if name in stored
    }
    chosen = allocate(weighed, budget - _fixed(plan))
    event = Allotted(
        size=str(prepared.recipe.compression.size),
        budget_bytes=budget,
        predicted_kl=sum(one.loss for one in chosen.values()),
        grids=dict(Counter(one.grid for one in chosen.values())),
    )
    return Allotment({name: GRIDS[one.grid] for name, one in chosen.items()}, event)


def _fixed(plan: ExportPlan) -> int:
    """Return the bytes of everything in a file that is on no grid."""
    floats = sum(size_of(tensor) for tensor in plan.tensors if tensor.type not in GRIDS)
    return header_bytes(plan) + floats + ALIGNMENT * len(plan.tensors)


def _grids(method: CompressionMethod) -> list[BlockGrid]:
    # A unit is read by llama.cpp for some families only, and for no embedding.
    able = [grid for grid in GRIDS.values() if not grid.has_unit]
    return [grid for grid in able if grid.has_zero or method.mask is None]


def _fits(shape: Sequence[int], grid: BlockGrid) -> bool:
    return shape[-1] % grid.block == 0


def _some(batches: Sequence[Batch], tokens: int) -> list[Batch]:
    """Return the first batches with so many tokens, the last one cut."""
    found: list[Batch] = []
    left = tokens
    for batch in batches:
        if left <= 0:
            break
        rows = max(1, min(len(batch.input_ids), left // batch.input_ids.shape[1]))
        found.append(Batch(batch.input_ids[:rows], batch.attention_mask[:rows], batch.labels[:rows]))
        left -= rows * batch.input_ids.shape[1]
    return found
