"""Just One Byte: devices send a byte a direction, and all step along all that arrived."""

from dataclasses import replace

from edgetune.aggregate import RootN
from edgetune.methods.tuning.mezo import METHOD as MEZO
from edgetune.updates import Hold
from edgetune.wire import Log, Log8, Slopes

METHOD = replace(
    MEZO,
    name="one_byte",
    summary="Devices send a byte a slope; all step along all that arrived, over the root of their number.",
    travels="a byte a direction up, and down those of all devices of the rounds that were missed",
    source="Zelikman et al. 2023, arXiv:2306.10015; ezelikman/justonebyte (float text there; gaussian)",
    local=Hold(),
    up=Slopes(Log8()),
    down=Log(Log8()),
    aggregate=RootN(lr=1e-1),
    local_steps=30,
    batch_size=64,
)
