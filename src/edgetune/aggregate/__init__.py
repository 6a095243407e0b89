"""Aggregators: from the devices' contributions to one update."""

from edgetune.aggregate.aggregator import Aggregator, Memory, ordered, shares
from edgetune.aggregate.amplitudes import MeanAmplitudes
from edgetune.aggregate.controlled import Controlled
from edgetune.aggregate.factors import gap
from edgetune.aggregate.fedex import FedEx
from edgetune.aggregate.ffa import Ffa
from edgetune.aggregate.flora import Flora
from edgetune.aggregate.majority import MajoritySign
from edgetune.aggregate.mean import Mean
from edgetune.aggregate.paced import Paced
from edgetune.aggregate.private_mean import PrivateMean
from edgetune.aggregate.root_n import RootN
from edgetune.aggregate.server import ServerAdam, ServerMomentum, ServerStep, Take

AGGREGATORS: dict[str, type[Aggregator]] = {
    kind.name: kind
    for kind in (Mean, Ffa, Flora, FedEx, Paced, PrivateMean, MeanAmplitudes, RootN, MajoritySign, Controlled)
}
"""Aggregators by the name that recipes use."""

SERVER_STEPS: dict[str, type[ServerStep]] = {kind.name: kind for kind in (Take, ServerMomentum, ServerAdam)}
"""What a server does with the combined change, by the name that recipes use."""

__all__ = [
    "AGGREGATORS",
    "SERVER_STEPS",
    "Aggregator",
    "Controlled",
    "FedEx",
    "Ffa",
    "Flora",
    "MajoritySign",
    "Mean",
    "MeanAmplitudes",
    "Memory",
    "Paced",
    "PrivateMean",
    "RootN",
    "ServerAdam",
    "ServerMomentum",
    "ServerStep",
    "Take",
    "gap",
    "ordered",
    "shares",
]
