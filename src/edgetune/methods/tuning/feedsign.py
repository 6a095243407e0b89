"""FeedSign: a device votes one bit a direction, and all step the way that most are for."""

from dataclasses import replace

from edgetune.aggregate import MajoritySign
from edgetune.directions import Rademacher
from edgetune.directions.draw import Fresh
from edgetune.methods.tuning.mezo import METHOD as MEZO
from edgetune.updates import Hold
from edgetune.wire import Log, Sign, Slopes

METHOD = replace(
    MEZO,
    name="feedsign",
    summary="Devices vote a bit on each shared direction; the majority decides, and all devices count alike.",
    travels="one bit a direction up, and one down of the rounds that were missed",
    source="Cai et al. 2025, arXiv:2501.17610 (gaussian there; rate and radius here are MeZO's)",
    directions=Fresh(Rademacher(), shared=True),
    local=Hold(),
    up=Slopes(Sign()),
    down=Log(Sign()),
    aggregate=MajoritySign(lr=1e-6),
    local_steps=1,
)
