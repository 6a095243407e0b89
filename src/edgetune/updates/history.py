"""Optimiser states of projected updates: a few numbers for every direction that was seen."""

from __future__ import annotations

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.update import Projected, Update


def seen(state: dict[str, torch.Tensor], estimate: Update, names: tuple[str, ...]) -> torch.Tensor:
    """Let a state take in the directions of an estimate, and return its slopes in the state's order.

    Args:
        state: changed in place: `keys` int64 [k] and every named tensor float32 [k] grow by the new directions, with
            zeros; the oldest come first.
        estimate: slopes.
        names: the tensors that hold one number a direction.

    Returns:
        Float32 [k]: the slope of every direction in `state["keys"]`, 0 where the estimate says nothing.

    Raises:
        ConfigError: if the estimate is dense.
    Cost: a few passes over k numbers.
    """
    if not isinstance(estimate, Projected):
        raise ConfigError("momentum of coefficients needs slopes", hint="use adamw with dense gradients")
    merged = estimate.merged()
    places = {key: place for place, key in enumerate(state["keys"].tolist())}
    at = [places.setdefault(key, len(places)) for key in merged.keys.tolist()]
    new = list(places)[len(state["keys"]) :]
    state["keys"] = torch.cat([state["keys"], torch.tensor(new, dtype=torch.int64)])
    for name in names:
        state[name] = torch.cat([state[name], torch.zeros(len(new), dtype=torch.float32)])
    slopes = torch.zeros(len(places), dtype=torch.float32)
    slopes[torch.tensor(at, dtype=torch.int64)] = torch.from_numpy(merged.coefficients)
    return slopes


def forget(state: dict[str, torch.Tensor], names: tuple[str, ...], history: int) -> None:
    """Drop the oldest directions until at most `history` are left; 0 keeps them all."""
    for name in ("keys", *names):
        if history and len(state[name]) > history:
            state[name] = state[name][-history:].clone()


def step_of(state: dict[str, torch.Tensor], coefficients: torch.Tensor) -> Projected:
    """Return coefficients, float32 [k], of the state's directions as an update."""
    return Projected(state["keys"].numpy().copy(), coefficients.numpy().copy())
