"""Which share of the layers is kept, by the spectrum of the loss's Hessian over the prompts."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import erf, sqrt
from typing import ClassVar

import numpy as np

from edgetune.core.errors import ConfigError
from edgetune.core.part import Part
from edgetune.survey.curvature import Curvature
from edgetune.survey.lanczos import Spectrum

SMOOTHING = 1e-5
"""Variance of the gaussian that stands for an eigenvalue, by the spectrum's width or 1, whichever is more."""
SETTLED, WIDTH, HALVINGS = 0.005, 0.1, 60
CONVERGED = 1e-3
"""Share of the spectrum's size by which a Ritz value may be wrong that bounds a gap."""


class KeepRule(Part):
    """From the curvature of a device's loss to a share of the layers; implementations are frozen values."""

    __slots__ = ()

    @abstractmethod
    def ratio(self, curvature: Curvature, steps: int) -> float:
        """Return a number in [0, 1], NaN if the loss has no curvature that is a number.

        Args:
            curvature: at the initial prompts.
            steps: products that the spectrum may take.
        """


@dataclass(frozen=True, slots=True)
class Gap(KeepRule):
    """The published rule: what lies below the first gap of the spectrum that the loss's own bending cannot close.

        ratio = j / d,   j the smallest rank with lambda_{j+1} - lambda_j > 4 l;   1 if there is none

    l is the Lipschitz constant of the base function (`Curvature.lipschitz`). Few products find the ends of the spectrum
    and not its middle, so that a gap counts where both its sides have converged, and j / d is the weight below it.

    Args:
        radius: standard deviation of the elements of the shift that l is measured at, > 0; initial prompts have 0.1.

    Raises:
        ConfigError: if radius is not above 0.
    Of the embedded model l is 0.02 to 0.04 at radius 0.1 and no gap above 0.1 exists: everything is kept. At radius
    0.01 the ratio is 0.9995.

    Cost: `steps` products for the spectrum, 2 min(steps, 10) for l, and three graphs.
    Source: Che et al. 2023, arXiv:2310.15080; the paper's rule, which its code does not have.
    """

    radius: float = 0.1
    name: ClassVar[str] = "gap"

    def __post_init__(self) -> None:
        if not 0 < self.radius < float("inf"):
            raise ConfigError(f"a Lipschitz constant is measured at a distance above 0, not {self.radius}")

    def ratio(self, curvature: Curvature, steps: int) -> float:
        """Return the weight below the gap."""
        lipschitz = curvature.lipschitz(self.radius, min(steps, 10))
        return below_the_gap(curvature.spectrum(steps), lipschitz)


@dataclass(frozen=True, slots=True)
class Density(KeepRule):
    """The official code's rule: the mass above a threshold, once that no longer depends on the threshold.

        r(t) = share of eigenvalues above t, each smoothed by a gaussian
        t = 0, w, 2w, ...: r(t) is the ratio when three steps change it by less than 0.005 each;
        if it falls below r(0) / 2 before, again with w / 2, from w = 0.1

    The code sums 10,000 bins of the smoothed density, cut off at its ends; here r is its integral. There the search
    need not end. Where most eigenvalues are nearer to 0 than the gaussians are wide (0.003 at least), r(0) is about
    1/2 whatever the loss, and the ratio lies between that and its half: 0.25 to 0.49 of the embedded model, 0.5 there.

    Cost: `steps` products.
    Source: llm-eff/FedPepTAO, get_ratio.py; 50 products and one vector there.
    """

    name: ClassVar[str] = "density"

    def ratio(self, curvature: Curvature, steps: int) -> float:
        """Return the settled mass."""
        return settled_mass(curvature.spectrum(steps))


KEEP_RULES: dict[str, type[KeepRule]] = {kind.name: kind for kind in (Gap, Density)}
"""Rules by the name that recipes use."""


def below_the_gap(spectrum: Spectrum, lipschitz: float) -> float:
    """Return the weight of the eigenvalues below the first gap above 4 l, 1 if there is none; see `Gap`."""
    if not np.isfinite([lipschitz, *spectrum.values]).all():
        return float("nan")
    sure = spectrum.errors <= CONVERGED * spectrum.size
    wide = np.diff(spectrum.values) > 4 * lipschitz
    found = np.flatnonzero(wide & sure[1:] & sure[:-1])
    return float(spectrum.weights[: found[0] + 1].sum()) if len(found) else 1.0


def settled_mass(spectrum: Spectrum) -> float:
    """Return the mass above a threshold that settles; see `Density`.

    As r is smooth and never rises, a small enough w settles at once; after 60 halvings r(0) is the answer in any case.
    """
    if not np.isfinite(spectrum.values).all():
        return float("nan")
    width = WIDTH
    for _ in range(HALVINGS):
        masses = [mass_above(spectrum, 0.0)]
        while masses[-1] >= masses[0] / 2:
            masses.append(mass_above(spectrum, len(masses) * width))
            if len(masses) > 3 and np.all(np.abs(np.diff(masses[-4:])) < SETTLED):
                return masses[-1]
        width /= 2
    return masses[0]


def mass_above(spectrum: Spectrum, threshold: float) -> float:
    """Return the share of eigenvalues above a threshold, each smoothed by a gaussian."""
    spread = sqrt(SMOOTHING * max(1.0, float(np.ptp(spectrum.values))))
    above = [0.5 * (1 + erf((value - threshold) / (spread * sqrt(2)))) for value in spectrum.values]
    return float(np.dot(spectrum.weights, above))
