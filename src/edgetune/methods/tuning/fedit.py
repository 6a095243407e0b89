"""FedIT: instruction tuning of low-rank adapters across devices, their factors averaged."""

from edgetune.aggregate import Mean
from edgetune.estimators import Backprop
from edgetune.methods.method import TuningMethod
from edgetune.tune import Lora
from edgetune.updates import AdamW
from edgetune.wire import Tensors

METHOD = TuningMethod(
    name="fedit",
    summary="LoRA averaged by factors (aggregate = mean), or exactly: ffa, flora, fedex.",
    travels="both factors, both ways; ffa: B alone; flora and fedex: down also what the server added to the base",
    memory="inference + activations of the backward pass + 4 numbers an adapter weight",
    source="Zhang et al. 2023, arXiv:2305.05644; FederatedGPT-Shepherd (dropout 0.05, on queries alone there)",
    target=Lora(rank=16, alpha=16.0),
    directions=None,
    estimate=Backprop(),
    local=AdamW(lr=3e-4),
    up=Tensors(),
    down=Tensors(),
    aggregate=Mean(),
    local_steps=10,
    batch_size=64,
    micro_batch=8,
)
