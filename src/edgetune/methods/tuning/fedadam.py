"""FedAdam: FedAvg whose server takes the devices' mean change for a gradient, and a step of Adam with it."""

from dataclasses import replace

from edgetune.aggregate import ServerAdam
from edgetune.methods.tuning.fedavg import METHOD as FEDAVG

METHOD = replace(
    FEDAVG,
    name="fedadam",
    summary="FedAvg with Adam on the server; any method whose directions return takes server = adam or momentum.",
    source="Reddi et al. 2021, arXiv:2003.00295, algorithm 2",
    server=ServerAdam(rate=1e-3),
)
