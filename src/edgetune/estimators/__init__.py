"""Estimators: from a batch and directions to an estimate of the gradient."""

from edgetune.estimators.accumulate import Accumulate
from edgetune.estimators.backprop import Backprop
from edgetune.estimators.clipped import Clipped, ClippedVector
from edgetune.estimators.estimator import Estimator
from edgetune.estimators.jvp import Jvp
from edgetune.estimators.one_sided import OneSided
from edgetune.estimators.standardised import Standardised
from edgetune.estimators.two_point import TwoPoint

ESTIMATES: dict[str, type[Estimator]] = {
    kind.name: kind for kind in (TwoPoint, OneSided, Standardised, Jvp, Clipped, ClippedVector, Backprop)
}
"""Estimators by the name that recipes use."""

__all__ = [
    "ESTIMATES",
    "Accumulate",
    "Backprop",
    "Clipped",
    "ClippedVector",
    "Estimator",
    "Jvp",
    "OneSided",
    "Standardised",
    "TwoPoint",
]
