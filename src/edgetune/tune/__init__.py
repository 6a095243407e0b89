"""Tuned handles: a base plus an update, ready to run."""

from edgetune.tune.dense import DenseTuned
from edgetune.tune.plain import plain_model, release
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.projected_adapter import ProjectedAdapter
from edgetune.tune.reopen import reopen
from edgetune.tune.scaled import ByNorm, ByTable
from edgetune.tune.streamed import StreamedTuned
from edgetune.tune.target import Target
from edgetune.tune.targets import FullProjected, Lora, Prefix

TARGETS: tuple[type[Target], ...] = (FullProjected, Lora, Prefix)

__all__ = [
    "TARGETS",
    "ByNorm",
    "ByTable",
    "DenseTuned",
    "FullProjected",
    "Lora",
    "Prefix",
    "ProjectedAdapter",
    "ProjectedTuned",
    "StreamedTuned",
    "Target",
    "plain_model",
    "release",
    "reopen",
]
