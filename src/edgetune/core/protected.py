"""What parts declare that hide a record or a device by clipping and noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from edgetune.core.errors import ConfigError
from edgetune.core.part import STALE, Part

LARGEST = 1e6
"""Greatest noise multiplier: more hides everything there is to learn."""


class Protected(Part):
    """A part that releases sums of bounded contributions with Gaussian noise.

        sum_i x_i + sigma C n,   |x_i| <= C,   n normal of variance 1

    The presence of one contributor changes the sum by at most C (add or remove one), so that a release is a Gaussian
    mechanism of noise multiplier sigma. Where another record in its place counts as the neighbour, C is twice as large:
    the multiplier is halved.

    Args:
        clip: C > 0; infinite only without noise.
        noise_multiplier: sigma, at least 0; 0 with a target is found before a run.
        epsilon: what all releases of a run may spend together at `delta`; 0 for no target.
        delta: in (0, 1).
    """

    __slots__ = ()
    clip: float
    noise_multiplier: float
    epsilon: float
    delta: float
    unit: ClassVar[str] = "record"
    """What is hidden: a record, or a device with all its records."""
    noise_options: ClassVar[Mapping[str, str]] = {
        name: name for name in ("clip", "noise_multiplier", "epsilon", "delta")
    }

    @property
    def refuses(self) -> frozenset[str]:
        """Replies that count in another round than the one that drew their device: the accountant knows no such."""
        return frozenset({STALE})

    @property
    def releases(self) -> int:
        """Releases of a local step, or of a round where a device is hidden."""
        return 1

    @property
    def settled(self) -> bool:
        """Whether the noise is known."""
        return self.noise_multiplier > 0 or self.epsilon == 0

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise of a sum, sigma C.

        Raises:
            ConfigError: if a target stands there and nobody has found the noise for it.
        """
        if not self.settled:
            raise ConfigError(
                f"the noise for epsilon = {self.epsilon:g} follows from the data and the length of a run",
                hint="name a noise_multiplier, and epsilon = 0",
            )
        return self.noise_multiplier * self.clip if self.noise_multiplier else 0.0

    def check_noise(self) -> None:
        """Refuse numbers that protect nothing, or cannot be.

        Raises:
            ConfigError: naming the number.
        """
        rules = [
            (not self.clip > 0, f"clip must be a positive number, not {self.clip}"),
            (
                not 0 <= self.noise_multiplier <= LARGEST,
                f"noise_multiplier must be between 0 and {LARGEST:g}, not {self.noise_multiplier}",
            ),
            (not 0 <= self.epsilon < math.inf, f"epsilon must be at least 0, not {self.epsilon}"),
            (not 0 < self.delta < 1, f"delta must be between 0 and 1, not {self.delta}"),
            (
                math.isinf(self.clip) and (self.noise_multiplier > 0 or self.epsilon > 0),
                "noise for contributions of any size would be infinite: clip must be finite",
            ),
        ]
        for broken, sentence in rules:
            if broken:
                raise ConfigError(sentence)
