"""FedKSeed's kilobytes by exact gradients: slopes along a whole pool from one backward pass of errors."""

from dataclasses import replace

from edgetune.estimators import BackpropSlopes
from edgetune.methods.tuning.fedskip import METHOD as FEDSKIP
from edgetune.tune import LinearLayers

METHOD = replace(
    FEDSKIP,
    name="fedsubspace",
    summary="FedKSeed with a slope along every direction of the pool a step, by back-propagation of errors.",
    memory="inference + the inputs of all blocks, what one block keeps, and 64 numbers a token and layer",
    source="subspaces: Aghajanyan et al. 2021, arXiv:2012.13255; K numbers: Ferret, Shu et al. 2024, arXiv:2409.06277",
    target=LinearLayers(),
    estimate=BackpropSlopes(),
)
