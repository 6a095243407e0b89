"""Tuned handles: a base plus an update, ready to run."""

from edgetune.tune.bottleneck import Adapter, has_bottlenecks
from edgetune.tune.dense import DenseTuned
from edgetune.tune.folded import FoldedTuned
from edgetune.tune.handles import projected, streamed
from edgetune.tune.own import BitFit, LinearLayers, Writers
from edgetune.tune.plain import parts_of, plain_model, release
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.projected_adapter import ProjectedAdapter
from edgetune.tune.reopen import merges, reopen
from edgetune.tune.scaled import ByNorm, ByTable
from edgetune.tune.stacked import StackedTuned
from edgetune.tune.streamed import StreamedTuned
from edgetune.tune.target import Target
from edgetune.tune.targets import FullProjected, Lora, Prefix

TARGETS: dict[str, type[Target]] = {
    kind.name: kind for kind in (FullProjected, LinearLayers, Writers, Lora, Adapter, Prefix, BitFit)
}
"""What can be tuned, by the name that recipes use."""

__all__ = [
    "TARGETS",
    "Adapter",
    "BitFit",
    "ByNorm",
    "ByTable",
    "DenseTuned",
    "FoldedTuned",
    "FullProjected",
    "LinearLayers",
    "Lora",
    "Prefix",
    "ProjectedAdapter",
    "ProjectedTuned",
    "StackedTuned",
    "StreamedTuned",
    "Target",
    "Writers",
    "has_bottlenecks",
    "merges",
    "parts_of",
    "plain_model",
    "projected",
    "release",
    "reopen",
    "streamed",
]
