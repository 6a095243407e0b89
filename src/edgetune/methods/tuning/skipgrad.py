"""The gradient along skip connections: back-propagation's step without its backward pass."""

from dataclasses import replace

from edgetune.estimators import SkipGradient
from edgetune.methods.tuning.fedavg import METHOD as FEDAVG
from edgetune.tune import Writers
from edgetune.updates import Sgd

METHOD = replace(
    FEDAVG,
    name="skipgrad",
    summary="The matrices that write into the residual stream, by gradients that skip connections alone carry.",
    travels="those matrices, both ways",
    memory="inference + the inputs of two layers a block + a gradient of the matrices that are tuned",
    source="this package; direct feedback: Nokland 2016, arXiv:1609.01596",
    target=Writers(),
    estimate=SkipGradient(),
    local=Sgd(lr=0.1),
    batch_size=4,
)
