"""GRZO: every record takes a direction of its own, and a step is divided by the spread of their slopes."""

from dataclasses import replace

from edgetune.directions import RankOne
from edgetune.directions.draw import Fresh
from edgetune.estimators import ByRecord
from edgetune.methods.tuning.mezo import METHOD as MEZO
from edgetune.updates import Sgd

METHOD = replace(
    MEZO,
    name="grzo",
    summary="MeZO with a direction a record: two forward passes of a batch give a slope for each of its records.",
    travels="one coefficient a record of a local step up, divided already, those of missed rounds down",
    memory="inference with both points of a batch (+ the signs of a matrix's rows and columns for every record)",
    source="arXiv:2606.02857 (there one dense base of noise, whose signs of rows and columns are a record's own)",
    directions=Fresh(RankOne()),
    estimate=ByRecord(eps=1e-3, directions=16, standardised=True),
    local=Sgd(lr=1e-5),
)
