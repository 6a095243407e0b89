"""LoRA by back-propagation: the yardstick beside the forward-only methods."""

from edgetune.aggregate import Mean
from edgetune.estimators import Backprop
from edgetune.methods.method import TuningMethod
from edgetune.tune import Lora
from edgetune.updates import AdamW
from edgetune.wire import Tensors

METHOD = TuningMethod(
    name="lora",
    summary="Low-rank adapters trained with AdamW; federated, their factors are averaged.",
    travels="the adapter tensors, both ways",
    memory="inference + activations of the backward pass + 4 numbers an adapter weight",
    source="Hu et al. 2021, arXiv:2106.09685, through peft; averaged as in Zhang et al. 2023, arXiv:2305.05644",
    target=Lora(rank=8, alpha=16.0),
    directions=None,
    estimate=Backprop(),
    local=AdamW(lr=3e-4),
    up=Tensors(),
    down=Tensors(),
    aggregate=Mean(),
    local_steps=10,
    batch_size=16,
)
