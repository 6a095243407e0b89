"""The tuned handle of full-parameter forward-only tuning: weights are perturbed when read, never written to do so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from edgetune.core.batch import Batch, Objective
from edgetune.core.errors import ModelError
from edgetune.core.keys import refuse_colliding_ids
from edgetune.core.tuned import Space
from edgetune.core.update import Dense, Projected, Update
from edgetune.tune.parts import Form, perturbed_linear, perturbed_rows, reads_in_parts
from edgetune.tune.scaled import ScaledSpace
from edgetune.tune.scratch import Scratch

REPLAY_FROM = 4
"""Directions of a step from which one replay is cheaper than adding them one by one (a Hadamard replay costs two)."""


class ProjectedTuned:
    """A model, its immutable base values, and a sum of directions.

        weights = base + sum_i c_i z_i

    Every module that owns trainable parameters reads `w + scale z` from a scratch tensor while a perturbation is
    entered; its own tensor stays as it was. float32 weights follow each step by one addition; narrower ones are formed
    anew from base and ledger, rounded once, so that no small step is lost.

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
    Cost: one scratch of the largest tensor; a second copy of the weights only if no base is given.
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
        self._space = ScaledSpace(space, self.scales) if self.scales else space
        inverse = {name: 1 / scale for name, scale in self.scales.items()}
        self._read_space = ScaledSpace(space, inverse) if self.scales else space
        self._weights = weights or {
            name: weight for name, weight in model.named_parameters() if weight.is_floating_point()
        }
        if not self._weights:
            raise ModelError("the model has no parameters to tune")
        refuse_colliding_ids(self._weights)
        self._base = base or {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._start, self._steps = Projected.none(), Projected.none()
        self._perturbation: tuple[int, float] | None = None
        self._scratch = Scratch(max(weight.numel() for weight in self._weights.values()))
        self._readers: list[_Reader] = []
        self._readers_of_parts: list[_PartReader] = []
        self._hooks = list(self._attach())

    @property
    def model(self) -> nn.Module:
        """The module to run."""
        return self._model

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
        if self._perturbation is not None:
            raise RuntimeError("perturbations do not nest")
        self._perturbation = (seed, scale)
        try:
            yield
        finally:
            self._perturbation = None
            for reader in self._readers:  # torch calls no hooks after an interrupt
                reader.leave()

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
        Cost: one forward pass a scale.
        """
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
        self._steps = self._steps + update
        if any(weight.dtype != torch.float32 for weight in self._weights.values()):
            self._materialise()
            return
        for name, weight in self._weights.items():
            if len(update.keys) >= REPLAY_FROM:
                self._space.replay(weight.data, weight.data, update, name)
                continue
            for seed, coefficient in zip(update.keys.tolist(), update.coefficients.tolist(), strict=True):
                self._space.axpy(weight.data, weight.data, coefficient, name, seed)

    def delta(self) -> Projected:
        """Return the steps since the last reset, equal keys added."""
        return self._steps.merged()

    def state(self) -> Projected:
        """Return the steps since the base, equal keys added."""
        return (self._start + self._steps).merged()

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the present weights by name."""
        return ((name, weight.data) for name, weight in self._weights.items())

    def adapter(self) -> dict[str, Any] | None:
        """Return None: these are the model's own weights."""
        return None

    def close(self) -> None:
        """Detach from the model, which keeps its present weights."""
        for hook in self._hooks:
            hook.remove()
        for reader in self._readers_of_parts:
            reader.close()

    def _materialise(self) -> None:
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

    def _attach(self) -> Iterator[Any]:
        names = {id(weight): name for name, weight in self._weights.items()}
        for module in self._model.modules():
            own = {key: names[id(value)] for key, value in module._parameters.items() if id(value) in names}
            if own:
                if self._space.alignment and reads_in_parts(module):
                    self._readers_of_parts.append(_PartReader(self, module, own))
                    continue
                reader = _Reader(self, own)
                self._readers.append(reader)
                yield module.register_forward_pre_hook(reader.enter)
                yield module.register_forward_hook(reader.leave, always_call=True)


class _Reader:
    """Swaps one module's own parameters for scratch while it computes under a perturbation."""

    def __init__(self, tuned: ProjectedTuned, own: dict[str, str]) -> None:
        self._tuned, self._own = tuned, own
        self._swapped: list[tuple[nn.Module, str, Any, torch.Tensor]] = []

    @torch.no_grad()
    def enter(self, module: nn.Module, _inputs: Any) -> None:
        tuned = self._tuned
        if tuned._perturbation is None:
            return
        seed, scale = tuned._perturbation
        for key, name in self._own.items():
            weight = module._parameters[key]
            if not isinstance(weight, torch.Tensor):
                continue
            view, buffer = tuned._scratch.take(weight)
            tuned._read_space.axpy(view, weight.data, scale, name, seed)
            self._swapped.append((module, key, weight, buffer))
            module._parameters[key] = view  # type: ignore[assignment]

    def leave(self, *_hook_arguments: Any) -> None:
        while self._swapped:
            module, key, weight, buffer = self._swapped.pop()
            module._parameters[key] = weight
            self._tuned._scratch.give_back(buffer)


class _PartReader:
    """Stands in for the forward of a linear or embedding layer while a perturbation is entered."""

    def __init__(self, tuned: ProjectedTuned, module: nn.Module, own: dict[str, str]) -> None:
        self._tuned, self._module, self._own, self._plain = tuned, module, own, module.forward
        module.forward = self.forward

    def close(self) -> None:
        """Give the layer its own forward back."""
        self._module.__dict__.pop("forward", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._tuned._perturbation is None:
            return cast(torch.Tensor, self._plain(x))
        with torch.no_grad():
            return self._perturbed(x)

    def _perturbed(self, x: torch.Tensor) -> torch.Tensor:
        weight = cast(torch.Tensor, self._module._parameters["weight"]).data
        alignment = self._tuned._space.alignment
        if isinstance(self._module, nn.Embedding):
            rows = perturbed_rows(x, weight, self._form("weight"), alignment)
            return rows if rows is not None else nn.functional.embedding(x, self._whole("weight"))
        y = perturbed_linear(x, weight, self._form("weight"), alignment)
        return y.add_(self._whole("bias")) if self._module._parameters.get("bias") is not None else y

    def _form(self, key: str) -> Form:
        tuned, name = self._tuned, self._own[key]
        seed, scale = cast(tuple[int, float], tuned._perturbation)
        return lambda out, base, start: tuned._read_space.axpy(out, base, scale, name, seed, start)

    def _whole(self, key: str) -> torch.Tensor:
        value = cast(torch.Tensor, self._module._parameters[key]).data
        out = torch.empty_like(value)
        self._form(key)(out, value, 0)
        return out
