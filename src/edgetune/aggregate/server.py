"""What a server does with the devices' combined change: it takes it, or takes it for a gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from edgetune.aggregate.aggregator import Memory
from edgetune.core.errors import ConfigError
from edgetune.core.part import CHOSEN_LAYERS, FRESH, RESIDUALS, STEPPED, Part
from edgetune.core.residual import trained
from edgetune.core.update import Dense, Projected, Update

TOTAL = "coefficients"
"""Name of the one tensor that a pool's change is."""


class ServerStep(Part):
    """From the combined change of a round to the server's step; implementations are frozen values."""

    __slots__ = ()

    def start(self, state: Update, size: int) -> Memory:
        """Return the memory before the first round.

        Args:
            state: what is tuned.
            size: K, the size of the pool; 0 if there is none.
        """
        return {}

    @abstractmethod
    def step(self, change: Update, memory: Memory, size: int) -> Update:
        """Return the change of the state; `memory` is changed in place."""


@dataclass(frozen=True, slots=True)
class Take(ServerStep):
    """The change itself.

        w <- w + D

    Cost: nothing.
    Source: McMahan et al. 2017, arXiv:1602.05629.
    """

    name: ClassVar[str] = "none"

    def step(self, change: Update, memory: Memory, size: int) -> Update:
        """Return the change."""
        return change


@dataclass(frozen=True, slots=True)
class ServerMomentum(ServerStep):
    """FedAvgM: heavy-ball momentum with the combined change D for the negative gradient.

        m <- b m + D;   w <- w + r m

    For a pool, D is a vector of K numbers, and so is m: momentum on the weights, exactly.

    Args:
        rate: r, > 0.
        momentum: b, in [0, 1); 0 and a rate of 1 are plain averaging.

    Raises:
        ConfigError: if a number is out of its range.
    Cost: one number a tuned weight, or K.
    Source: Hsu, Qi and Brown 2019, arXiv:1909.06335.
    """

    rate: float = 1.0
    momentum: float = 0.9
    name: ClassVar[str] = "momentum"
    options: ClassVar[Mapping[str, str]] = {"server_rate": "rate", "server_momentum": "momentum"}

    def __post_init__(self) -> None:
        _check(self.rate, self.momentum)

    @property
    def refuses(self) -> frozenset[str]:
        """Directions and layers that a later round may not move, a product in the base, and another such step."""
        return frozenset({CHOSEN_LAYERS, FRESH, RESIDUALS, STEPPED})

    def start(self, state: Update, size: int) -> Memory:
        """Return zero moments, `server.m.NAME`."""
        return {f"server.m.{name}": torch.zeros_like(one) for name, one in _tensors(state, size)}

    def step(self, change: Update, memory: Memory, size: int) -> Update:
        """Return r m."""
        found = dict[str, torch.Tensor]()
        for name, one in _tensors(change, size):
            memory[f"server.m.{name}"] = self.momentum * memory[f"server.m.{name}"] + one
            found[name] = self.rate * memory[f"server.m.{name}"]
        return _like(change, found)


@dataclass(frozen=True, slots=True)
class ServerAdam(ServerStep):
    """FedAdam: Adam with the combined change D for the negative gradient, without bias correction.

        m <- b1 m + (1 - b1) D;   v <- b2 v + (1 - b2) D^2;   w <- w + r m / (sqrt(v) + t)

    v begins at t^2. For a pool, D, m and v are vectors of K numbers: Adam on the model `w0 + sum_k a_k z_k`.

    Args:
        rate: r, > 0: a weight (or coefficient) moves by about it in a round.
        momentum: b1, in [0, 1); b2 is 0.99.
        eps: t, > 0: changes far below it are scaled alike.

    Raises:
        ConfigError: if a number is out of its range.
    Cost: two numbers a tuned weight, or 2 K.
    Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2; t = 1e-3 and b2 = 0.99 there.
    """

    rate: float = 1e-2
    momentum: float = 0.9
    eps: float = 1e-3
    name: ClassVar[str] = "adam"
    options: ClassVar[Mapping[str, str]] = {
        "server_rate": "rate",
        "server_momentum": "momentum",
        "server_eps": "eps",
    }
    beta2: ClassVar[float] = 0.99

    def __post_init__(self) -> None:
        _check(self.rate, self.momentum)
        if not 0 < self.eps < float("inf"):
            raise ConfigError(f"the server's eps must be positive, not {self.eps}")

    @property
    def refuses(self) -> frozenset[str]:
        """Directions and layers that a later round may not move, a product in the base, and another such step."""
        return frozenset({CHOSEN_LAYERS, FRESH, RESIDUALS, STEPPED})

    def start(self, state: Update, size: int) -> Memory:
        """Return the moments before the first round, `server.m.NAME` and `server.v.NAME`."""
        found = dict[str, torch.Tensor]()
        for name, one in _tensors(state, size):
            found[f"server.m.{name}"] = torch.zeros_like(one)
            found[f"server.v.{name}"] = torch.full_like(one, self.eps**2)
        return found

    def step(self, change: Update, memory: Memory, size: int) -> Update:
        """Return r m / (sqrt(v) + t)."""
        found = dict[str, torch.Tensor]()
        for name, one in _tensors(change, size):
            m = self.momentum * memory[f"server.m.{name}"] + (1 - self.momentum) * one
            v = self.beta2 * memory[f"server.v.{name}"] + (1 - self.beta2) * one**2
            memory[f"server.m.{name}"], memory[f"server.v.{name}"] = m, v
            found[name] = self.rate * m / (v.sqrt() + self.eps)
        return _like(change, found)


def _check(rate: float, momentum: float) -> None:
    if not 0 < rate < float("inf"):
        raise ConfigError(f"the server's rate must be positive, not {rate}")
    if not 0 <= momentum < 1:
        raise ConfigError(f"the server's momentum must be at least 0 and below 1, not {momentum}")


def _tensors(update: Update, size: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what devices move of an update, as tensors: a pool's is one vector of K coefficients."""
    if isinstance(update, Dense):
        yield from ((name, one.detach()) for name, one in trained(update).tensors.items())
        return
    total = np.zeros(size, np.float32)
    np.add.at(total, update.keys, update.coefficients)
    yield TOTAL, torch.from_numpy(total)


def _like(change: Update, found: dict[str, torch.Tensor]) -> Update:
    if isinstance(change, Dense):
        return Dense(found)
    coefficients = found[TOTAL].numpy()
    return Projected(np.arange(len(coefficients)), coefficients).moving()
