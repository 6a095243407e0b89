"""The stored weights of a projected handle: base plus steps, the last of which some take when they are read next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from edgetune.core.errors import ModelError
from edgetune.core.keys import refuse_colliding_ids
from edgetune.core.tuned import Adds
from edgetune.core.update import Projected

REPLAY_FROM = 4
"""Directions of a step from which one replay is cheaper than adding them one by one (a Hadamard replay costs two)."""


class Weights:
    """Parameters of a model as base plus a sum of directions.

        weights = base + sum_i c_i z_i

    float32 weights follow each step by one addition, those named in `late` when they are read next; narrower ones are
    formed anew from base and steps, rounded once, so that no small step is lost.

    Args:
        parameters: by name; their present values are what they hold.
        space: the directions.
        base: the base values by name, of any float type; a copy of the present values if not given.

    Raises:
        ModelError: if there are no parameters, or two share a direction id.
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
            weight.data = weight.data.contiguous()
        self._base = (
            base if base is not None else {name: one.detach().clone() for name, one in parameters.items()}
        )
        self.late: set[str] = set()
        self.pending: dict[str, tuple[int, float]] = {}
        self._hidden: dict[str, torch.Tensor] = {}
        self._start, self._steps = Projected.none(), Projected.none()
        self._halfway = False

    def value(self, name: str) -> torch.Tensor:
        """Return what a parameter holds, without its pending step."""
        return self._hidden[name] if name in self._hidden else self.parameters[name].data

    def delta(self) -> Projected:
        """Return the steps since the last reset, equal keys added."""
        return self._steps.merged()

    def state(self) -> Projected:
        """Return the steps since the base, equal keys added."""
        return (self._start + self._steps).merged()

    def ordered(self) -> Projected:
        """Return the state in order of key: a codec or ledger may reorder it, and the bits must not depend on it."""
        state = self.state()
        order = np.argsort(state.keys, kind="stable")
        order = order[state.coefficients[order] != 0]
        return Projected(state.keys[order], state.coefficients[order])

    def reset(self, state: Projected) -> None:
        """Become the base plus `state`."""
        self.start(state)
        self.materialise()

    def start(self, state: Projected) -> None:
        """Set the state only, not the weights."""
        self._start, self._steps = state, Projected.none()

    def note(self, update: Projected) -> None:
        """Add a step to the state only."""
        self._steps = self._steps + update

    def add(self, update: Projected) -> None:
        """Add a step."""
        self.recover()
        self._halfway = True
        self.note(update)
        if any(weight.dtype != torch.float32 for weight in self.parameters.values()):
            self.materialise()
        else:
            for name in self.parameters:
                self._add(name, update)
        self._halfway = False

    def _add(self, name: str, update: Projected) -> None:
        self._take(name)
        weight = self.value(name)
        if len(update.keys) >= REPLAY_FROM:
            self._space.replay(weight, weight, update, name)
            return
        for seed, coefficient in zip(update.keys.tolist(), update.coefficients.tolist(), strict=True):
            self._take(name)
            if name in self.late:
                self.pending[name] = (seed, coefficient)
            else:
                self._space.axpy(weight, weight, coefficient, name, seed)

    def materialise(self) -> None:
        """Form all weights anew from the base and the state."""
        self.pending.clear()
        ordered = self.ordered()
        for name, weight in self.parameters.items():
            base = self._base[name].to(weight.device)
            if len(ordered.keys):
                self._space.replay(weight.data, base, ordered, name)
            else:
                weight.data.copy_(base)

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
                self.parameters[name].data = placeholder(value)
            yield
        finally:
            for name, value in self._hidden.items():
                self.parameters[name].data = value
            self._hidden = {}


def placeholder(like: torch.Tensor) -> torch.Tensor:
    """Return NaN of the same shape and type in a single number of memory."""
    return like.new_full((), float("nan")).expand(like.shape)
