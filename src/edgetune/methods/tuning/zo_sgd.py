"""ZO-SGD: the classical zeroth-order baseline, which keeps its random direction in memory."""

from dataclasses import replace

from edgetune.directions import Gaussian
from edgetune.directions.draw import Fresh
from edgetune.methods.tuning.mezo import METHOD as MEZO
from edgetune.tune import FullProjected

METHOD = replace(
    MEZO,
    name="zo_sgd",
    summary="The classical two-point method: draws a gaussian direction once a step and keeps it.",
    memory="twice inference (the direction is as large as the model)",
    source="Spall 1992; Ghadimi and Lan 2013, arXiv:1309.5549",
    target=FullProjected(keep_direction=True),
    directions=Fresh(Gaussian()),
)
