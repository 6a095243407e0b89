"""FedProx: FedAvg whose devices are held near the model that their round began with."""

from dataclasses import replace

from edgetune.methods.tuning.fedavg import METHOD as FEDAVG
from edgetune.updates import AdamW

METHOD = replace(
    FEDAVG,
    name="fedprox",
    summary="FedAvg with a proximal term against drift apart; any method with adamw or sgd takes proximal = mu.",
    source="Li et al. 2020, arXiv:1812.06127 (mu of 0.001 to 1 there, local SGD)",
    local=AdamW(lr=5e-5, proximal=0.01),
)
