"""DPZero: MeZO that hides every record, by clipping its slope and adding noise."""

from dataclasses import replace

from edgetune.data.sampling import Poisson
from edgetune.directions import Rademacher
from edgetune.directions.draw import Fresh
from edgetune.estimators import Clipped
from edgetune.methods.tuning.mezo import METHOD as MEZO

METHOD = replace(
    MEZO,
    name="dpzero",
    summary="MeZO whose steps hide every record: clipped slopes, noise that no seed tells, and an epsilon.",
    travels="one noisy coefficient a local step up, the mean of the devices' down; no loss, no count of drops",
    source="Zhang et al. 2024, arXiv:2310.09639; Liang137/DPZero (gaussian directions there)",
    directions=Fresh(Rademacher(), shared=True),
    estimate=Clipped(eps=1e-3, clip=200.0, epsilon=6.0, delta=1e-5),
    sampling=Poisson(),
    batch_size=64,
)
