"""Slopes that hide every single record: one forward pass a point, clipped record by record, with noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from edgetune.core import secret
from edgetune.core.batch import Batch, Objective, records_of
from edgetune.core.part import CHANCE, NOISE, RECORDS
from edgetune.core.protected import Protected
from edgetune.core.update import Estimate, Projected
from edgetune.estimators.slopes import Sloped, check_slopes

Slopes = npt.NDArray[np.float64]
TINY = 1e-300
"""Takes the place of a length of 0, which no bound shortens."""


class Private(Sloped, Protected):
    """What estimates declare that clip each record's slopes and add noise to their sum.

        d_ik = (l_i(w + eps z_k) - l_i(w - eps z_k)) / (2 eps),   l_i: mean loss of record i's response tokens
        g_k = (sum_i clip(d_i)_k + sigma C n_k) / B,              estimate = (1 / K) sum_k g_k z_k

    B is the number of records that was expected, not the one that came: that is nobody's to know. A slope that is NaN
    or infinite counts as 0 and is counted; a batch without records is noise alone. The noise is the operating system's.

    Not covered: the number of records of a device, which is taken to be public; what rounding lets the other records of
    a forward pass change in a record's loss; timing.
    """

    __slots__ = ()
    eps: float
    directions: int
    options: ClassVar[Mapping[str, str]] = {**Sloped.options, **Protected.noise_options}

    @property
    def gives(self) -> frozenset[str]:
        """Slopes that may be told to anyone."""
        return super().gives | {RECORDS, NOISE}

    @property
    def needs(self) -> frozenset[str]:
        """Directions, and batches of the kind that the accountant counts."""
        return super().needs | {CHANCE}

    @property
    def passes(self) -> int:
        """Forward passes of a step."""
        return 2 * self.directions

    @abstractmethod
    def clipped(self, slopes: Slopes) -> Slopes:
        """Return float64 [directions, records] so that a record's part of one release is no longer than `clip`."""

    @torch.no_grad()
    def __call__(self, tuned: Any, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the mean loss of the records, which is not protected, and the noisy slopes along `keys`."""
        losses, slopes = _of_records(tuned, objective, batch, keys, self.eps)
        fine = np.isfinite(slopes)
        summed = self.clipped(np.where(fine, slopes, 0.0)).sum(axis=1)
        noisy = summed + self.deviation * secret.normal(len(keys)) if self.deviation else summed
        expected = batch.expected or max(1, len(batch.input_ids))
        values = (noisy / (expected * len(keys))).astype(np.float32)
        sound = losses[np.isfinite(losses)]
        loss = float(sound.mean()) if len(sound) else 0.0
        return Estimate(loss, Projected(np.array(keys, np.int64), values), int((~fine).sum()))


@dataclass(frozen=True, slots=True)
class Clipped(Private):
    """DPZero: every slope is clipped by itself; each direction of a step is a release.

        clip(d)_ik = d_ik min(1, C / |d_ik|)

    Args:
        eps: perturbation radius, > 0, in units of the weights.
        clip, epsilon, noise_multiplier, delta: see `core.protected.Protected`; C in nats a unit of the direction.
        directions: K, directions a step, at least 1.

    Raises:
        ConfigError: if a number cannot be used.
    Cost: 2 K forward passes.
    Source: Zhang et al. 2024, arXiv:2310.09639, Algorithm 2; Liang137/DPZero, which draws the noise from the generator
        of the direction, so that whoever knows the seed can take it away again, and counts K releases as one.
    """

    eps: float
    clip: float
    epsilon: float
    directions: int = 1
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    name: ClassVar[str] = "clipped"

    def __post_init__(self) -> None:
        check_slopes(self.eps, self.directions)
        self.check_noise()

    @property
    def releases(self) -> int:
        """One a direction."""
        return self.directions

    def clipped(self, slopes: Slopes) -> Slopes:
        """Return every slope cut to at most C."""
        return np.clip(slopes, -self.clip, self.clip)


@dataclass(frozen=True, slots=True)
class ClippedVector(Private):
    """DP-AggZO: a record's slopes along all directions of a step are clipped as one vector; a step is one release.

        clip(d)_i = d_i min(1, C / |d_i|_2)

    Noise along K directions has the length sqrt(K) sigma C, while K slopes of a record share one bound: for the same
    privacy a step sees more of the gradient than K steps along one direction.

    Args:
        eps, clip, epsilon, directions, noise_multiplier, delta: as `Clipped`.

    Raises:
        ConfigError: if a number cannot be used.
    Cost: 2 K forward passes.
    Source: DP-AggZO, USENIX Security 2025; erguteb/dp-aggzo.
    """

    eps: float
    clip: float
    epsilon: float
    directions: int = 1
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    name: ClassVar[str] = "clipped_vector"

    def __post_init__(self) -> None:
        check_slopes(self.eps, self.directions)
        self.check_noise()

    def clipped(self, slopes: Slopes) -> Slopes:
        """Return every record's vector cut to a length of at most C."""
        largest = np.maximum(np.abs(slopes).max(axis=0), TINY)  # squares of large slopes would overflow
        lengths = largest * np.sqrt(((slopes / largest) ** 2).sum(axis=0))
        with np.errstate(over="ignore"):
            return np.asarray(slopes * np.minimum(1.0, self.clip / np.maximum(lengths, TINY)))


def _of_records(
    tuned: Any, objective: Objective, batch: Batch, keys: Sequence[int], eps: float
) -> tuple[npt.NDArray[np.float64], Slopes]:
    """Return every record's mean loss over all points [records], and its slopes [directions, records]."""
    if not len(batch.input_ids):
        return np.zeros(0), np.zeros((len(keys), 0))
    losses, slopes = [], []
    for key in keys:
        sums, counts = tuned.record_losses(records_of(objective), batch, key, (eps, -eps))
        each = sums.cpu().double().numpy() / np.maximum(counts.cpu().double().numpy(), 1)
        with np.errstate(invalid="ignore"):  # infinity less infinity is no number, and is dropped as one
            losses.append(each.mean(axis=0))
            slopes.append((each[0] - each[1]) / (2 * eps))
    return np.mean(losses, axis=0), np.stack(slopes)
