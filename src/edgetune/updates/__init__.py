"""Local optimisers: from an estimate to a step."""

from edgetune.updates.adamw import AdamW
from edgetune.updates.sgd import Sgd

Optimiser = Sgd | AdamW

__all__ = ["AdamW", "Optimiser", "Sgd"]
