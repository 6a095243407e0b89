"""One model in memory, on which every device of this process takes its turn."""

from __future__ import annotations

from typing import cast

from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.core.ledger import DirectionsSpec
from edgetune.core.tuned import Tuned
from edgetune.directions import Hadamard
from edgetune.directions.draw import describe
from edgetune.directions.space import BoundSpace, KeptSpace
from edgetune.methods.method import TuningMethod
from edgetune.models.backbone import Backbone
from edgetune.models.stored import stored_weights
from edgetune.run.residency import FUSED, Residency, base_tensors, named_base
from edgetune.tune import FullProjected, StreamedTuned


class Worker:
    """A backbone and the tuned handle of one method on it.

    Args:
        backbone: the base model; its module becomes the tuned one.
        method: what is tuned and how.
        seed: master seed of the directions (and of an adapter's initial values), unsigned 32 bits.
        residency: where the weights live.

    Raises:
        ConfigError: if the method's weights cannot be streamed.
    Cost: one copy of the model beside its memory-mapped base, however many devices use it.
    """

    def __init__(
        self, backbone: Backbone, method: TuningMethod, seed: int, residency: Residency = FUSED
    ) -> None:
        self.backbone, self.method = named_base(backbone, residency), method
        self.seed, self.residency = seed, residency
        space = None
        if method.directions is not None:
            kept = isinstance(method.target, FullProjected) and method.target.keep_direction
            make = KeptSpace if kept else BoundSpace
            space = make(method.directions.kind, pool_key(seed))
        self.tuned: Tuned
        if residency.streamed:
            check_streams(method)
            bound = cast(BoundSpace, space)
            self.tuned = StreamedTuned(backbone.model, bound, base_tensors(backbone, residency.grid))
        else:
            base = stored_weights(backbone.folder, backbone.model)
            self.tuned = method.target.open(backbone.model, space, seed, base)

    @property
    def directions(self) -> DirectionsSpec | None:
        """What a ledger says of the directions; None for dense methods."""
        return describe(self.method.directions, self.seed) if self.method.directions is not None else None


def check_streams(method: TuningMethod) -> None:
    """Refuse to stream what would be slow or is not a sum of directions.

    Raises:
        ConfigError: saying what to change.
    """
    full = isinstance(method.target, FullProjected) and not method.target.keep_direction
    if not full or method.directions is None:
        raise ConfigError(
            f"{method.name} does not tune all weights along regenerated directions, so nothing can be streamed",
            where="model.residency",
            hint="use fused",
        )
    if not isinstance(method.directions.kind, Hadamard):
        raise ConfigError(
            "a streamed model is rebuilt in every forward pass, which takes a Hadamard pool",
            where="model.residency",
            hint="use fedkseed with method.directions = 'hadamard', or residency fused",
        )
