"""One model in memory, on which every device of this process takes its turn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import cast

from edgetune.core.batch import Batch, Objective
from edgetune.core.keys import pool_key
from edgetune.core.ledger import DirectionsSpec
from edgetune.core.pieces import Layers
from edgetune.core.tuned import Tuned
from edgetune.core.update import Dense, Update
from edgetune.data.encode import Example
from edgetune.directions.draw import describe
from edgetune.directions.kept import KeptSpace
from edgetune.directions.space import BoundSpace
from edgetune.distil.lesson import Lesson
from edgetune.federation.messages import Messages
from edgetune.federation.precision import UpdateWatch
from edgetune.federation.reply import binding
from edgetune.federation.residency import base_tensors, named_base
from edgetune.federation.start import START, Start
from edgetune.methods.method import TuningMethod
from edgetune.methods.offered import offered_keys, taken_keys
from edgetune.models.backbone import Backbone
from edgetune.models.stored import stored_weights
from edgetune.recipe.residency import FUSED, Residency, check_streams
from edgetune.tune import DenseTuned, FullProjected, ProjectedTuned

LAYER_SCALE, BASE_GRID = "layer_scale", "base_grid"
"""Keys of a ledger's extra entries: JSON of one factor a parameter, and the block grid that the base was rounded to."""


NOWHERE = Start()


class Worker:
    """A backbone and the tuned handle of one method on it.

    Args:
        backbone: the base model; its module becomes the tuned one.
        method: what is tuned and how.
        seed: master seed of the directions (and of an adapter's initial values), unsigned 32 bits.
        residency: where the weights live.
        scratch: folder for what is set aside on disk; the system's temporary folder if not given.
        start: where the first state comes from, if the method's target computes one.
        lesson: what is learnt from a teacher in place of the method's objective.

    Raises:
        ConfigError: if the method's weights cannot be streamed.
        EdgetuneError: as `Start.begin`.
    Cost: one copy of the model beside its memory-mapped base, however many devices use it.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: TuningMethod,
        seed: int,
        residency: Residency = FUSED,
        *,
        scratch: Path | None = None,
        start: Start = NOWHERE,
        lesson: Lesson | None = None,
    ) -> None:
        self.backbone, self.method = named_base(backbone, residency), method
        self.seed, self.residency, self.scratch = seed, residency, scratch
        space = None
        if method.directions is not None:
            kept = isinstance(method.target, FullProjected) and method.target.keep_direction
            make = KeptSpace if kept else BoundSpace
            space = make(method.directions.kind, pool_key(seed), pooled=method.directions.size > 0)
        self._space = space
        self.tuned: Tuned
        if residency.streamed:
            check_streams(method, residency)
            bound = cast(BoundSpace, space)
            base = base_tensors(backbone, residency.grid)
            self.tuned = method.target.stream(backbone.model, bound, base)
        else:
            stored = stored_weights(backbone.folder, backbone.model)
            self.tuned = method.target.open(backbone.model, space, seed, stored)
        self.initial: Dense | None = None
        """The seed's tensors, where messages are relative to them: nobody else's start, so that it needs no message."""
        if method.down.relative and isinstance(self.tuned, DenseTuned):
            self.initial = self.tuned.state()
        self.start = start.begin(method.target, self.tuned, seed)
        """Digest of the computed start; empty if it is the seed's. A worker that awaits it is told by its server."""
        self.lesson, self.objective = lesson, _objective(method, backbone, lesson)
        self.watch = UpdateWatch(self.tuned, method, seed)
        self.layers: Layers = self.tuned.layers if isinstance(self.tuned, DenseTuned) else ()
        self.states: dict[int, Update] = {}
        """What the devices of this process received of late, by completed rounds."""

    @property
    def identity(self) -> str:
        """SHA-256 of what devices and server must share: base, how text becomes tokens, computed start and lesson."""
        parts = [self.backbone.digest, self.backbone.prompt_digest, *([self.start] if self.start else [])]
        parts += [self.lesson.shared] if self.lesson else []
        return sha256(" ".join(parts).encode()).hexdigest()

    def keys(self, round: int, device: int, state: Update) -> list[int]:
        """Return the directions of a device's local steps in a round, those that it chooses among where it does.

        Args:
            round: from 1.
            device: whose steps they are.
            state: what the round starts from.
        """
        offered = offered_keys(self.method, self.seed, round, device, state)
        return taken_keys(self.method, offered, state, self._space, self.tuned.named_weights())

    def batches(
        self, examples: Sequence[Example], pad_id: int, *, device: int, first: int
    ) -> Iterator[Batch]:
        """Yield the batches of a device's steps for ever, completed by the student itself where a lesson says so.

        Args:
            examples: of the device, at least one.
            pad_id: the padding token.
            device: whose they are.
            first: number of the first step, from 0.
        """
        method = self.method
        given = method.sampling.batches(
            examples, method.batch_size, pad_id, seed=self.seed, device=device, first=first
        )
        if self.lesson is None:
            return given
        return self.lesson.batches(given, self.tuned, seed=self.seed, device=device, first=first)

    @property
    def messages(self) -> Messages:
        """How this run's messages are written and read."""
        binds = binding(self.method.digest, self.identity, self.seed)
        return Messages(self.method, binds, self.seed, self.layers, self.initial)

    @property
    def directions(self) -> DirectionsSpec | None:
        """What a ledger says of the directions; None for dense methods."""
        return describe(self.method.directions, self.seed) if self.method.directions is not None else None

    @property
    def extra(self) -> dict[str, str]:
        """What a ledger says besides: factors of layer-wise scaling, a computed start, what the base was rounded to."""
        scales = self.tuned.scales if isinstance(self.tuned, ProjectedTuned) else {}
        said = {LAYER_SCALE: json.dumps(scales, sort_keys=True)} if scales else {}
        said |= {START: self.start} if self.start else {}
        return said | ({BASE_GRID: self.residency.grid.name} if self.residency.grid else {})


def _objective(method: TuningMethod, backbone: Backbone, lesson: Lesson | None) -> Objective | None:
    if lesson is not None:
        return lesson.objective()
    return method.objective.bind(backbone.tokenizer) if method.objective else None
