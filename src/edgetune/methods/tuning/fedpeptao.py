"""FedPepTAO: prompts in every layer, of which the best ones travel; momentum and control variates at the server."""

from dataclasses import replace

from edgetune.aggregate import Controlled
from edgetune.methods.tuning.fedavg import METHOD as FEDAVG
from edgetune.survey import PromptLayers
from edgetune.tune import Prefix
from edgetune.updates import AdamW
from edgetune.wire import Changed

METHOD = replace(
    FEDAVG,
    name="fedpeptao",
    summary="Prompts of the layers that matter most, chosen once; other layers keep their initial prompts everywhere.",
    travels="once a number a layer up, one bit a layer down; then the chosen layers' prompts, both ways",
    memory="inference + activations of the backward pass; once, for the ratio, four times those",
    source="Che et al. 2023, arXiv:2310.15080; llm-eff/FedPepTAO (personalised there: other layers stay on devices)",
    target=Prefix(tokens=20),
    local=AdamW(lr=4e-2, weight_decay=0.1),
    survey=PromptLayers(),
    down=Changed(),
    aggregate=Controlled(rate=0.05, momentum=0.9),
    local_steps=20,
    batch_size=8,
)
"""Two local epochs there, with one Adam and a linear schedule over all rounds on each device; here Adam begins every
round anew, as the paper says. There every layer's prompts are trained on devices; here one model comes out, so that
layers that were not chosen keep their initial prompts. Of the LLaMA models prompts have 5 tokens and batches 1 record,
of which there is no similarity."""
