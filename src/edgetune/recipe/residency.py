"""Where weights live while a model is tuned, as a recipe names it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.quantised import Q4_0, Q8_0, BlockGrid
from edgetune.directions import RankOnePool
from edgetune.methods.method import TuningMethod
from edgetune.tune import FullProjected


@dataclass(frozen=True, slots=True)
class Residency:
    """How a tuned model occupies memory.

    Args:
        streamed: form weights from base and ledger in every forward pass, instead of storing them.
        grid: round the base's matrices to this block grid and keep them packed; None keeps them as they are.
    """

    streamed: bool = False
    grid: BlockGrid | None = None


CPU = torch.device("cpu")
FUSED = Residency()
RESIDENCIES = {
    "fused": FUSED,
    "streamed": Residency(streamed=True),
    "streamed-q8_0": Residency(streamed=True, grid=Q8_0),
    "streamed-q4_0": Residency(streamed=True, grid=Q4_0),
}
"""Values of `model.residency` in a recipe."""


def check_streams(method: TuningMethod, residency: Residency, device: torch.device = CPU) -> None:
    """Refuse to stream what would be slow or is not a sum of directions.

    Raises:
        ConfigError: saying what to change.
    """
    if not residency.streamed:
        return
    if device.type != "cpu":
        raise ConfigError(
            f"streamed weights are formed on the CPU, not on {device}",
            where="model.residency",
            hint="use fused, or --device cpu",
        )
    target = method.target
    if not target.streams or method.directions is None:
        raise ConfigError(
            f"{method.name} does not tune all weights alike along regenerated directions, which streaming needs",
            where="model.residency",
            hint="use fused",
        )
    if not method.directions.kind.sized:
        raise ConfigError(
            "a streamed model is rebuilt in every forward pass, which takes a pool that one transform sums",
            where="model.residency",
            hint="use fedkseed with method.directions = 'hadamard', or residency fused",
        )
    if method.estimate.differentiates:
        raise ConfigError(
            f"{method.estimate.title} takes derivatives of weights that the model holds, and streamed ones it does not",
            where="method.estimate",
            hint="use method.estimate = 'two_point', or residency fused",
        )
    if not isinstance(target, FullProjected):
        _check_part(method, residency)


def _check_part(method: TuningMethod, residency: Residency) -> None:
    """Refuse to stream some matrices along directions of full rank, or over a base that is rounded here."""
    if method.directions is None or not isinstance(method.directions.kind, RankOnePool):
        raise ConfigError(
            "weights that are not in memory get no gradients, which slopes along directions of full rank take",
            where="method.directions",
            hint="use method.directions = 'rank_one_pool', or residency fused",
        )
    if residency.grid is not None:
        raise ConfigError(
            f"{method.name} tunes some of the weights, and a base that is rounded here is tuned as a whole",
            where="model.residency",
            hint="use streamed over a GGUF file in 4-bit blocks (edgetune compress writes one), or residency fused",
        )
