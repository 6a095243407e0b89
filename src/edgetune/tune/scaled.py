"""Layer-wise scaling of directions: tensors of different size are perturbed and moved by different amounts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.tuned import Space
from edgetune.core.update import Projected

LIMIT = 3
"""Greatest power of two of a factor found from norms: a bias of zeros would otherwise be perturbed without bound."""


class ScaledSpace:
    """Directions times one factor a tensor (see `core.tuned.Space`).

        z'(name) = f(name) z(name)

    Args:
        space: the directions.
        factors: by parameter name, finite; 1 for a name that is not there.
    """

    def __init__(self, space: Space, factors: Mapping[str, float]) -> None:
        self._space, self._factors = space, factors

    @property
    def alignment(self) -> int:
        """As the directions'."""
        return self._space.alignment

    @property
    def pooled(self) -> bool:
        """As the directions'."""
        return self._space.pooled

    @property
    def transforms(self) -> bool:
        """As the directions'."""
        return self._space.transforms

    def axpy(
        self, out: torch.Tensor, base: torch.Tensor, coefficient: float, name: str, seed: int, start: int = 0
    ) -> None:
        """Form `out = base + coefficient * f * z(seed)` of a whole tensor or of the part from `start` on."""
        self._space.axpy(out, base, coefficient * self._factors.get(name, 1.0), name, seed, start)

    def replay(self, out: torch.Tensor, base: torch.Tensor, update: Projected, name: str) -> None:
        """Form `out = base + f * sum_k a_k z_k`; each product f a_k is rounded to float32."""
        self._space.replay(out, base, update.scaled(self._factors.get(name, 1.0)), name)

    def follow(
        self,
        weight: torch.Tensor,
        remainder: torch.Tensor,
        update: Projected,
        name: str,
        base: torch.Tensor | None = None,
    ) -> None:
        """Add `f a_i z_i` one after the other; each product f a_i is rounded to float32."""
        self._space.follow(weight, remainder, update.scaled(self._factors.get(name, 1.0)), name, base)


@dataclass(frozen=True, slots=True)
class ByNorm:
    """Factors from the norms of the base's tensors.

        c_t = 2^round(log2 |w_t| - mean_s log2 |w_s|),   between 2^-3 and 2^3; a tensor of zeros has 2^-3

    Powers of two, so that every machine finds the same factors and 1 / c_t is exact.

    Source: Malladi et al. 2023, arXiv:2305.17333, appendix B ("modify variance" by parameter norm); rounding and
    limits are this package's.
    """

    def factors(self, weights: Iterable[tuple[str, torch.Tensor]]) -> dict[str, float]:
        """Return the factor of every tensor."""
        logs = {}
        for name, weight in weights:
            squares = float((weight.detach().double() ** 2).sum())
            logs[name] = math.log2(squares) / 2 if squares > 0 else -math.inf
        finite = [log for log in logs.values() if math.isfinite(log)]
        middle = sum(finite) / len(finite) if finite else 0.0
        return {name: 2.0 ** round(min(LIMIT, max(-LIMIT, log - middle))) for name, log in logs.items()}


@dataclass(frozen=True, slots=True)
class ByTable:
    """Given factors.

    Args:
        table: pairs of (part of a parameter name, c > 0); the first pair that fits counts, 1 where none does.

    Raises:
        ConfigError: if a factor is not a number between 1e-6 and 1e6.
    """

    table: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        for part, factor in self.table:
            if not 1e-6 <= factor <= 1e6:
                raise ConfigError(f"a layer's scale must be between 1e-6 and 1e6, not {factor}", where=part)

    def factors(self, weights: Iterable[tuple[str, torch.Tensor]]) -> dict[str, float]:
        """Return the factor of every tensor, rounded to float32.

        Raises:
            ConfigError: if a part fits no parameter.
        """
        names = [name for name, _ in weights]
        for part, _ in self.table:
            if not any(part in name for name in names):
                raise ConfigError("no parameter has this in its name", where=f"layer scale {part!r}")
        found = {name: next((c for part, c in self.table if part in name), 1.0) for name in names}
        return {name: float(torch.tensor(factor, dtype=torch.float32)) for name, factor in found.items()}


Scaling = ByNorm | ByTable
