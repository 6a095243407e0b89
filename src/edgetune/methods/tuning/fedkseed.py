"""FedKSeed: federated full-parameter tuning in kilobytes a round, over a finite pool of directions."""

from edgetune.aggregate import Mean
from edgetune.directions import Hadamard
from edgetune.directions.draw import Pool
from edgetune.estimators import TwoPoint
from edgetune.methods.method import TuningMethod
from edgetune.tune import FullProjected
from edgetune.updates import Sgd
from edgetune.wire import Coefficients, Float16, Table

POOL = 4096

METHOD = TuningMethod(
    name="fedkseed",
    summary="Full-parameter federated tuning: the whole fine-tune is K coefficients of a pool of directions.",
    travels="the coefficients that changed down, one a local step up, two bytes each; directions follow from the seed",
    memory="inference + 16 MB of scratch (+ 2 bytes a weight of cached signs in plain torch)",
    source="Qin et al. 2024, arXiv:2312.06353; alibaba/FederatedScope branch FedKSeed",
    target=FullProjected(),
    directions=Pool(Hadamard(POOL), POOL),
    estimate=TwoPoint(eps=5e-4),
    local=Sgd(lr=3e-7),
    up=Coefficients(Float16()),
    down=Table(Float16()),
    aggregate=Mean(),
    local_steps=200,
    batch_size=1,
)
