"""A mean that hides every device: clipped vectors of coefficients, and noise at the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgetune.aggregate.aggregator import Aggregator, Memory, ordered
from edgetune.core import secret
from edgetune.core.errors import ConfigError
from edgetune.core.part import NOISE, SHARED, SLOPES, STALE
from edgetune.core.protected import Protected
from edgetune.core.update import Contribution, Projected, Update


@dataclass(frozen=True, slots=True)
class PrivateMean(Aggregator, Protected):
    """Average what devices send so that no device's part can be told from the sum.

        update_k = (sum_c b_ck min(1, C / |b_c|_2) + sigma C n_k) / m      b_c: coefficients of device c, m devices

    All devices of a round move the same K directions, so that the noise has K numbers and the length sqrt(K) sigma C,
    however many weights the model has. Directions that nobody moved get noise as well. The server is trusted: it sees
    what devices send. Which devices a round asks follows from the run's seed, so that their choice hides nobody: a
    round is a release about each device that it asks. How many answered is taken to be public.

    Args:
        clip: C, in units of coefficients, which are slopes times the learning rate.
        epsilon, noise_multiplier, delta: see `core.protected.Protected`.

    Raises:
        ConfigError: if a number cannot be used.
    Cost: K numbers a device.
    Source: McMahan et al. 2018, arXiv:1710.06963 (DP-FedAvg), on coefficients instead of weights.
    """

    clip: float
    epsilon: float
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    name: ClassVar[str] = "private_mean"
    unit: ClassVar[str] = "device"
    complete: ClassVar[bool] = True
    options: ClassVar[Mapping[str, str]] = Protected.noise_options

    def __post_init__(self) -> None:
        self.check_noise()

    @property
    def needs(self) -> frozenset[str]:
        """Slopes along directions that all devices take."""
        return frozenset({SLOPES, SHARED})

    @property
    def refuses(self) -> frozenset[str]:
        """Another noise: what devices send is theirs to protect, or the server's. Replies of other rounds."""
        return frozenset({NOISE, STALE})

    def combine(self, contributions: Sequence[Contribution], state: Update, memory: Memory) -> Update | None:
        """Return the noisy mean; None if no device answered.

        Raises:
            ConfigError: if devices did not send the same directions.
        """
        told = ordered(contributions)
        projected = [one.update for one in told if isinstance(one.update, Projected)]
        if not projected:
            return None
        keys = projected[0].keys
        if len(projected) < len(told) or any(not np.array_equal(one.keys, keys) for one in projected):
            raise ConfigError("the devices of a round did not all move the same directions")
        summed = np.zeros(len(keys))
        for one in projected:
            vector = one.coefficients.astype(np.float64)
            length = float(np.linalg.norm(vector))
            summed += vector * (self.clip / length if length > self.clip else 1.0)
        if self.deviation:
            summed += self.deviation * secret.normal(len(keys))
        return Projected(keys, (summed / len(projected)).astype(np.float32))
