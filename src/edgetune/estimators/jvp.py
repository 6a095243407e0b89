"""The exact slope along a direction by forward-mode differentiation: one pass, no radius, no back-propagation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgetune.core.batch import Batch, Objective
from edgetune.core.errors import ConfigError
from edgetune.core.part import DIFFERENTIATED, DIRECTIONS, SLOPES
from edgetune.core.update import Estimate
from edgetune.estimators.estimator import Estimator
from edgetune.estimators.slopes import check_slopes, mean_of_slopes

make_dual: Callable[..., torch.Tensor] = forward_ad.make_dual
unpack_dual: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = forward_ad.unpack_dual


@dataclass(frozen=True, slots=True)
class Jvp(Estimator):
    """The derivative of the loss along n directions, averaged.

        g_i = <dL/dw, z_i>,   estimate = (1 / n) sum_i g_i z_i

    What the two-point slope tends to as eps goes to 0, and agrees with to eps^2.

    Args:
        directions: n, directions a step, at least 1.

    Raises:
        ConfigError: if n is below 1.
    Cost: n passes of about two forward passes each; a tangent beside every live activation, and the direction of all
        tuned weights, which is little for an adapter and the model once more for all weights.
    Source: Baydin et al. 2022, arXiv:2202.08587; Xu et al. 2023, arXiv:2308.13894 (finite differences in its code).
    """

    directions: int = 1
    name: ClassVar[str] = "jvp"
    options: ClassVar[Mapping[str, str]] = {"directions_per_step": "directions"}

    def __post_init__(self) -> None:
        check_slopes(1.0, self.directions)

    @property
    def gives(self) -> frozenset[str]:
        """Slopes, one number a direction."""
        return frozenset({SLOPES, DIFFERENTIATED})

    @property
    def needs(self) -> frozenset[str]:
        """Directions to take slopes along."""
        return frozenset({DIRECTIONS})

    @property
    def differentiates(self) -> bool:
        """Yes."""
        return True

    @property
    def passes(self) -> int:
        """Two a direction: a tangent costs about what its value does."""
        return 2 * self.directions

    @torch.no_grad()
    def __call__(self, tuned: Any, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the loss at the present weights and the mean slope over the directions `keys`.

        Raises:
            ConfigError: if the model does not hold its weights: along a pool of rank one, or streamed.
        """
        if tuned.reading is not None:
            raise ConfigError(
                "a derivative along a direction is one of weights that the model holds, and these are read elsewhere",
                where="method.estimate",
                hint="method.directions = hadamard with residency fused, or method.estimate = two_point",
            )
        _warm_up()
        model, weights = tuned.model, dict(tuned.named_weights())

        found = []
        for key in keys:
            # Fused attention has no forward mode.
            with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
                direction = tuned.direction(key)
                dual = {name: make_dual(one, direction[name]) for name, one in weights.items()}
                value, slope = unpack_dual(objective(_Called(model, dual), batch))
                found.append((float(value), 0.0 if slope is None else float(slope)))
        return mean_of_slopes(keys, [value for value, _ in found], [slope for _, slope in found])


@cache
def _warm_up() -> None:
    """Let torch load its forward mode, for which it compiles functions in a way that it warns of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with forward_ad.dual_level():
            make_dual(torch.zeros(1), torch.zeros(1))


class _Called(nn.Module):
    """A module that computes with other values of some of its parameters."""

    def __init__(self, model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._called, self._values = [model], values  # in a list: it is not a part of this one

    def forward(self, **options: Any) -> Any:
        return functional_call(self._called[0], dict(self._values), (), options)
