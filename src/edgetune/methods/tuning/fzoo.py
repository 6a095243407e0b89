"""FZOO: several one-sided losses a step, and a step divided by their spread."""

from dataclasses import replace

from edgetune.estimators import Standardised
from edgetune.methods.tuning.mezo import METHOD as MEZO
from edgetune.updates import Sgd

METHOD = replace(
    MEZO,
    name="fzoo",
    summary="MeZO with nine forward passes a step: eight one-sided slopes, divided by the spread of the eight losses.",
    travels="one coefficient a direction of a local step up, divided already, those of missed rounds down; no spread",
    source="Dang et al. 2025, arXiv:2506.09034; DKmiyan/FZOO (eps and rate are its script's defaults)",
    estimate=Standardised(eps=1e-3, directions=8),
    local=Sgd(lr=1e-5),
)
