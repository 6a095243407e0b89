"""FedSelFT: every device trains a few layers, chosen each round by their gradients, within its budget."""

from dataclasses import replace

from edgetune.methods.tuning.fedavg import METHOD as FEDAVG
from edgetune.survey import GradientNorms
from edgetune.updates import Sgd
from edgetune.wire import Changed

METHOD = replace(
    FEDAVG,
    name="fedselft",
    summary="Layers by the size of their gradients: each device trains those that it can pay for, and no other.",
    travels="one number a layer up, one bit a layer down; the trained layers up, those that changed down",
    memory="inference + activations and gradients down to the lowest chosen layer",
    source="Sun et al. 2024, arXiv:2408.15600; hiyuchang/fed_sel_tune",
    local=Sgd(lr=1e-2),
    survey=GradientNorms(budget=2),
    down=Changed(),
    local_steps=10,
    batch_size=64,
)
"""One local epoch there; rate, batch and budgets of 1 to 5 layers are published."""
