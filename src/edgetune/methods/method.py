"""A tuning method: a frozen value that names its parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from hashlib import sha256

from edgetune.aggregate import Mean
from edgetune.core.errors import ConfigError
from edgetune.core.update import Estimate
from edgetune.directions.draw import Directions
from edgetune.estimators import Accumulate, Backprop, Estimator
from edgetune.measure.objective import Answers
from edgetune.tune import Lora, Target
from edgetune.updates import Adam, AdamW, Constant, Momentum, Optimiser, Schedule
from edgetune.wire import Codec, SeedList, SeedTable, Tensors

MOST_DIRECTIONS = 1 << 22
"""Directions of a device's round; more have no use, and their list alone would fill a small memory."""


@dataclass(frozen=True, slots=True)
class TuningMethod:
    """What is tuned, along which directions, by which estimate and step, and how it travels.

    A variant is `dataclasses.replace(METHOD, ...)`; `edgetune.methods.options` does it from a recipe.

    Args:
        name: public name, the name of its file.
        summary: one sentence.
        travels: what a device and the server send each other.
        memory: memory class relative to inference.
        source: paper and reference implementation.
        target: what is tuned.
        directions: which directions steps take; None for dense gradients.
        estimate: gradient estimator.
        local: optimiser of the local steps.
        codec: wire format of updates.
        aggregate: how the server combines them.
        local_steps: steps a device takes in a round, at least 1.
        batch_size: records a step, at least 1.
        micro_batch: records a forward pass; 0 for all of a step's at once.
        schedule: the share of the learning rate that a step takes.
        objective: what is minimised instead of the loss on responses.
        origin: SHA-256 of the file that a method of the user's own was read from; empty for edgetune's.

    Raises:
        ConfigError: if the parts do not fit each other, with one sentence.
    """

    name: str
    summary: str
    travels: str
    memory: str
    source: str
    target: Target
    directions: Directions | None
    estimate: Estimator
    local: Optimiser
    codec: Codec
    aggregate: Mean
    local_steps: int = 200
    batch_size: int = 1
    micro_batch: int = 0
    schedule: Schedule = field(default_factory=Constant)
    objective: Answers | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse impossible combinations.

        Raises:
            ConfigError: with one sentence saying why.
        """
        forward_only = not isinstance(self.estimate, Backprop)
        history = self.local.history if isinstance(self.local, Momentum | Adam) else None
        rules = [
            (self.local_steps < 1, "a device needs at least one local step"),
            (
                self.local_steps * self.estimate.directions > MOST_DIRECTIONS,
                f"a device would take more than {MOST_DIRECTIONS:,} directions a round",
            ),
            (self.batch_size < 1, "a batch needs at least one record"),
            (self.micro_batch < 0, "a micro-batch needs at least one record"),
            (
                bool(self.pool_size) and self.estimate.directions > self.pool_size,
                "a step cannot take more directions than the pool holds",
            ),
            (forward_only and self.directions is None, "a forward-only estimate needs directions"),
            (
                forward_only and isinstance(self.local, AdamW),
                "AdamW needs dense gradients, a slope is one number",
            ),
            (
                not forward_only and not isinstance(self.target, Lora),
                "back-propagation tunes LoRA",
            ),
            (
                not forward_only and history is not None,
                "momentum and Adam of coefficients need slopes, dense gradients take AdamW",
            ),
            (
                bool(self.pool_size) and bool(history),
                "a pool remembers all its directions, a history is for seeds",
            ),
            (
                forward_only and not self.pool_size and history == 0,
                "momentum and Adam over fresh seeds need a bounded history",
            ),
            (
                not forward_only and self.objective is not None,
                "a score of answers has no gradient to propagate back",
            ),
            (not forward_only and self.directions is not None, "dense gradients have no directions"),
            (not forward_only and not isinstance(self.codec, Tensors), "dense updates need the tensor codec"),
            (forward_only and isinstance(self.codec, Tensors), "projected updates need a seed codec"),
            (
                isinstance(self.codec, SeedTable) and not self.pool_size,
                "a seed table needs a pool of directions",
            ),
            (isinstance(self.codec, SeedList) and bool(self.pool_size), "a pool travels as a seed table"),
            (
                isinstance(self.codec, SeedTable) and self.codec.size != self.pool_size,
                "the seed table and the pool must have one size",
            ),
        ]
        for broken, sentence in rules:
            if broken:
                raise ConfigError(sentence, where=f"method {self.name}")

    @property
    def pool_size(self) -> int:
        """K, or 0 if there is no pool."""
        return self.directions.size if self.directions is not None else 0

    @property
    def estimator(self) -> Callable[..., Estimate]:
        """What estimates from a whole batch, by micro-batches if they are wanted: (handle, objective, batch, *keys)."""
        return Accumulate(self.estimate, self.micro_batch) if self.micro_batch else self.estimate

    def keys(self, seed: int, round: int, device: int) -> list[int]:
        """Return the directions of a device's local steps, step by step; zeros for dense gradients."""
        if self.directions is None:
            return [0] * self.local_steps
        return self.directions.draw(seed, round, device, self.local_steps, self.estimate.directions)

    def rate(self, round: int, step: int) -> float:
        """Return the factor on the learning rate of a device's step (from 0) in a round (from 1)."""
        return self.schedule.rate((round - 1) * self.local_steps + step)

    @property
    def digest(self) -> str:
        """SHA-256 of every setting that changes results, and of the user's own code; two devices must agree on it."""
        said = {field: _plain(getattr(self, field)) for field in self.__dataclass_fields__}
        if not self.origin:  # a method of edgetune's is what it says; its digest is that of earlier versions
            del said["origin"]
        plain = {"type": type(self).__name__, **said}
        return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _plain(value: object) -> object:
    """Return nested dataclasses as dictionaries that also name their types, and functions as their names."""
    if is_dataclass(value) and not isinstance(value, type):
        fields = {key: _plain(getattr(value, key)) for key in value.__dataclass_fields__}
        return {"type": type(value).__name__, **fields}
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return value
