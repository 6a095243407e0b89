"""Tuned handles: a base plus an update, ready to run."""

from edgetune.tune.adapter import AdapterTuned
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.streamed import StreamedTuned
from edgetune.tune.targets import FullProjected, Lora, Target

__all__ = ["AdapterTuned", "FullProjected", "Lora", "ProjectedTuned", "StreamedTuned", "Target"]
