"""What each matrix of a model costs on each grid, measured before anything is solved."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.allocation import Choice
from edgetune.compress.blocks import (
    Linear,
    decoder_blocks,
    matrices_in,
    read_matrix,
    replace_data,
    write_matrix,
)
from edgetune.compress.energies import Energy, input_energies
from edgetune.compress.placement import held_outside
from edgetune.compress.rounding import round_to_nearest
from edgetune.compress.search import LeastError
from edgetune.core.batch import Batch
from edgetune.core.progress import Progress, silent
from edgetune.core.quantised import GRIDS, BlockGrid

PROBE_BITS = 4.6
"""A matrix is probed on the finest grid up to so many bits: a step that is seen, and not so large as to bend."""
ROWS = 256
"""Rows of a matrix, evenly spaced, from which its error on a grid is estimated."""


@torch.no_grad()
def choices(
    model: PreTrainedModel,
    calibration: Sequence[torch.Tensor | Batch],
    divergence: Callable[[], float],
    *,
    grids: Sequence[BlockGrid] = tuple(GRIDS.values()),
    progress: Progress = silent,
) -> dict[str, list[Choice]]:
    """Return what every matrix would add to the KL divergence on each grid that fits its width.

        loss_t(g) = KL_t(probe) e_t(g) / e_t(probe),   e_t(g) = sum_ij E[x_j^2] (round_g(W)_ij - W_ij)^2

    KL_t(probe) is measured with this one matrix rounded and everything else as it was.

    Args:
        model: any decoder; as it was when this returns.
        calibration: int64 [batch, length] ids or batches; may be empty, then every input counts alike.
        divergence: returns the KL divergence of the model as it is now from the model as it was.
        grids: to choose among.
        progress: told of every matrix.

    Returns:
        parameter name to choices; matrices that no grid fits are left out.
    Cost: one forward pass over the calibration tokens, then `divergence` and a rounding of `ROWS` rows to every grid
        a matrix.
    Source: HIGGS (arXiv 2411.17525) for the linear model; the errors are ours.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    linears: dict[str, Linear] = {}
    for block in decoder_blocks(model):
        linears |= matrices_in(block, names)[0]
    energies = {name: _weights_of(one) for name, one in input_energies(model, linears, calibration).items()}
    parameters = dict(model.named_parameters())
    outside = held_outside(model, names)
    found: dict[str, list[Choice]] = {}
    for number, name in enumerate([*outside, *linears]):
        progress("measuring matrices", number, len(outside) + len(linears))
        layer = linears.get(name)
        weights = parameters[name].detach().float() if layer is None else read_matrix(layer)
        fits = [grid for grid in grids if weights.shape[1] % grid.block == 0]
        if not fits:
            continue
        probe = max(
            (grid for grid in fits if grid.bits <= PROBE_BITS), key=lambda one: one.bits, default=fits[0]
        )
        importance = energies.get(name, torch.ones_like(weights[0]))
        rounded = round_to_nearest(
            weights, probe, LeastError(), importance=importance, name=name
        ).dequantise()
        before = parameters[name].data
        _write(parameters[name], layer, rounded)
        measured = max(divergence(), 0.0)
        parameters[name].data = before
        errors = {grid.name: _error(weights, grid, importance, name) for grid in fits}
        scale = measured / max(errors[probe.name], 1e-30)
        found[name] = [
            Choice(grid.name, weights.numel() // grid.block * grid.block_bytes, errors[grid.name] * scale)
            for grid in fits
        ]
    return found


def _write(parameter: nn.Parameter, layer: Linear | None, values: torch.Tensor) -> None:
    if layer is None:
        replace_data(parameter, values)
    else:
        write_matrix(layer, values)


def _error(weights: torch.Tensor, grid: BlockGrid, importance: torch.Tensor, name: str) -> float:
    some = weights[:: -(-len(weights) // ROWS)]
    rounded = round_to_nearest(some, grid, LeastError(), importance=importance, name=name).dequantise()
    return float(((rounded - some).square() * importance).sum(dtype=torch.float64))


def _weights_of(energy: Energy) -> torch.Tensor:
    """Return E[x_j^2] about 1, and above 0."""
    return energy.mean / energy.mean.mean().clamp(min=1e-30) + 1e-6
