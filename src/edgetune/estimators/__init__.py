"""Estimators: from a batch and directions to an estimate of the gradient."""

from edgetune.estimators.accumulate import Accumulate
from edgetune.estimators.backprop import Backprop
from edgetune.estimators.one_sided import OneSided
from edgetune.estimators.two_point import TwoPoint

Estimator = TwoPoint | OneSided | Backprop

__all__ = ["Accumulate", "Backprop", "Estimator", "OneSided", "TwoPoint"]
