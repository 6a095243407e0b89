"""Where weights live while a model is tuned: stored and updated, or formed when read from a base that may be packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import nn

from edgetune.compress.grid import AbsMax
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.errors import ConfigError
from edgetune.core.quantised import Q4_0, Q8_0, BlockGrid, PackedTensor, StoredTensor, whole_blocks
from edgetune.directions import Hadamard
from edgetune.export.tensors import pack
from edgetune.methods.method import TuningMethod
from edgetune.models.backbone import Backbone
from edgetune.models.stored import stored_weights
from edgetune.tune import FullProjected

ROWS_AT_ONCE = 1 << 20
"""Elements packed at a time; bounds the float32 copies."""


@dataclass(frozen=True, slots=True)
class Residency:
    """How a tuned model occupies memory.

    Args:
        streamed: form weights from base and ledger in every forward pass, instead of storing them.
        grid: round the base's matrices to this block grid and keep them packed; None keeps them as they are.
    """

    streamed: bool = False
    grid: BlockGrid | None = None


FUSED = Residency()
RESIDENCIES = {
    "fused": FUSED,
    "streamed": Residency(streamed=True),
    "streamed-q8_0": Residency(streamed=True, grid=Q8_0),
    "streamed-q4_0": Residency(streamed=True, grid=Q4_0),
}
"""Values of `model.residency` in a recipe."""


def check_streams(method: TuningMethod, residency: Residency) -> None:
    """Refuse to stream what would be slow or is not a sum of directions.

    Raises:
        ConfigError: saying what to change.
    """
    if not residency.streamed:
        return
    target = method.target
    full = isinstance(target, FullProjected) and not target.keep_direction and target.scaling is None
    if not full or method.directions is None:
        raise ConfigError(
            f"{method.name} does not tune all weights alike along regenerated directions, which streaming needs",
            where="model.residency",
            hint="use fused",
        )
    if not isinstance(method.directions.kind, Hadamard):
        raise ConfigError(
            "a streamed model is rebuilt in every forward pass, which takes a Hadamard pool",
            where="model.residency",
            hint="use fedkseed with method.directions = 'hadamard', or residency fused",
        )


def digest_of(backbone: Backbone, grid: BlockGrid | None) -> str:
    """Name the base that a ledger is relative to; a rounded base is another one. Rounding is deterministic."""
    if grid is None:
        return backbone.digest
    return sha256(f"{backbone.digest} {grid.name} AbsMax".encode()).hexdigest()


def named_base(backbone: Backbone, residency: Residency) -> Backbone:
    """Return the backbone under the name of the base that tuning starts from."""
    return replace(backbone, digest=digest_of(backbone, residency.grid))


def base_tensors(backbone: Backbone, grid: BlockGrid | None) -> Mapping[str, StoredTensor]:
    """Return the base values by parameter name: memory-mapped, or packed.

    Args:
        backbone: its files are read where they name parameters as the model does; else its present weights are copied.
        grid: the block grid of matrices whose rows are whole blocks; None keeps every tensor as it is stored.

    Raises:
        ModelError: if a block cannot be rounded.
    Cost: none for float tensors; 4.5 or 8.5 bits a weight if packed.
    """
    found = stored_weights(backbone.folder, backbone.model)
    weights = found if found is not None else dict(_copies(backbone.model))
    if grid is None:
        return weights
    return {
        name: pack_tensor(weight, grid, name) if whole_blocks(weight.shape) else weight.clone()
        for name, weight in weights.items()
    }


def pack_tensor(weight: torch.Tensor, grid: BlockGrid, name: str) -> PackedTensor:
    """Round a matrix to the nearest codes, a group of rows at a time, and pack it."""
    step = max(1, ROWS_AT_ONCE // weight.shape[1])
    parts = [
        pack(round_to_nearest(weight[first : first + step].float(), grid, AbsMax(), name=name))
        for first in range(0, len(weight), step)
    ]
    blocks = torch.cat([torch.from_numpy(part).view(-1) for part in parts])
    return PackedTensor(grid, blocks, tuple(weight.shape))


def _copies(model: nn.Module) -> Mapping[str, torch.Tensor]:
    return {
        name: weight.detach().clone()
        for name, weight in model.named_parameters()
        if weight.is_floating_point()
    }
