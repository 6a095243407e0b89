"""DeComFL: all devices of a round take the same fresh directions, and pull only the rounds that they missed."""

from dataclasses import replace

from edgetune.aggregate import Mean
from edgetune.directions import Rademacher
from edgetune.directions.draw import Fresh
from edgetune.estimators import OneSided
from edgetune.methods.tuning.mezo import METHOD as MEZO
from edgetune.updates import Sgd

METHOD = replace(
    MEZO,
    name="decomfl",
    summary="MeZO along directions that all devices of a round share: a round is a few numbers, however many devices.",
    travels="one coefficient a direction of a round, up and down; who was away pulls the rounds that it missed",
    source="Li et al. 2024, arXiv:2405.15861; ZidongLiu/DeComFL (gaussian there: directions = 'gaussian')",
    directions=Fresh(Rademacher(), shared=True),
    estimate=OneSided(eps=1e-3, directions=5),
    local=Sgd(lr=1e-5),
    aggregate=Mean(by_examples=False),
    local_steps=1,
    batch_size=32,
)
