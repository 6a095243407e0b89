"""Aggregators: from the devices' contributions to one update."""

from edgetune.aggregate.aggregator import Aggregator, Memory, ordered, shares
from edgetune.aggregate.amplitudes import MeanAmplitudes
from edgetune.aggregate.majority import MajoritySign
from edgetune.aggregate.mean import Mean
from edgetune.aggregate.root_n import RootN

AGGREGATORS: dict[str, type[Aggregator]] = {
    kind.name: kind for kind in (Mean, MeanAmplitudes, RootN, MajoritySign)
}
"""Aggregators by the name that recipes use."""

__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "MajoritySign",
    "Mean",
    "MeanAmplitudes",
    "Memory",
    "RootN",
    "ordered",
    "shares",
]
