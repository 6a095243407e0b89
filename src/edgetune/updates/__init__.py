"""Local optimisers: from an estimate to a step."""

from edgetune.updates.adam import Adam
from edgetune.updates.adamw import AdamW
from edgetune.updates.momentum import Momentum
from edgetune.updates.schedule import Constant, Cosine, Linear, Schedule
from edgetune.updates.sgd import Sgd

Optimiser = Sgd | Momentum | Adam | AdamW

__all__ = ["Adam", "AdamW", "Constant", "Cosine", "Linear", "Momentum", "Optimiser", "Schedule", "Sgd"]
