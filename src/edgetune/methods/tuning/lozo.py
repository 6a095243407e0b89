"""LOZO: MeZO along products of rank two, one factor of which stays for fifty steps."""

from dataclasses import replace

from edgetune.directions import Lozo
from edgetune.directions.intervals import Intervals
from edgetune.methods.tuning.mezo import METHOD as MEZO

METHOD = replace(
    MEZO,
    name="lozo",
    summary="MeZO along products of two thin Gaussian factors (rank 2), of which one stays for 50 steps of a device.",
    travels="one coefficient a local step up, those of the rounds that were missed down; seeds follow from the run's",
    memory="inference + scratch of the largest matrix",
    source="Chen et al. 2024, arXiv:2410.07698 (without momentum; rate and eps are MeZO's)",
    directions=Intervals(Lozo(), interval=50),
)
