"""The base that a residency asks for: as it is stored, or rounded and packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256

import torch
from torch import nn

from edgetune.compress.grid import AbsMax
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.errors import ModelError
from edgetune.core.packing import pack
from edgetune.core.quantised import HELD, BaseTensor, BlockGrid, PackedTensor, values_of, whole_blocks
from edgetune.models.backbone import Backbone
from edgetune.models.stored import stored_weights, streamed_weights
from edgetune.recipe.residency import Residency

ROWS_AT_ONCE = 1 << 20
"""Elements packed at a time; bounds the float32 copies."""


def digest_of(backbone: Backbone, grid: BlockGrid | None) -> str:
    """Name the base that a ledger is relative to; a rounded base is another one. Rounding is deterministic."""
    return rounded_digest(backbone.digest, grid)


def rounded_digest(digest: str, grid: BlockGrid | None) -> str:
    """Return the name of a base once it is rounded to a grid; None leaves it as it is."""
    return digest if grid is None else sha256(f"{digest} {grid.name} AbsMax".encode()).hexdigest()


def grid_named(name: str | None) -> BlockGrid | None:
    """Return the grid that a ledger says its base was rounded to; None for none.

    Raises:
        ModelError: if no base is held in a grid of that name.
    """
    if name is not None and name not in HELD:
        raise ModelError(f"the ledger's base was rounded to an unknown grid {name!r}", hint="update edgetune")
    return HELD[name] if name is not None else None


def named_base(backbone: Backbone, residency: Residency) -> Backbone:
    """Return the backbone under the name of the base that tuning starts from."""
    return replace(backbone, digest=digest_of(backbone, residency.grid))


def base_tensors(backbone: Backbone, grid: BlockGrid | None) -> Mapping[str, BaseTensor]:
    """Return the base values by parameter name: memory-mapped, or packed.

    Args:
        backbone: its files are read where they name parameters as the model does; else its present weights are copied.
        grid: the block grid of matrices whose rows are whole blocks; None keeps every tensor as it is stored.

    Raises:
        ModelError: if a block cannot be rounded.
    Cost: none for what is as it is stored but for matrices whose rows a GGUF file orders otherwise; 4.5 or 8.5 bits a
        weight if packed here.
    """
    if grid is None and backbone.base is not None:
        return backbone.base
    if grid is None:
        streamed = streamed_weights(backbone.folder, backbone.model)
        return streamed if streamed is not None else dict(_copies(backbone.model))
    weights: Mapping[str, BaseTensor] | None = backbone.base
    if weights is None:
        weights = stored_weights(backbone.folder, backbone.model)
    if weights is None:
        weights = dict(_copies(backbone.model))
    return {
        name: pack_tensor(weight, grid, name) if whole_blocks(weight.shape) else _copied(weight)
        for name, weight in weights.items()
    }


def pack_tensor(weight: BaseTensor, grid: BlockGrid, name: str) -> PackedTensor:
    """Round a matrix to the nearest codes, a group of rows at a time, and pack it."""
    rows, columns = weight.shape
    weight = weight.contiguous() if isinstance(weight, torch.Tensor) else weight
    step, parts = max(1, ROWS_AT_ONCE // columns), []
    for first in range(0, rows, step):
        some = min(step, rows - first)
        values = values_of(weight, first * columns, some * columns).view(some, columns).float()
        parts.append(pack(round_to_nearest(values, grid, AbsMax(), name=name)))
    blocks = torch.cat([torch.from_numpy(part).view(-1) for part in parts])
    return PackedTensor(grid, blocks, tuple(weight.shape))


def _copied(weight: BaseTensor) -> torch.Tensor:
    return values_of(weight, 0, weight.numel()).clone().view(weight.shape)


def _copies(model: nn.Module) -> Mapping[str, torch.Tensor]:
    return {
        name: weight.detach().clone()
        for name, weight in model.named_parameters()
        if weight.is_floating_point()
    }
