"""MeZO on LoRA: forward passes only, directions over the adapter's tensors alone."""

from dataclasses import replace

from edgetune.estimators import TwoPoint
from edgetune.methods.tuning.mezo import METHOD as MEZO
from edgetune.tune import Lora
from edgetune.updates import Sgd

METHOD = replace(
    MEZO,
    name="mezo_lora",
    summary="MeZO over low-rank adapters: the base stays untouched, and fewer weights take larger steps.",
    memory="inference + the adapter twice",
    source="Malladi et al. 2023, arXiv:2305.17333; princeton-nlp/MeZO (on queries and values there)",
    target=Lora(rank=8, alpha=16.0),
    estimate=TwoPoint(eps=1e-2),
    local=Sgd(lr=1e-4),
)
