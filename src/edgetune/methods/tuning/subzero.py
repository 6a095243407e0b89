"""SubZero: many one-sided slopes a step, all within one subspace that stays for fifty steps."""

from dataclasses import replace

from edgetune.directions import SubZero
from edgetune.directions.intervals import Intervals
from edgetune.estimators import OneSided
from edgetune.methods.tuning.mezo import METHOD as MEZO
from edgetune.updates import Sgd

METHOD = replace(
    MEZO,
    name="subzero",
    summary="Eight one-sided slopes a step in one subspace of rank 16, which stays for 50 steps; plain steps, no Adam.",
    travels="one coefficient a direction of a local step up, those of missed rounds down; no subspace",
    memory="inference + scratch of the largest matrix",
    source=(
        "Yu et al. 2024, arXiv:2410.08989; arXiv:2608.15665 (QR factors there, signed Hadamard columns here; its Adam"
        " on the core is left out: a ledger is a sum of directions; rates are ours)"
    ),
    directions=Intervals(SubZero(), interval=50),
    estimate=OneSided(eps=1e-3, directions=8),
    local=Sgd(lr=1e-5),
)
