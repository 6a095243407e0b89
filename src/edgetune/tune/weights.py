"""The stored weights of a projected handle: base plus steps, the last of which some take when they are read next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from edgetune.core.blank import blank_like, is_blank
from edgetune.core.errors import ModelError
from edgetune.core.keys import refuse_colliding_ids
from edgetune.core.remainder import narrow
from edgetune.core.tuned import Adds
from edgetune.core.update import Projected
from edgetune.tune.snapshot import Snapshot

REPLAY_FROM = 4
"""Directions of a step from which one replay is cheaper than adding them one by one (a Hadamard replay costs two)."""


class Weights:
    """Parameters of a model as base plus a sum of directions.

        weights = ((base + c_1 z_1) + c_2 z_2) + ...      fresh directions, in the order of the steps
        weights = base + sum_k a_k z_k                    a pool, in the order of its directions

    A float32 weight follows each step by one addition; those named in `late` when they are read next. So does a
    narrower one, which keeps the remainder of its rounding beside it (`core.remainder`), where directions are
    independent; where a transform sums them all it is formed anew from base and steps. No small step is lost.

    Of fresh directions a state that goes on from another costs what was added since, so that a round costs the same
    however many came before: the present weights go on, or those set aside by `keep`.

    Args:
        parameters: by name; their present values are what they hold.
        space: the directions.
        base: the base values by name, of any float type; a copy of the present values if not given.

    Raises:
        ModelError: if there are no parameters, or two share a direction id.
    Cost: of narrow weights two bytes each, from the first step along independent directions on.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        space: Adds,
        base: Mapping[str, torch.Tensor] | None,
    ) -> None:
        if not parameters:
            raise ModelError("the model has no parameters to tune")
        refuse_colliding_ids(parameters)
        self.parameters, self._space = parameters, space
        for weight in parameters.values():
            if not is_blank(weight):
                weight.data = weight.data.contiguous()
        self._base = (
            base if base is not None else {name: one.detach().clone() for name, one in parameters.items()}
        )
        self.late: set[str] = set()
        self.pending: dict[str, tuple[int, float]] = {}
        self._hidden: dict[str, torch.Tensor] = {}
        self._remainders: dict[str, torch.Tensor] = {}
        self._start, self._steps = Projected.none(), list[Projected]()
        self._aside: tuple[Projected, Snapshot] | None = None
        self._halfway = False

    @property
    def hidden(self) -> Mapping[str, torch.Tensor]:
        """Parameters that hold NaN at the moment: what they held, by name."""
        return self._hidden

    def value(self, name: str) -> torch.Tensor:
        """Return what a parameter holds, without its pending step."""
        return self._hidden[name] if name in self._hidden else self.parameters[name].data

    def delta(self) -> Projected:
        """Return the steps since the last reset, equal keys added."""
        return Projected.chain(self._steps).merged()

    def state(self) -> Projected:
        """Return the steps since the base: of a pool equal keys added, else those of one interval."""
        total = Projected.chain([self._start, self.delta()])
        return total.merged() if self._space.pooled else total

    def ordered(self) -> Projected:
        """Return the state as weights are formed from it: a pool in order of key, whatever a codec made of it."""
        return self._ordered(self.state())

    def _ordered(self, state: Projected) -> Projected:
        return (state.sorted() if self._space.pooled else state).moving()

    def reset(self, state: Projected) -> None:
        """Become the base plus `state`."""
        if self._space.pooled:
            self.start(state)
            self.materialise()
            return
        state = state.moving()
        self.recover()
        present, steps = self.state(), Projected.chain(self._steps)
        self._halfway = True
        if len(self.delta().keys) == len(steps.keys) and state.goes_on_from(present):
            self._go_on(state, len(present.keys))
        elif self._aside is not None and state.goes_on_from(self._aside[0]):
            self.pending.clear()
            self._aside[1].read(self._bits())
            self._go_on(state, len(self._aside[0].keys))
        else:
            self.start(state)
            self.materialise()
        self._halfway = False

    def _go_on(self, state: Projected, done: int) -> None:
        """Add what `state` holds beyond its first `done` directions."""
        self.start(state)
        rest = state.after(done)
        for name in self.parameters if len(rest.keys) else ():
            self._add(name, rest)

    def keep(self, folder: Path | None) -> None:
        """Set the present weights aside, so that coming back to them, or going on from them, costs a copy.

        Of a pool nothing is set aside: its weights are formed anew at the cost of a few additions.

        Args:
            folder: where a nameless file may lie; the system's temporary folder if None.

        Raises:
            OutputError: if they cannot be written.
        Cost: the weights' bytes on disk.
        """
        if self._space.pooled:
            return
        self.reset(self.state())
        if self._aside is not None and self._start.equals(self._aside[0]):
            return
        self.settle()
        snapshot = self._aside[1] if self._aside is not None else None
        self._aside = None
        if len(self._start.keys):  # the base itself is always at hand
            snapshot = snapshot or Snapshot(folder)
            snapshot.write(self._bits())
            self._aside = (self._start, snapshot)

    def _bits(self) -> Iterator[torch.Tensor]:
        """Yield everything that a state is made of."""
        for name, weight in self.parameters.items():
            yield weight.data
            if narrow(weight.dtype):
                yield self._remainder(name)

    def start(self, state: Projected) -> None:
        """Set the state only, not the weights."""
        self._start, self._steps = state, []

    def note(self, update: Projected) -> None:
        """Add a step to the state only."""
        self._steps.append(update)

    def add(self, update: Projected) -> None:
        """Add a step."""
        self.recover()
        self._halfway = True
        self.note(update)
        if self._space.transforms and any(narrow(weight.dtype) for weight in self.parameters.values()):
            self.materialise()
        elif len(update.keys) == 1:
            self._put_off(update)
        else:
            for name in self.parameters:
                self._add(name, update)
        self._halfway = False

    def _put_off(self, update: Projected) -> None:
        """Add one direction: weights that take it at the next pass have nothing done to them now."""
        step, late, pending = (int(update.keys[0]), float(update.coefficients[0])), self.late, self.pending
        for name, weight in self.parameters.items():
            if name in late and name not in pending and not narrow(weight.dtype):
                pending[name] = step
            else:
                self._add(name, update)

    def _add(self, name: str, update: Projected) -> None:
        self._take(name)
        weight = self.value(name)
        if narrow(weight.dtype):
            base = self._base_of(name) if name not in self._remainders else None
            if (
                base is not None and base.dtype == weight.dtype
            ):  # nothing remains, and its pages stay untouched
                self._remainder(name).zero_()
                base = None
            self._space.follow(weight, self._remainder(name), update, name, base)
            return
        if len(update.keys) >= REPLAY_FROM:
            self._space.replay(weight, weight, update, name)
            return
        for seed, coefficient in zip(update.keys.tolist(), update.coefficients.tolist(), strict=True):
            self._take(name)
            if name in self.late:
                self.pending[name] = (seed, coefficient)
            else:
                self._space.axpy(weight, weight, coefficient, name, seed)

    def _remainder(self, name: str) -> torch.Tensor:
        """Return the remainders of a narrow weight; one that stands at its base has none yet."""
        if name not in self._remainders:
            self._remainders[name] = torch.empty_like(self.value(name), dtype=torch.int16)
        return self._remainders[name]

    def _base_of(self, name: str) -> torch.Tensor:
        return self._base[name].to(self.parameters[name].device)

    def materialise(self) -> None:
        """Form all weights anew from the base and the state."""
        self.pending.clear()
        self._remainders.clear()
        ordered = self.ordered()
        for name, weight in self.parameters.items():
            base = self._base_of(name)
            if not len(ordered.keys):
                weight.data.copy_(base)
            elif narrow(weight.dtype) and not self._space.transforms:
                self._space.follow(weight.data, self._remainder(name), ordered, name, base)
            else:
                self._space.replay(weight.data, base, ordered, name)

    @contextmanager
    def taking(self, name: str) -> Iterator[tuple[int, float] | None]:
        """Hand a pending step to a caller that adds it to the weight; it is taken at the end."""
        pending = self.pending.get(name)
        self._halfway = self._halfway or pending is not None
        yield pending
        self.pending.pop(name, None)
        self._halfway = False

    def settle(self, names: Iterable[str] | None = None) -> None:
        """Let weights take their pending steps now, all of them if none are named."""
        self.recover()
        for name in list(self.pending) if names is None else names:
            if name in self.pending:
                self._halfway = True
                self._take(name)
                self._halfway = False

    def _take(self, name: str) -> None:
        if name in self.pending:
            seed, coefficient = self.pending.pop(name)
            weight = self.value(name)
            self._space.axpy(weight, weight, coefficient, name, seed)

    def recover(self) -> None:
        """Form the weights anew if an interrupt came while a step was being added; the state says what they are."""
        if self._halfway:
            self.materialise()
            self._halfway = False

    @contextmanager
    def hiding(self, names: Iterable[str]) -> Iterator[None]:
        """While entered, the parameters themselves hold NaN; `value` is what they held."""
        self._hidden = {name: self.parameters[name].data for name in names}
        try:
            for name, value in self._hidden.items():
                self.parameters[name].data = blank_like(value)
            yield
        finally:
            for name, value in self._hidden.items():
                self.parameters[name].data = value
            self._hidden = {}
