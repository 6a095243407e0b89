"""Aggregators: from the devices' contributions to one update."""

from edgetune.aggregate.aggregator import Aggregator, Memory, ordered, shares
from edgetune.aggregate.mean import Mean
from edgetune.aggregate.paced import Paced
from edgetune.aggregate.private_mean import PrivateMean

AGGREGATORS: dict[str, type[Aggregator]] = {kind.name: kind for kind in (Mean, Paced, PrivateMean)}
"""Aggregators by the name that recipes use."""

__all__ = ["AGGREGATORS", "Aggregator", "Mean", "Memory", "Paced", "PrivateMean", "ordered", "shares"]
