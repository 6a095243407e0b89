"""Local optimisers and schedules: from an estimate to a step."""

from edgetune.updates.adam import Adam
from edgetune.updates.adamw import AdamW
from edgetune.updates.hold import Hold
from edgetune.updates.momentum import Momentum
from edgetune.updates.optimiser import Optimiser
from edgetune.updates.schedule import Constant, Cosine, Linear, Schedule
from edgetune.updates.sgd import Sgd

OPTIMISERS: dict[str, type[Optimiser]] = {kind.name: kind for kind in (Sgd, Momentum, Adam, AdamW, Hold)}
"""Local optimisers by the name that recipes use."""
SCHEDULES: dict[str, type[Schedule]] = {kind.name: kind for kind in (Constant, Linear, Cosine)}
"""Schedules by the name that recipes use."""

__all__ = [
    "OPTIMISERS",
    "SCHEDULES",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Hold",
    "Linear",
    "Momentum",
    "Optimiser",
    "Schedule",
    "Sgd",
]
