"""Aggregators: from the devices' contributions to one update."""

from edgetune.aggregate.aggregator import Aggregator, Memory, ordered, shares
from edgetune.aggregate.factors import gap
from edgetune.aggregate.fedex import FedEx
from edgetune.aggregate.ffa import Ffa
from edgetune.aggregate.flora import Flora
from edgetune.aggregate.mean import Mean

AGGREGATORS: dict[str, type[Aggregator]] = {kind.name: kind for kind in (Mean, Ffa, Flora, FedEx)}
"""Aggregators by the name that recipes use."""

__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "FedEx",
    "Ffa",
    "Flora",
    "Mean",
    "Memory",
    "gap",
    "ordered",
    "shares",
]
