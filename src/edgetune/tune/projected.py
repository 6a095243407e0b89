"""The tuned handle of full-parameter forward-only tuning: weights are perturbed when read, never written to do so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from edgetune.core.batch import Batch, Objective, response_loss
from edgetune.core.errors import ModelError
from edgetune.core.keys import refuse_colliding_ids
from edgetune.core.tuned import Adds, Space
from edgetune.core.update import Dense, Projected, Update
from edgetune.tune.parts import PART, Form, reads_in_parts
from edgetune.tune.readers import (
    MOST,
    EmbeddingReader,
    LinearReader,
    NotStackableError,
    Perturbation,
    Reader,
)
from edgetune.tune.scaled import ScaledSpace
from edgetune.tune.walk import one_walk, probe_batch, refuse_direct_reads, stacks

REPLAY_FROM = 4
"""Directions of a step from which one replay is cheaper than adding them one by one (a Hadamard replay costs two)."""


class ProjectedTuned:
    """A model, its immutable base values, and a sum of directions.

        weights = base + sum_i c_i z_i

    Every module that owns trainable parameters reads `w + scale z` from scratch while a perturbation is entered; its
    own tensor stays as it was. float32 weights follow each step by one addition, linear layers when they are read
    next (the handle's `model` and `named_weights` are always up to date); narrower ones are formed anew from base and
    ledger, rounded once, so that no small step is lost.

    Args:
        model: evaluated as it stands (evaluation mode); its parameters become the present weights.
        space: the directions.
        base: the base values by parameter name, of any float type, for example views of a memory-mapped file; a copy
            of the tuned weights if not given.
        weights: the parameters to tune by name, for example an adapter's; all of floating type if not given.
        scales: c by parameter name: perturbations read `w + scale z / c`, steps add `c z`, which is as unbiased as
            without; 1 for a name that is not there.

    Raises:
        ModelError: if two parameters share a direction id, or the model has none.
    Cost: 16 MB of scratch at most for linear and embedding layers, the own parameters of others; a second copy of the
        weights only if no base is given.
    Source: design after Malladi et al. 2023, arXiv:2305.17333 (MeZO), without its in-place drift.
    """

    def __init__(
        self,
        model: nn.Module,
        space: Space,
        *,
        base: Mapping[str, torch.Tensor] | None = None,
        weights: Mapping[str, nn.Parameter] | None = None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self._model, self.scales = model.eval(), dict(scales or {})
        self._directions = space
        self._space: Adds = ScaledSpace(space, self.scales) if self.scales else space
        inverse = {name: 1 / scale for name, scale in self.scales.items()}
        self._read_space: Adds = ScaledSpace(space, inverse) if self.scales else space
        self._weights = weights or {
            name: weight for name, weight in model.named_parameters() if weight.is_floating_point()
        }
        if not self._weights:
            raise ModelError("the model has no parameters to tune")
        refuse_colliding_ids(self._weights)
        for weight in self._weights.values():
            weight.data = weight.data.contiguous()
        self._base = (
            base
            if base is not None
            else {name: weight.detach().clone() for name, weight in self._weights.items()}
        )
        self._start, self._steps = Projected.none(), Projected.none()
        self.perturbation: Perturbation | None = None
        self._pending: dict[str, tuple[int, float]] = {}
        self._late: set[str] = set()
        self._readers = list(self._attach())
        self._stacks: bool | None = None
        self._hidden: dict[str, torch.Tensor] = {}
        self._halfway = False

    @property
    def model(self) -> nn.Module:
        """The module to run; its parameters have taken all steps."""
        self._recover()
        self._settle_all()
        return self._model

    @property
    def reading(self) -> Perturbation | None:
        """What is to be read now; None if the module's own parameters are."""
        return self.perturbation

    @property
    def alignment(self) -> int:
        """Multiples at which a part of a tensor may start; 0 if tensors are formed whole."""
        return self._directions.alignment

    @property
    def part(self) -> int:
        """Elements of a matrix that are formed at a time."""
        return PART

    def form(self, name: str, now: Perturbation, *, few: bool = False) -> Form:
        """Return what forms parts of a parameter at one point; a pending step is added to few elements on the way."""
        flat, (scale,) = self._value(name).view(-1), now.scales
        if not few:
            self.settle(name)
        pending = self._pending.get(name)

        def form(out: torch.Tensor, start: int) -> None:
            base = flat[start : start + out.numel()].view(out.shape)
            if pending:
                self._space.axpy(out, base, pending[1], name, pending[0], start)
            self._read_space.axpy(out, out if pending else base, scale, name, now.seed, start)

        return form

    def product(self, name: str, x: torch.Tensor, now: Perturbation) -> torch.Tensor | None:
        """Return `x W^T` at two points in one pass over W, which takes its pending step; None if that is not served."""
        weight = self._value(name)
        if len(now.scales) == 1 or not self._directions.multiplies(x, weight):
            return None
        factor, pending = self.scales.get(name, 1.0), self._pending.get(name)
        if pending:
            pending = pending[0], pending[1] * factor
        scales = [scale * (1 / factor) for scale in now.scales]
        self._halfway = pending is not None
        y = self._directions.multiply(x, weight, name, now.seed, scales, pending)
        self._pending.pop(name, None)
        self._halfway = False
        return y

    @property
    def pending(self) -> Mapping[str, tuple[int, float]]:
        """Steps that weights have not taken yet: seed and coefficient by name."""
        return self._pending

    @contextmanager
    def perturbed(self, seed: int, scale: float) -> Iterator[None]:
        """While entered, forward passes compute with `w + scale * z(seed)`.

        Args:
            seed: the direction.
            scale: signed, in units of the weights.

        Raises:
            RuntimeError: if a perturbation is entered already.
        Cost: one draw and one pass over each tensor for every forward pass.
        """
        if self.perturbation is not None:
            raise RuntimeError("perturbations do not nest")
        self._recover()
        self.perturbation = Perturbation(seed, (scale,))
        try:
            yield
        finally:
            self.perturbation = None

    @torch.no_grad()
    def losses(self, objective: Objective, batch: Batch, seed: int, scales: Sequence[float]) -> list[float]:
        """Evaluate an objective at several points of one line.

            L(w + scale * z(seed)) for every scale

        Args:
            objective: called with the model and the batch.
            batch: the same for every point.
            seed: the direction.
            scales: signed, in units of the weights; 0 is the unperturbed model.

        Returns:
            One loss a scale.
        Cost: one forward pass a scale; two scales on a small batch pass the weights once.
        """
        self._recover()
        few = batch.input_ids.numel() <= MOST
        if self._stacks is None:
            self._stacks = self._inspect()
        if self._stacks and few and len(scales) == 2 and objective is response_loss:
            try:
                return one_walk(self, self._model, batch, seed, scales)
            except NotStackableError:
                self._stacks = False
        return self._one_by_one(objective, batch, seed, scales)

    def _inspect(self) -> bool:
        """Refuse a model that cannot be perturbed on read; say whether both points can be walked together."""
        batch = probe_batch(self._model)
        if batch is None:
            return False
        refuse_direct_reads(self, self._model, list(self._weights), batch)
        return stacks(self, self._model, batch)

    @contextmanager
    def hiding(self, names: Iterable[str]) -> Iterator[None]:
        """While entered, the parameters themselves hold NaN; readers see what they held."""
        self._hidden = {name: self._weights[name].data for name in names}
        try:
            for name, value in self._hidden.items():
                self._weights[name].data = value.new_full((), float("nan")).expand(value.shape)
            yield
        finally:
            for name, value in self._hidden.items():
                self._weights[name].data = value
            self._hidden = {}

    def _value(self, name: str) -> torch.Tensor:
        return self._hidden[name] if name in self._hidden else self._weights[name].data

    def _one_by_one(
        self, objective: Objective, batch: Batch, seed: int, scales: Sequence[float]
    ) -> list[float]:
        found = []
        for scale in scales:
            with self.perturbed(seed, scale):
                found.append(float(objective(self._model, batch)))
        return found

    @torch.no_grad()
    def reset(self, state: Update | None) -> None:
        """Become the base plus `state`.

        Raises:
            ModelError: if the state is not projected.
        """
        state = Projected.none() if state is None else state
        if isinstance(state, Dense):
            raise ModelError("a full-parameter projected handle cannot take dense tensors")
        self._start, self._steps = state, Projected.none()
        self._materialise()

    @torch.no_grad()
    def apply(self, update: Update) -> None:
        """Add one step; coefficients of zero leave the weights bit-identical.

        In float32 a few directions are added one after the other, each rounded; from REPLAY_FROM on their sum is formed
        in float32 and added once, so that a step of a whole pool costs one transform. Either is the same on every
        machine, and differs from the weights of `reset(state())` by the rounding of the additions.
        """
        if isinstance(update, Dense):
            raise ModelError("a full-parameter projected handle cannot take dense tensors")
        moving = update.coefficients != 0
        update = Projected(update.keys[moving], update.coefficients[moving])
        if not len(update.keys):
            return
        self._recover()
        self._halfway = True
        self._steps = self._steps + update
        self._add(update)
        self._halfway = False

    def _add(self, update: Projected) -> None:
        if any(weight.dtype != torch.float32 for weight in self._weights.values()):
            self._materialise()
            return
        for name, weight in self._weights.items():
            if len(update.keys) >= REPLAY_FROM:
                self._take(name)
                self._space.replay(weight.data, weight.data, update, name)
                continue
            for seed, coefficient in zip(update.keys.tolist(), update.coefficients.tolist(), strict=True):
                self._take(name)
                if name in self._late:
                    self._pending[name] = (seed, coefficient)
                else:
                    self._space.axpy(weight.data, weight.data, coefficient, name, seed)

    @torch.no_grad()
    def settle(self, name: str) -> None:
        """Let a weight take its pending step now."""
        if name in self._pending:
            self._halfway = True
            self._take(name)
            self._halfway = False

    def _take(self, name: str) -> None:
        if name in self._pending:
            seed, coefficient = self._pending.pop(name)
            weight = self._value(name)
            self._space.axpy(weight, weight, coefficient, name, seed)

    def _recover(self) -> None:
        """Form the weights anew if an interrupt came while a step was being added; the ledger knows what they are."""
        if self._halfway:
            self._materialise()
            self._halfway = False

    def _settle_all(self) -> None:
        for name in list(self._pending):
            self.settle(name)

    def delta(self) -> Projected:
        """Return the steps since the last reset, equal keys added."""
        return self._steps.merged()

    def state(self) -> Projected:
        """Return the steps since the base, equal keys added."""
        return (self._start + self._steps).merged()

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the present weights by name."""
        self._recover()
        self._settle_all()
        return ((name, weight.data) for name, weight in self._weights.items())

    def adapter(self) -> dict[str, Any] | None:
        """Return None: these are the model's own weights."""
        return None

    def close(self) -> None:
        """Detach from the model, which keeps its present weights."""
        self._recover()
        self._settle_all()
        for reader in self._readers:
            reader.close()

    def _materialise(self) -> None:
        self._pending.clear()
        state = self.state()
        # In order of key: a codec or a ledger may reorder an update, and the bits must not depend on it.
        order = np.argsort(state.keys, kind="stable")
        order = order[state.coefficients[order] != 0]
        ordered = Projected(state.keys[order], state.coefficients[order])
        for name, weight in self._weights.items():
            base = self._base[name].to(weight.device)
            if len(order):
                self._space.replay(weight.data, base, ordered, name)
            else:
                weight.data.copy_(base)

    def _attach(self) -> Iterator[Reader]:
        names = {id(weight): name for name, weight in self._weights.items()}
        for module in self._model.modules():
            own = {key: names[id(value)] for key, value in module._parameters.items() if id(value) in names}
            if not own:
                continue
            if not (self.alignment and "weight" in own and reads_in_parts(module)):
                yield Reader(self, module, own)
            elif isinstance(module, nn.Embedding):
                yield EmbeddingReader(self, module, own)
            else:
                yield LinearReader(self, module, own)
                self._late.add(own["weight"])
