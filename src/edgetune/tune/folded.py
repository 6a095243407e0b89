"""The tuned handle of a pool of rank one: a base that nothing writes to, and a small matrix for what is learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgetune.core.errors import ModelError
from edgetune.core.moves import Moves
from edgetune.core.perturbation import Perturbation
from edgetune.core.quantised import PackedTensor, StoredTensor, part_of
from edgetune.core.tuned import Space
from edgetune.core.update import Dense, Projected, Update
from edgetune.tune.moved import MovedReader, quantised
from edgetune.tune.packed_base import packed_product, shaped
from edgetune.tune.parts import Form, floats_of
from edgetune.tune.stacked import StackedTuned
from edgetune.tune.weights import placeholder

UNPERTURBED = Perturbation(0, (0.0,))


class FoldedTuned(StackedTuned):
    """A model on a base that is never written: in any type, packed or memory-mapped, in modules of any library.

        y = W x + D tile(M) E x,   M = H_P C H_Q, at a perturbed point C + s at the direction's place

    A step, a new round, a ledger taken or dropped change K coefficients, nothing else. Layers that are no plain matrix
    products form their tensors when they read them.

    Args:
        model: as for `ProjectedTuned`. Linear layers that hold no floats are multiplied by as they are.
        space: a pool of rank one.
        moves: what it adds; holds what is learnt.
        base: the base values of every parameter as stored; the model's own tensors if not given. Those of packed
            matrices need not be in the model.
        scales: layer-wise factors c.

    Raises:
        ModelError: if a tensor of the base is missing.
    Cost: of memory nothing beside K coefficients and signs of rows and columns; two passes over a layer's
        activations, and P Q multiplications a token.
    """

    def __init__(
        self,
        model: nn.Module,
        space: Space,
        moves: Moves,
        base: Mapping[str, StoredTensor] | None = None,
        *,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        floats = floats_of(model)
        self.base: Mapping[str, StoredTensor] = base or {name: one.detach() for name, one in floats.items()}
        missing = [name for name in floats if name not in self.base]
        if missing:
            raise ModelError("a model on a base of its own needs all of it", where=missing[0])
        self._present, self._foreign = Projected.none(), dict(_foreign(model))
        stands = {
            name: nn.Parameter(shaped(one.out_features, one.in_features), requires_grad=False)
            for name, one in self._foreign.items()
        }
        super().__init__(model, space, moves, base={}, weights={**floats, **stands}, scales=scales)
        for name, weight in floats.items():
            stored = self.base[name]
            if isinstance(stored, PackedTensor):
                weight.data = placeholder(weight.data)
            elif stored.dtype == weight.dtype and stored.device == weight.device:
                weight.data = stored
        self.inspect()

    @property
    def reading(self) -> Perturbation | None:
        """What is to be read now: never a module alone, once anything was learnt or the base is packed."""
        return self.perturbation or UNPERTURBED

    def _plain(self, module: nn.Module, name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        stored = self.base.get(name)
        return packed_product(module, stored, self._directions) if isinstance(stored, PackedTensor) else None

    def form(self, name: str, now: Perturbation, *, few: bool = False) -> Form:
        """Return what forms a parameter at one point, whole."""
        (scale,) = now.scales

        def form(out: torch.Tensor, start: int) -> None:
            stored = self.base[name] if name in self.base else self._multiplied(name)
            factor = self.scales.get(name, 1.0)
            state = self._present if factor == 1 else self._present.scaled(factor)
            base = part_of(stored, 0, out.numel())
            if isinstance(base, torch.Tensor):
                base = base.view(out.shape)
            self._directions.read(out, base, state, name, (now.seed, scale / factor), 0)

        return form

    def _multiplied(self, name: str) -> torch.Tensor:
        """Return the matrix of a layer that holds no floats, float32 [outputs, inputs], found by multiplying."""
        module = self._foreign[name]
        (plain,) = (one.plain for one in self._readers if isinstance(one, MovedReader) and one.weight == name)
        held = [*module.parameters(), *module.buffers()]
        eye = torch.eye(module.in_features, device=held[0].device if held else None)
        return (plain(eye) - plain(torch.zeros_like(eye[:1]))).T.float().contiguous()

    @torch.no_grad()
    def reset(self, state: Update | None) -> None:
        """Become the base plus `state`."""
        if isinstance(state, Dense):
            raise ModelError("a full-parameter projected handle cannot take dense tensors")
        self._weights.start(Projected.none() if state is None else state)
        self._become()

    def keep(self, folder: Path | None = None) -> None:
        """Do nothing: no weights are stored."""

    @torch.no_grad()
    def apply(self, update: Update) -> None:
        """Add one step to the coefficients."""
        if isinstance(update, Dense):
            raise ModelError("a full-parameter projected handle cannot take dense tensors")
        self._weights.note(update)
        self._become()

    def _become(self) -> None:
        self._present = self._weights.ordered()
        self.moves.become(self._present)

    @torch.no_grad()
    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the present weights by name, each formed when it is asked for."""
        for name, weight in self._weights.parameters.items():
            out = weight.data.new_empty(weight.shape)
            self.form(name, UNPERTURBED)(out, 0)
            yield name, out

    @torch.no_grad()
    def close(self) -> None:
        """Detach from the model, which gets its weights as plain tensors where it holds floats."""
        formed = {name: one for name, one in self.named_weights() if name not in self._foreign}
        for name, value in formed.items():
            self._weights.parameters[name].data = value
        super().close()


def _foreign(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield linear layers that hold no floats, by the name of their matrix."""
    return ((f"{path}.weight", module) for path, module in model.named_modules() if quantised(module))
