"""FedAvgM: FedAvg whose server goes on in the direction of earlier rounds, whatever the last devices hold."""

from dataclasses import replace

from edgetune.aggregate import ServerMomentum
from edgetune.methods.tuning.fedavg import METHOD as FEDAVG

METHOD = replace(
    FEDAVG,
    name="fedavgm",
    summary="FedAvg with momentum on the server: m <- 0.9 m + D, w <- w + r m.",
    source="Hsu, Qi and Brown 2019, arXiv:1909.06335",
    server=ServerMomentum(rate=1.0, momentum=0.9),
)
