"""One model in memory, on which every device of this process takes its turn."""

from __future__ import annotations

from edgetune.core.keys import pool_key
from edgetune.core.ledger import DirectionsSpec
from edgetune.core.tuned import Tuned
from edgetune.directions.draw import describe
from edgetune.directions.space import BoundSpace, KeptSpace
from edgetune.methods.method import TuningMethod
from edgetune.models.backbone import Backbone
from edgetune.models.stored import stored_weights
from edgetune.run.precision import UpdateWatch
from edgetune.tune import FullProjected


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
        self.watch = UpdateWatch(self.tuned, method, seed)

    @property
    def directions(self) -> DirectionsSpec | None:
        """What a ledger says of the directions; None for dense methods."""
        return describe(self.method.directions, self.seed) if self.method.directions is not None else None
