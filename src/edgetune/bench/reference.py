"""What the published code does, in plain torch: seed a generator, draw, add, for every tensor and every seed.

Our own writing, kept to measure against; nothing else uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from edgetune.core.batch import Batch, response_loss


def draw_and_add(weights: Iterable[torch.Tensor], seed: int, scale: float) -> None:
    """Add a gaussian direction in place, tensor by tensor.

        w <- w + scale * N(0, I; seed)

    Args:
        weights: changed in place; one generator a device.
        seed: of torch's own generator.
        scale: signed.
    Source: the loop of MeZO's `zo_perturb_parameters`.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for weight in weights:
        device = weight.device
        generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
        z = torch.normal(0.0, 1.0, weight.shape, generator=generator, dtype=weight.dtype, device=device)
        weight.add_(z, alpha=scale)


def rebuild(weights: Sequence[torch.Tensor], terms: Iterable[tuple[int, float]]) -> None:
    """Add every seed's direction, one pass over the model a seed, as FedKSeed's clients catch up."""
    for seed, coefficient in terms:
        draw_and_add(weights, seed, coefficient)


@torch.no_grad()
def step_in_place(model: nn.Module, batch: Batch, *, seed: int, eps: float, lr: float) -> float:
    """Take one MeZO step as published: +eps, forward, -2 eps, forward, +eps, update; four draws of the direction.

    Returns:
        The slope.
    Source: Malladi et al. 2023, arXiv:2305.17333, Algorithm 1.
    """
    weights = [weight.data for weight in model.parameters()]
    draw_and_add(weights, seed, eps)
    above = float(response_loss(model, batch))
    draw_and_add(weights, seed, -2 * eps)
    below = float(response_loss(model, batch))
    draw_and_add(weights, seed, eps)
    slope = (above - below) / (2 * eps)
    draw_and_add(weights, seed, -lr * slope)
    return slope
