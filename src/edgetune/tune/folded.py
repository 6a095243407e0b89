"""The tuned handle of a pool of rank one: a base that nothing writes to, and a small matrix for what is learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from edgetune.core.blank import blank, blank_like, is_blank
from edgetune.core.errors import ModelError
from edgetune.core.moves import Moves
from edgetune.core.perturbation import Perturbation
from edgetune.core.quantised import BaseTensor, part_of
from edgetune.core.tuned import Space
from edgetune.core.update import Projected
from edgetune.tune.formed import FormedTuned
from edgetune.tune.moved import MovedReader, quantised
from edgetune.tune.packed_base import stored_product
from edgetune.tune.parts import Form, floats_of
from edgetune.tune.stacked import StackedTuned


class FoldedTuned(FormedTuned, StackedTuned):
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
        hold: whether modules compute with what they hold where the base is in floats of another type; else they hold
            no matrix that is not a view of the base.

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
        base: Mapping[str, BaseTensor] | None = None,
        *,
        scales: Mapping[str, float] | None = None,
        hold: bool = True,
    ) -> None:
        floats = floats_of(model)
        self.base: Mapping[str, BaseTensor] = base or {name: one.detach() for name, one in floats.items()}
        missing = [name for name in floats if name not in self.base]
        if missing:
            raise ModelError("a model on a base of its own needs all of it", where=missing[0])
        self._present, self._foreign = Projected.none(), dict(_foreign(model))
        self._blanks = {name for name, weight in floats.items() if is_blank(weight)}
        matrices = (name for name, weight in floats.items() if weight.dim() > 1)
        self._elsewhere = set(self._blanks if hold else matrices)
        stands = {
            name: nn.Parameter(blank((one.out_features, one.in_features)), requires_grad=False)
            for name, one in self._foreign.items()
        }
        super().__init__(model, space, moves, base={}, weights={**floats, **stands}, scales=scales)
        for name, weight in floats.items():
            stored = self.base[name]
            if not isinstance(stored, torch.Tensor):
                weight.data = blank_like(weight.data)
            elif stored.dtype == weight.dtype and stored.device == weight.device:
                weight.data = stored
            elif name in self._elsewhere:
                weight.data = blank_like(weight.data)
        self.inspect()

    def _plain(self, module: nn.Module, name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        stored = self.base.get(name)
        if stored is None:
            return None
        if isinstance(stored, torch.Tensor):
            dtype = module.get_parameter("weight").dtype
            if name not in self._elsewhere or stored.dtype == dtype:
                return None
        return stored_product(module, stored, self._directions)

    def form(self, name: str, now: Perturbation, *, few: bool = False) -> Form:
        """Return what forms a parameter at one point: whole, or unperturbed in tiles of rows."""
        (scale,) = now.scales

        def form(out: torch.Tensor, start: int) -> None:
            stored = self.base[name] if name in self.base else self._multiplied(name)
            factor = self.scales.get(name, 1.0)
            state = self._present if factor == 1 else self._present.scaled(factor)
            base = part_of(stored, start, out.numel())
            if isinstance(base, torch.Tensor):
                base = base.view(out.shape)
            self._directions.read(out, base, state, name, (now.seed, scale / factor), start)

        return form

    def _multiplied(self, name: str) -> torch.Tensor:
        """Return the matrix of a layer that holds no floats, float32 [outputs, inputs], found by multiplying."""
        module = self._foreign[name]
        (plain,) = (one.plain for one in self._readers if isinstance(one, MovedReader) and one.weight == name)
        held = [*module.parameters(), *module.buffers()]
        eye = torch.eye(module.in_features, device=held[0].device if held else None)
        return (plain(eye) - plain(torch.zeros_like(eye[:1]))).T.float().contiguous()

    def _unit(self, name: str) -> int:
        weight = self._weights.parameters[name]
        return self._directions.row_alignment * weight.shape[-1] if weight.dim() == 2 else 0

    def _own(self) -> list[str]:
        """Return the names of the parameters that the model has itself, as floats."""
        return [name for name in super()._own() if name not in self._foreign]

    def _become(self, state: Projected) -> None:
        self._present = state
        self.moves.become(state)


def _foreign(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield linear layers that hold no floats, by the name of their matrix."""
    return ((f"{path}.weight", module) for path, module in model.named_modules() if quantised(module))
