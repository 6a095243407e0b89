"""MeZO: full-parameter tuning with forward passes only, at the memory of inference."""

from edgetune.aggregate import Mean
from edgetune.directions import Rademacher
from edgetune.directions.draw import Fresh
from edgetune.estimators import TwoPoint
from edgetune.methods.method import TuningMethod
from edgetune.tune import FullProjected
from edgetune.updates import Sgd
from edgetune.wire import Coefficients, Log

METHOD = TuningMethod(
    name="mezo",
    summary="Two forward passes a step along a regenerated direction; the run is a list of (seed, coefficient) pairs.",
    travels="one coefficient a local step up, those of the rounds that were missed down; seeds follow from the run's",
    memory="inference + 16 MB of scratch (+ 2 bytes a weight in half precision)",
    source="Malladi et al. 2023, arXiv:2305.17333; princeton-nlp/MeZO (gaussian there: directions = 'gaussian')",
    target=FullProjected(),
    directions=Fresh(Rademacher()),
    estimate=TwoPoint(eps=1e-3),
    local=Sgd(lr=1e-6),
    up=Coefficients(),
    down=Log(),
    aggregate=Mean(),
    local_steps=200,
    batch_size=16,
)
