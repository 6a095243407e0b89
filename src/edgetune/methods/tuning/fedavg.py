"""FedAvg on all weights by back-propagation: the yardstick of what a federation learns, and of what it costs."""

from edgetune.aggregate import Mean
from edgetune.estimators import Backprop
from edgetune.methods.method import TuningMethod
from edgetune.tune import FullProjected
from edgetune.updates import AdamW
from edgetune.wire import Tensors

METHOD = TuningMethod(
    name="fedavg",
    summary="All weights trained by back-propagation on every device and averaged.",
    travels="all weights, both ways",
    memory="inference + activations of the backward pass + 5 numbers a weight",
    source="McMahan et al. 2017, arXiv:1602.05629; local AdamW as in Zhang et al. 2023, arXiv:2212.10025 (FedFT)",
    target=FullProjected(),
    directions=None,
    estimate=Backprop(),
    local=AdamW(lr=5e-5),
    up=Tensors(),
    down=Tensors(),
    aggregate=Mean(),
    local_steps=10,
    batch_size=32,
    micro_batch=8,
)
