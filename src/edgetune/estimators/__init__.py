"""Estimators: from a batch and a direction to an estimate of the gradient."""

from edgetune.estimators.backprop import Backprop
from edgetune.estimators.two_point import TwoPoint

Estimator = TwoPoint | Backprop

__all__ = ["Backprop", "Estimator", "TwoPoint"]
