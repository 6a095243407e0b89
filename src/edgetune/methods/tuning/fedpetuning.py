"""FedPETuning: four ways to tune few parameters, and all of them, in one federation."""

from dataclasses import replace

from edgetune.methods.tuning.fedavg import METHOD as FEDAVG
from edgetune.tune import Lora
from edgetune.updates import AdamW

METHOD = replace(
    FEDAVG,
    name="fedpetuning",
    summary="FedAvg over few tensors: target = lora, adapter, prefix or bitfit; full is the yardstick.",
    travels="the tuned tensors alone, both ways (the reference code sends the whole model)",
    memory="inference + activations of the backward pass + 5 numbers a tuned weight",
    source="Zhang et al. 2023, arXiv:2212.10025; SMILELab-FL/FedPETuning (devices alike there: by_examples = false)",
    target=Lora(rank=8, alpha=8.0),
    local=AdamW(lr=1e-3),
)
