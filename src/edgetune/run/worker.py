"""One model in memory, on which every device of this process takes its turn."""

from __future__ import annotations

import json

from edgetune.core.batch import Objective
from edgetune.core.keys import pool_key
from edgetune.core.ledger import DirectionsSpec
from edgetune.core.tuned import Tuned
from edgetune.directions.draw import describe
from edgetune.directions.space import BoundSpace, KeptSpace
from edgetune.methods.method import TuningMethod
from edgetune.models.backbone import Backbone
from edgetune.models.stored import stored_weights
from edgetune.tune import FullProjected, ProjectedTuned

LAYER_SCALE = "layer_scale"
"""Key of a ledger's extra entries: JSON of one factor a parameter."""


class Worker:
    """A backbone and the tuned handle of one method on it.

    Args:
        backbone: the base model; its module becomes the tuned one.
        method: what is tuned and how.
        seed: master seed of the directions (and of an adapter's initial values), unsigned 32 bits.
    Cost: one copy of the model beside its memory-mapped base, however many devices use it.
    """

    def __init__(self, backbone: Backbone, method: TuningMethod, seed: int) -> None:
        self.backbone, self.method, self.seed = backbone, method, seed
        space = None
        if method.directions is not None:
            kept = isinstance(method.target, FullProjected) and method.target.keep_direction
            make = KeptSpace if kept else BoundSpace
            space = make(method.directions.kind, pool_key(seed))
        self.tuned: Tuned = method.target.open(
            backbone.model, space, seed, stored_weights(backbone.folder, backbone.model)
        )

        self.objective: Objective | None = (
            method.objective.bind(backbone.tokenizer) if method.objective else None
        )

    @property
    def directions(self) -> DirectionsSpec | None:
        """What a ledger says of the directions; None for dense methods."""
        return describe(self.method.directions, self.seed) if self.method.directions is not None else None

    @property
    def extra(self) -> dict[str, str]:
        """What a ledger says besides: the factors of layer-wise scaling, by parameter name."""
        scales = self.tuned.scales if isinstance(self.tuned, ProjectedTuned) else {}
        return {LAYER_SCALE: json.dumps(scales, sort_keys=True)} if scales else {}
