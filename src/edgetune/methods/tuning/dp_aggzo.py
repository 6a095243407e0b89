"""DP-AggZO: a record's slopes along many directions are clipped as one vector, for one release a step."""

from dataclasses import replace

from edgetune.estimators import ClippedVector
from edgetune.methods.tuning.dpzero import METHOD as DPZERO
from edgetune.updates import Sgd

METHOD = replace(
    DPZERO,
    name="dp_aggzo",
    summary="DPZero over 64 directions a step with one bound for a record's slopes: more gradient for an epsilon.",
    travels="64 noisy coefficients a local step up, the mean of the devices' down; no loss, no count of drops",
    source="DP-AggZO, USENIX Security 2025; erguteb/dp-aggzo (gaussian directions there)",
    estimate=ClippedVector(eps=1e-3, clip=5.0, epsilon=2.0, directions=64, delta=1e-5),
    local=Sgd(lr=8e-5),
    local_steps=100,
)
