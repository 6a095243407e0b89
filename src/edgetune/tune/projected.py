"""The tuned handle of full-parameter forward-only tuning: weights are perturbed when read, never written to do so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgetune.core.batch import Batch, Objective, RecordLosses, mean_losses, response_loss, response_losses
from edgetune.core.errors import ModelError
from edgetune.core.perturbation import NotStackableError, Perturbation
from edgetune.core.tuned import Adds, Space
from edgetune.core.update import Dense, Projected, Update
from edgetune.tune.attach import attach
from edgetune.tune.parts import GPU_PART, PART, Form, direction_of, floats_of
from edgetune.tune.readers import LinearReader, Reader
from edgetune.tune.scaled import ScaledSpace
from edgetune.tune.walk import one_walk, probe_batch, refuse_direct_reads, stacks
from edgetune.tune.weights import Weights


class ProjectedTuned:
    """A model, its immutable base values, and a sum of directions.

        weights = base + sum_i c_i z_i

    Every module that owns trainable parameters reads `w + scale z` from scratch while a perturbation is entered; its
    own tensor stays as it was. Weights follow each step by one addition, float32 linear layers when they are read next
    (the handle's `model` and `named_weights` are always up to date). Narrow weights lose no small step: see `Weights`.

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
    Cost: scratch of 16 MB (64 MB on a GPU) for linear and embedding layers, of the own parameters of others; a second
        copy of the weights if no base is given; two bytes a narrow weight for remainders of independent directions.
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
        self._weights = Weights(weights or floats_of(model), self._space, base)
        self.perturbation: Perturbation | None = None
        self._readers = list(self._attached(model))
        linear = (one.weight for one in self._readers if isinstance(one, LinearReader))
        self._weights.late |= {name for name in linear if name is not None}
        self._stacks: bool | None = None

    def _attached(self, model: nn.Module) -> Iterator[Reader]:
        return attach(self, model, self._weights.parameters)

    @property
    def model(self) -> nn.Module:
        """The module to run; its parameters have taken all steps."""
        self._weights.settle()
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
        return GPU_PART if next(iter(self._weights.parameters.values())).is_cuda else PART

    def form(self, name: str, now: Perturbation, *, few: bool = False) -> Form:
        """Return what forms parts of a parameter at one point; a pending step is added to few elements on the way."""
        flat, (scale,) = self._weights.value(name).view(-1), now.scales
        if not few:
            self._weights.settle([name])
        pending = self._weights.pending.get(name)

        def form(out: torch.Tensor, start: int) -> None:
            base = flat[start : start + out.numel()].view(out.shape)
            if pending:
                self._space.axpy(out, base, pending[1], name, pending[0], start)
            self._read_space.axpy(out, out if pending else base, scale, name, now.seed, start)

        return form

    def product(self, name: str, x: torch.Tensor, now: Perturbation) -> torch.Tensor | None:
        """Return `x W^T` at two points in one pass over W, which takes its pending step; None if that is not served."""
        weight = self._weights.value(name)
        if len(now.scales) == 1 or not self._directions.multiplies(x, weight):
            return None
        scales, factor = self._factored(name, now)
        with self._weights.taking(name) as pending:
            step = (pending[0], pending[1] * factor) if pending else None
            return self._directions.multiply(x, weight, name, now.seed, scales, step)

    def rows(self, name: str, ids: torch.Tensor, now: Perturbation) -> torch.Tensor | None:
        """Return rows of a matrix at all points, a pending step included; None if that is not served."""
        weight = self._weights.value(name)
        if not self._directions.multiplies(weight, weight):
            return None
        scales, factor = self._factored(name, now)
        pending = self._weights.pending.get(name)
        step = (pending[0], pending[1] * factor) if pending else None
        return self._directions.gather(ids, weight, name, now.seed, scales, step)

    def points(self, name: str, now: Perturbation) -> torch.Tensor:
        """Return a small parameter at all points, [points, ...]."""
        self._weights.settle([name])
        scales, _ = self._factored(name, now)
        return self._directions.points(self._weights.value(name), name, now.seed, scales)

    def _factored(self, name: str, now: Perturbation) -> tuple[list[float], float]:
        """Return the perturbations of a parameter under layer-wise scaling, and its factor on steps."""
        factor = self.scales.get(name, 1.0)
        return [scale * (1 / factor) for scale in now.scales], factor

    @property
    def few(self) -> int:
        """Greatest number of rows of one point for which reading a matrix in the cache is the faster way."""
        return self._directions.few

    @property
    def pending(self) -> Mapping[str, tuple[int, float]]:
        """Steps that weights have not taken yet: seed and coefficient by name."""
        return self._weights.pending

    @contextmanager
    def perturbed(self, seed: int, scale: float) -> Iterator[None]:
        """While entered, forward passes compute with `w + scale * z(seed)`; scale in units of the weights.

        Raises:
            RuntimeError: if a perturbation is entered already.
        Cost: one draw and one pass over each tensor for every forward pass.
        """
        if self.perturbation is not None:
            raise RuntimeError("perturbations do not nest")
        self._weights.recover()
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
        if objective is response_loss:
            return mean_losses(*self.record_losses(response_losses, batch, seed, scales))
        self._weights.recover()
        found = []
        for scale in scales:
            with self.perturbed(seed, scale):
                found.append(float(objective(self._model, batch)))
        return found

    @torch.no_grad()
    def record_losses(
        self, losses: RecordLosses, batch: Batch, seed: int, scales: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate every record at several points of one line, at the cost of `losses`.

        Returns:
            float32 [points, records] sums and int64 [records] counts.
        """
        self._weights.recover()
        few = batch.input_ids.numel() <= self.few
        if self.inspect() and few and len(scales) == 2 and losses is response_losses:
            now = Perturbation(seed, tuple(scales), len(batch.input_ids))
            try:
                return one_walk(self, self._model, batch, now)
            except NotStackableError:
                self._stacks = False
        found = []
        for scale in scales:
            with self.perturbed(seed, scale):
                sums, counts = losses(self._model, batch)
            found.append(sums)
        return torch.stack(found), counts

    @torch.no_grad()
    def inspect(self) -> bool:
        """Say whether both points of a step can be walked together; asked of the model once.

        Raises:
            ModelError: if some weights cannot be perturbed on read, naming them.
        Cost: a few forward passes of 21 tokens.
        """
        if self._stacks is None:
            batch = probe_batch(self._model)
            if batch is not None:
                refuse_direct_reads(self, self._model, list(self._weights.parameters), batch)
            self._stacks = batch is not None and stacks(self, self._model, batch)
        return self._stacks

    def hiding(self, names: Iterable[str]) -> AbstractContextManager[None]:
        """While entered, the parameters themselves hold NaN; readers see what they held."""
        return self._weights.hiding(names)

    @torch.no_grad()
    def reset(self, state: Update | None) -> None:
        """Become the base plus `state`.

        Raises:
            ModelError: if the state is not projected.
        """
        state = Projected.none() if state is None else state
        if isinstance(state, Dense):
            raise ModelError("a full-parameter projected handle cannot take dense tensors")
        self._weights.reset(state)

    @torch.no_grad()
    def keep(self, folder: Path | None = None) -> None:
        """Set the present weights aside if coming back to them would take a replay of fresh directions."""
        self._weights.keep(folder)

    @torch.no_grad()
    def apply(self, update: Update) -> None:
        """Add one step; coefficients of zero leave the weights bit-identical.

        Independent directions are added one after the other, each sum rounded: of fresh directions that no later step
        moves again, these are the weights of `reset(state())`. Few directions of a transform's pool are added so, from
        REPLAY_FROM on their sum is, which differs from `reset(state())` by the rounding of the additions.
        """
        if isinstance(update, Dense):
            raise ModelError("a full-parameter projected handle cannot take dense tensors")
        moving = update.coefficients != 0
        update = Projected(update.keys[moving], update.coefficients[moving])
        if len(update.keys):
            self._weights.add(update)

    @torch.no_grad()
    def settle(self, name: str) -> None:
        """Let a weight take its pending step now."""
        self._weights.settle([name])

    def delta(self) -> Projected:
        """Return the steps since the last reset, equal keys added."""
        return self._weights.delta()

    def state(self) -> Projected:
        """Return the steps since the base, equal keys added."""
        return self._weights.state()

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the present weights by name."""
        self._weights.settle()
        return ((name, weight.data) for name, weight in self._weights.parameters.items())

    def direction(self, seed: int) -> dict[str, torch.Tensor]:
        """Return a direction of all tuned weights by name, as a perturbation of 1 would add it."""
        return direction_of(self._weights.parameters, self._read_space, seed)

    def adapter(self) -> dict[str, Any] | None:
        """Return None: these are the model's own weights."""
        return None

    def close(self) -> None:
        """Detach from the model, which keeps its present weights."""
        self._weights.settle()
        for reader in self._readers:
            reader.close()
