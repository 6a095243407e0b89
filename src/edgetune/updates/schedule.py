"""Learning-rate schedules: the share of the learning rate that a step takes, folded into its coefficients."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgetune.core.errors import ConfigError
from edgetune.core.part import RATED, Part


class Schedule(Part):
    """The share of the learning rate that a step takes; implementations are frozen values."""

    __slots__ = ()

    @property
    def gives(self) -> frozenset[str]:
        """A rate that changes."""
        return frozenset({RATED})

    @abstractmethod
    def rate(self, step: int) -> float:
        """Return the factor of a step, in [0, 1]; steps count from 0 over all rounds."""


@dataclass(frozen=True, slots=True)
class Constant(Schedule):
    """The whole learning rate after a linear warm-up.

        rate(t) = min(1, t / warmup)

    Args:
        warmup: steps, at least 0.

    Raises:
        ConfigError: if warmup is negative.
    Source: as `transformers.get_constant_schedule_with_warmup`.
    """

    warmup: int = 0
    name: ClassVar[str] = "constant"
    options: ClassVar[Mapping[str, str]] = {"warmup": "warmup"}

    def __post_init__(self) -> None:
        _check(self.warmup, None)

    @property
    def gives(self) -> frozenset[str]:
        """A rate that changes, during a warm-up."""
        return frozenset({RATED} if self.warmup else set())

    def rate(self, step: int) -> float:
        """Return the factor of a step, in [0, 1]; steps count from 0 over all rounds."""
        return _warm(step, self.warmup)


class Decay(Schedule):
    """A schedule that ends: it cannot be chosen without saying when."""

    __slots__ = ()
    options: ClassVar[Mapping[str, str]] = {"schedule_steps": "steps", "warmup": "warmup"}


@dataclass(frozen=True, slots=True)
class Linear(Decay):
    """A linear warm-up, then a linear decay to nothing.

        rate(t) = t / warmup,   then   max(0, (steps - t) / (steps - warmup))

    Args:
        steps: step at which the rate is 0, at least 1.
        warmup: steps, at least 0, below `steps`.

    Raises:
        ConfigError: if a number is out of its range.
    Source: as `transformers.get_linear_schedule_with_warmup`.
    """

    steps: int
    warmup: int = 0
    name: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        _check(self.warmup, self.steps)

    def rate(self, step: int) -> float:
        """Return the factor of a step, in [0, 1]; steps count from 0 over all rounds."""
        if step < self.warmup:
            return _warm(step, self.warmup)
        return max(0.0, (self.steps - step) / (self.steps - self.warmup))


@dataclass(frozen=True, slots=True)
class Cosine(Decay):
    """A linear warm-up, then half a cosine down to nothing.

        rate(t) = t / warmup,   then   (1 + cos(pi (t - warmup) / (steps - warmup))) / 2

    Args:
        steps: step from which the rate is 0, at least 1.
        warmup: steps, at least 0, below `steps`.

    Raises:
        ConfigError: if a number is out of its range.
    Source: Loshchilov and Hutter 2016, arXiv:1608.03983; `transformers.get_cosine_schedule_with_warmup`.
    """

    steps: int
    warmup: int = 0
    name: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        _check(self.warmup, self.steps)

    def rate(self, step: int) -> float:
        """Return the factor of a step, in [0, 1]; steps count from 0 over all rounds."""
        if step < self.warmup:
            return _warm(step, self.warmup)
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        return (1 + math.cos(math.pi * done)) / 2


def _warm(step: int, warmup: int) -> float:
    return min(1.0, step / warmup) if warmup else 1.0


def _check(warmup: int, steps: int | None) -> None:
    if warmup < 0 or (steps is not None and not warmup < steps):
        raise ConfigError(f"a schedule of {steps} steps cannot warm up for {warmup}")
