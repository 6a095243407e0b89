"""MeZO on a prefix: forward passes only, directions over the keys and values of a few virtual tokens."""

from dataclasses import replace

from edgetune.estimators import TwoPoint
from edgetune.methods.tuning.mezo import METHOD as MEZO
from edgetune.tune import Prefix
from edgetune.updates import Sgd

METHOD = replace(
    MEZO,
    name="mezo_prefix",
    summary="MeZO over a trained prefix of five virtual tokens a layer; it cannot be merged into a model file.",
    memory="inference + the prefix twice + five more positions a sequence",
    source="Malladi et al. 2023, arXiv:2305.17333; princeton-nlp/MeZO (the prefix starts from real activations there)",
    target=Prefix(tokens=5),
    estimate=TwoPoint(eps=1e-1),
    local=Sgd(lr=1e-2),
)
