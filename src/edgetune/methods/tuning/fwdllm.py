"""FwdLLM: many devices run a few perturbed passes over an adapter; the server decides how many a step takes."""

from edgetune.aggregate import Paced
from edgetune.directions import Gaussian
from edgetune.directions.draw import Fresh
from edgetune.estimators import TwoPoint
from edgetune.methods.method import TuningMethod
from edgetune.tune import Lora
from edgetune.updates import Hold
from edgetune.wire import Slopes, Terms

METHOD = TuningMethod(
    name="fwdllm",
    summary="Forward passes over an adapter; the server gathers slopes until their mean varies little, then steps.",
    travels="one slope a pass up; the steps that were missed down, 12 bytes a slope",
    memory="inference + the adapter twice",
    source="Xu et al. 2023, arXiv:2308.13894; UbiquitousLearning/FwdLLM (which sends whole gradients)",
    target=Lora(rank=8, alpha=16.0),
    directions=Fresh(Gaussian()),
    estimate=TwoPoint(eps=1e-2),
    local=Hold(),
    up=Slopes(),
    down=Terms(),
    aggregate=Paced(lr=1e-2, threshold=0.0),
    local_steps=10,
    batch_size=8,
)
