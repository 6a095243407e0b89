"""The base of handles that store no tuned weights: they are formed where somebody asks for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from edgetune.core.blank import blank_like
from edgetune.core.errors import ModelError
from edgetune.core.in_parts import InParts
from edgetune.core.perturbation import UNPERTURBED, Perturbation
from edgetune.core.update import Dense, Projected, Update
from edgetune.tune.projected import ProjectedTuned

FORMED_PART = 1 << 20
"""Elements formed at a time: 4 MB, small beside the packed base of a model worth streaming."""


class FormedTuned(ProjectedTuned):
    """A model whose state is coefficients alone, beside a base that nothing writes to.

        weights = base + sum_k a_k z_k,   formed when they are asked for

    A model whose own parameters are blank (`core.blank`), because it was opened without its matrices, is left so when
    the handle is released; it gets its weights only from `close`.
    """

    _present: Projected
    _blanks: set[str]
    """Parameters that hold nothing."""

    @property
    def reading(self) -> Perturbation | None:
        """What is to be read now: never a module's own parameters."""
        return self.perturbation or UNPERTURBED

    @property
    def _holders(self) -> Mapping[str, nn.Parameter]:
        """Parameters in whose place the handle reads its base, those that it tunes among them."""
        return self._weights.parameters

    @abstractmethod
    def _become(self, state: Projected) -> None:
        """Compute with `state` from now on."""

    @abstractmethod
    def _unit(self, name: str) -> int:
        """Return the elements at multiples of which `form` may start within a parameter; 0 if it forms all of it."""

    @torch.no_grad()
    def reset(self, state: Update | None) -> None:
        """Become the base plus `state`."""
        if isinstance(state, Dense):
            raise ModelError("a full-parameter projected handle cannot take dense tensors")
        self._weights.start(Projected.none() if state is None else state)
        self._become(self._weights.ordered())

    def keep(self, folder: Path | None = None) -> None:
        """Do nothing: no weights are stored."""

    @torch.no_grad()
    def apply(self, update: Update) -> None:
        """Add one step to the coefficients."""
        if isinstance(update, Dense):
            raise ModelError("a full-parameter projected handle cannot take dense tensors")
        self._weights.note(update)
        self._become(self._weights.ordered())

    @torch.no_grad()
    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the present weights by name, each formed when it is asked for."""
        return ((name, self._formed(name)) for name in self._weights.parameters)

    def named_parts(self) -> Iterator[tuple[str, InParts]]:
        """Yield the present weights by name, a large one in parts of 4 MB.

        Cost: one pass over the base, of which nothing is kept.
        """
        for name, weight in self._weights.parameters.items():
            yield name, InParts(tuple(weight.shape), weight.dtype, partial(self._parts, name))

    @torch.no_grad()
    def _formed(self, name: str) -> torch.Tensor:
        weight = self._holders[name]
        out = weight.data.new_empty(weight.shape)
        self.form(name, UNPERTURBED)(out, 0)
        return out

    @torch.no_grad()
    def _parts(self, name: str) -> Iterator[torch.Tensor]:
        weight, unit = self._weights.parameters[name], self._unit(name)
        step = max(1, FORMED_PART // unit) * unit if unit else weight.numel()
        if weight.numel() <= step:
            yield self._formed(name)
            return
        form, width = self.form(name, UNPERTURBED), weight.shape[-1]
        scratch = weight.data.new_empty(step)
        for start in range(0, weight.numel(), step):
            out = scratch[: weight.numel() - start]
            form(out.view(-1, width) if not out.numel() % width else out, start)
            yield out

    @torch.no_grad()
    def close(self) -> None:
        """Detach from the model, which gets its weights as plain tensors where it can hold floats."""
        formed = {name: self._formed(name) for name in self._own()}
        self._detach(formed)

    @torch.no_grad()
    def release(self) -> None:
        """Detach from the model, which is the base again; what was blank when the handle took it is so again."""
        self.reset(None)
        whole = {name: self._formed(name) for name in self._own() if name not in self._blanks}
        self._detach(whole | {name: blank_like(self._holders[name].data) for name in self._blanks})

    def _own(self) -> list[str]:
        """Return the names of the parameters that the model has itself."""
        return list(self._holders)

    def _detach(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self._holders[name].data = value
        super().close()
