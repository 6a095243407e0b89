"""A tuning method: a frozen value that names its parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from edgetune.aggregate import Aggregator, Memory, ServerStep, Take
from edgetune.core.errors import ConfigError
from edgetune.core.part import EVERY_SLOPE, HELD, SHARED, Part, misfit
from edgetune.core.pieces import Layers, cut
from edgetune.core.protected import Protected
from edgetune.core.update import Dense, Estimate, Projected, Update
from edgetune.data.sampling import Sampling, Shuffled
from edgetune.directions import RankOnePool
from edgetune.directions.draw import Directions
from edgetune.estimators import Accumulate, Estimator
from edgetune.measure.objective import Answers
from edgetune.survey import Survey
from edgetune.tune import FullProjected, Target
from edgetune.updates import Constant, Optimiser, Schedule
from edgetune.wire import Codec

MOST_DIRECTIONS = 1 << 22
"""Directions of a device's round; more have no use, and their list alone would fill a small memory."""


@dataclass(frozen=True, slots=True)
class TuningMethod:
    """What is tuned, along which directions, by which estimate and step, and how it travels.

    A variant is `dataclasses.replace(METHOD, ...)`; `edgetune.methods.options` does it from a recipe. Whether parts fit
    each other is a comparison of what they declare (`core.part`).

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
        up: wire format of a device's change.
        down: wire format of the server's state.
        aggregate: how the server combines changes.
        server: the step that it takes with what it combined.
        survey: how layers are chosen before a round; every device trains all if not given.
        local_steps: steps a device takes in a round, at least 1.
        batch_size: records a step, at least 1.
        micro_batch: records a forward pass; 0 for all of a step's at once.
        schedule: the share of the learning rate that a step takes.
        sampling: how steps draw their batches.
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
    up: Codec
    down: Codec
    aggregate: Aggregator
    local_steps: int = 200
    batch_size: int = 1
    micro_batch: int = 0
    schedule: Schedule = field(default_factory=Constant)
    sampling: Sampling = field(default_factory=Shuffled)
    objective: Answers | None = None
    server: ServerStep = field(default_factory=Take)
    survey: Survey | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse impossible combinations.

        Raises:
            ConfigError: with one sentence saying why.
        """
        each = self.estimate.directions * (self.directions.offers if self.directions is not None else 1)
        least = 1 if self.survey is None else self.survey.least_batch
        rules = [
            (self.local_steps < 1, "a device needs at least one local step"),
            (self.local_steps * each > MOST_DIRECTIONS, f"more than {MOST_DIRECTIONS:,} directions a round"),
            (self.batch_size < least, f"a batch needs at least {least} record{'s' if least > 1 else ''}"),
            (len(self._rates) != 1, "one part, and no other, must have a learning_rate"),
            (self.micro_batch < 0, "a micro-batch needs at least one record"),
            (
                self.estimate.differentiates and self._is_added_to_activations,
                f"{self.estimate.title} needs weights that the model holds: all of them along a pool of rank one are "
                "never formed (directions = hadamard, or estimate = two_point)",
            ),
            (
                bool(self.pool_size) and self.estimate.directions > self.pool_size,
                "a step cannot take more directions than the pool holds",
            ),
        ]
        said = [sentence for broken, sentence in rules if broken]
        if sentence := misfit(self.parts) or (said[0] if said else None):
            raise ConfigError(sentence, where=f"method {self.name}")

    @property
    def _is_added_to_activations(self) -> bool:
        """Whether what was learnt is kept beside all weights, by a handle that forms none."""
        kind = self.directions.kind if self.directions is not None else None
        return isinstance(self.target, FullProjected) and isinstance(kind, RankOnePool)

    def check_alone(self) -> None:
        """Refuse to be run on one device without a server.

        Raises:
            ConfigError: if only the server takes steps.
        """
        if self.survey is not None:
            raise ConfigError(
                f"{self.name} needs a server, which chooses the layers that devices train",
                hint=f"edgetune federate {self.name}",
            )
        if self.holds:
            raise ConfigError(
                f"{self.name} needs a server, which takes the steps: a device alone measures slopes and learns nothing",
                hint=f"edgetune federate {self.name}",
            )

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by the field that holds them."""
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: part for name, part in held.items() if isinstance(part, Part)}

    @property
    def sends_slopes(self) -> bool:
        """Whether a device sends the slope of every step, instead of what its steps add up to."""
        return EVERY_SLOPE in self.up.gives

    @property
    def protection(self) -> Protected | None:
        """The part that hides records or devices by noise; None if nothing does."""
        return next((part for part in self.parts.values() if isinstance(part, Protected)), None)

    @property
    def private(self) -> bool:
        """Whether what devices saw is nobody's to know: their loss is not told then."""
        return self.protection is not None

    @property
    def holds(self) -> bool:
        """Whether only the server moves the weights: a device alone learns nothing."""
        return HELD in self.local.gives

    @property
    def shares_directions(self) -> bool:
        """Whether all devices of a round take the same directions."""
        return self.directions is not None and SHARED in self.directions.gives

    @property
    def learning_rate(self) -> float:
        """The learning rate, of whichever part has one."""
        return float(self._rates[0])

    @property
    def _rates(self) -> list[Any]:
        said = (part.settings() for part in self.parts.values())
        return [one["learning_rate"] for one in said if "learning_rate" in one]

    @property
    def eps(self) -> float | None:
        """Perturbation radius of a forward-only estimate; None if there is none."""
        radius: float | None = getattr(self.estimate, "eps", None)
        return radius

    @property
    def pool_size(self) -> int:
        """K, or 0 if there is no pool."""
        return self.directions.size if self.directions is not None else 0

    @property
    def estimator(self) -> Callable[..., Estimate]:
        """What estimates from a whole batch, by micro-batches if they are wanted: (handle, objective, batch, *keys)."""
        return Accumulate(self.estimate, self.micro_batch) if self.micro_batch else self.estimate

    def remembered(
        self, state: Update, layers: Layers = (), devices: Mapping[int, int] | None = None
    ) -> Memory:
        """Return what a server remembers beside its state before the first round.

        Args:
            state: what is tuned.
            layers: its layers, where they are chosen; an aggregator remembers their pieces, by label.
            devices: all of the federation, with the examples that each holds.
        """
        chosen = {} if self.survey is None else self.survey.start(len(layers))
        surveyed = self.survey is not None
        parts = cut(state, layers) if surveyed and isinstance(state, Dense) else self.whole(state)
        return {
            **self.aggregate.start(parts), **self.aggregate.enrol(parts, devices or {}),
            **self.server.start(state, self.pool_size), **chosen,
        }  # fmt: skip

    def keys(self, seed: int, round: int, device: int, state: Update | None = None) -> list[int]:
        """Return the directions of a device's local steps, step by step; zeros for dense gradients.

        Args:
            seed: of the run.
            round: from 1.
            device: whose steps they are.
            state: what the round starts from; directions that are drawn by it are drawn alike without one.
        """
        if self.directions is None:
            return [0] * self.local_steps
        return self.directions.draw(
            seed, round, device, self.local_steps, self.estimate.directions, state=state
        )

    def whole(self, state: Update) -> Update:
        """Return a state with all coefficients of a pool, as an aggregator's memory starts from it."""
        if not self.pool_size or not isinstance(state, Projected):
            return state
        table = np.zeros(self.pool_size, np.float32)
        np.add.at(table, state.keys, state.coefficients)
        return Projected(np.arange(self.pool_size, dtype=np.int64), table)

    def weighed(self, estimate: Update, state: Update | None) -> Update:
        """Return the estimate that a step is taken along: corrected for how directions were drawn, if they say so."""
        if self.directions is None or not isinstance(estimate, Projected):
            return estimate
        return self.directions.corrected_for(estimate, state)

    def round_keys(self, seed: int, round: int, devices: Sequence[int]) -> list[int]:
        """Return the directions of a round's devices, ascending by device, each once."""
        return list(
            dict.fromkeys(key for device in sorted(devices) for key in self.keys(seed, round, device))
        )

    def in_order(self, update: Projected, seed: int, round: int, devices: Sequence[int]) -> Projected:
        """Return a round's change in the order of its directions: whoever replays the run adds in this order.

        A pool's are in any order, a log's are those of `round_keys`; those of earlier rounds come first.
        """
        if self.pool_size:
            return update
        place = {key: index for index, key in enumerate(self.round_keys(seed, round, devices))}
        order = np.argsort([place.get(key, -1) for key in update.keys.tolist()], kind="stable").astype(
            np.int64
        )
        return Projected(update.keys[order], update.coefficients[order])

    def rate(self, round: int, step: int) -> float:
        """Return the factor on the learning rate of a device's step (from 0) in a round (from 1)."""
        return self.schedule.rate((round - 1) * self.local_steps + step)

    def change(
        self, slopes: Projected, round: int, keys: Sequence[int], state: Update | None = None
    ) -> Projected:
        """Return what a device's steps add up to, by the slopes that counted.

        Args:
            slopes: in the order of the steps.
            round: of the steps.
            keys: the directions of all of the device's steps.
            state: what the round started from.
        """
        rates, place = [], 0
        for key in slopes.keys.tolist():
            while keys[place] != key:
                place += 1
            rates.append(self.rate(round, place // self.estimate.directions))
            place += 1
        weighed = self.weighed(slopes, state)
        return self.local.change(weighed if isinstance(weighed, Projected) else slopes, rates)

    @property
    def digest(self) -> str:
        """SHA-256 of every setting that changes results, and of the user's own code; two devices must agree on it."""
        said = {field: _plain(getattr(self, field)) for field in self.__dataclass_fields__}
        if not self.origin:  # a method of edgetune's is what it says; its digest is that of earlier versions
            del said["origin"]
        if self.survey is None:
            del said["survey"]
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
