"""FedKSeed's kilobytes by the gradient along skip connections: slopes along a whole pool from one forward pass."""

from dataclasses import replace

from edgetune.directions import RankOnePool
from edgetune.directions.draw import Pool
from edgetune.estimators import SkipSlopes
from edgetune.methods.tuning.fedkseed import METHOD as FEDKSEED
from edgetune.methods.tuning.fedkseed import POOL
from edgetune.tune import Writers
from edgetune.updates import Sgd
from edgetune.wire import Float16, Table

METHOD = replace(
    FEDKSEED,
    name="fedskip",
    summary="FedKSeed with a slope along every direction of the pool a step: by gradients of skip connections alone.",
    travels="the coefficients of the pool, both ways, two bytes each",
    memory="inference + 64 numbers a token and writing layer (Hadamard pool: its input, and a gradient of one matrix)",
    source="this package; the pool: Qin et al. 2024, arXiv:2312.06353; direct feedback: Nokland 2016, arXiv:1609.01596",
    target=Writers(),
    directions=Pool(RankOnePool(POOL), POOL),
    estimate=SkipSlopes(),
    local=Sgd(lr=0.01),
    up=Table(Float16()),
    batch_size=4,
)
