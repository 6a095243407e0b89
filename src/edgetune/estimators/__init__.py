"""Estimators: from a batch and directions to an estimate of the gradient."""

from edgetune.estimators.accumulate import Accumulate
from edgetune.estimators.backprop import Backprop
from edgetune.estimators.backprop_slopes import BackpropSlopes
from edgetune.estimators.by_record import ByRecord
from edgetune.estimators.clipped import Clipped, ClippedVector
from edgetune.estimators.estimator import Estimator
from edgetune.estimators.jvp import Jvp
from edgetune.estimators.one_sided import OneSided
from edgetune.estimators.skip_gradient import SkipGradient
from edgetune.estimators.skip_slopes import SkipSlopes
from edgetune.estimators.standardised import Standardised
from edgetune.estimators.two_point import TwoPoint

ESTIMATES: dict[str, type[Estimator]] = {
    kind.name: kind
    for kind in (
        TwoPoint,
        OneSided,
        Standardised,
        ByRecord,
        Jvp,
        Clipped,
        ClippedVector,
        SkipGradient,
        SkipSlopes,
        Backprop,
        BackpropSlopes,
    )
}
"""Estimators by the name that recipes use."""

__all__ = [
    "ESTIMATES",
    "Accumulate",
    "Backprop",
    "BackpropSlopes",
    "ByRecord",
    "Clipped",
    "ClippedVector",
    "Estimator",
    "Jvp",
    "OneSided",
    "SkipGradient",
    "SkipSlopes",
    "Standardised",
    "TwoPoint",
]
