"""FedKSeed-Pro: FedKSeed that draws directions the likelier, the larger the slopes along them were."""

from dataclasses import replace

from edgetune.aggregate import MeanAmplitudes
from edgetune.directions import Hadamard
from edgetune.directions.weighted import WeightedPool
from edgetune.methods.tuning.fedkseed import METHOD as FEDKSEED
from edgetune.methods.tuning.fedkseed import POOL
from edgetune.wire import Float16, Slopes, WeighedTable

METHOD = replace(
    FEDKSEED,
    name="fedkseed_pro",
    summary="FedKSeed that draws directions by the size of their slopes; biased as published, corrected on demand.",
    travels="what changed of coefficients and amplitudes down, three bytes a direction; two bytes a local step up",
    source="Qin et al. 2024, arXiv:2312.06353, section 4.3; alibaba/FederatedScope branch FedKSeed",
    directions=WeightedPool(Hadamard(POOL), POOL),
    up=Slopes(Float16()),
    down=WeighedTable(Float16()),
    aggregate=MeanAmplitudes(),
)
