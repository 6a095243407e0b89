"""The tuned handle of a pool of rank one: a base that nothing writes to, and a small matrix for what is learnt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
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
from edgetune.tune.moved import MovedReader, attach_moved, plain_matrices, quantised
from edgetune.tune.packed_base import StoredProduct
from edgetune.tune.parts import Form, floats_of
from edgetune.tune.readers import Reader
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
        only: the names of the parameters to tune; all if not given. Of the others a base is read where the model does
            not hold it, or would hold it in vain; vectors, and tensors of other modules, are the model's own.

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
        only: Collection[str] | None = None,
    ) -> None:
        floats = floats_of(model)
        self.base: Mapping[str, BaseTensor] = base or {name: one.detach() for name, one in floats.items()}
        missing = [name for name in floats if name not in self.base]
        if missing:
            raise ModelError("a model on a base of its own needs all of it", where=missing[0])
        self._present, self._foreign = Projected.none(), dict(_foreign(model))
        self._blanks = {name for name, weight in floats.items() if is_blank(weight)}
        matrices = {name for name, one in floats.items() if one.dim() > 1}
        taken = matrices if only is None else matrices & plain_matrices(model)
        self._elsewhere = self._blanks if hold else self._blanks | taken
        stands = {
            name: nn.Parameter(blank((one.out_features, one.in_features)), requires_grad=False)
            for name, one in self._foreign.items()
            if only is None
        }
        tuned = {name: one for name, one in floats.items() if only is None or name in only}
        read = {name: one for name, one in floats.items() if name in tuned or name in self._elsewhere}
        self._read = read | stands
        super().__init__(model, space, moves, base={}, weights=tuned | stands, scales=scales)
        for name, weight in read.items():
            stored = self.base[name]
            if not isinstance(stored, torch.Tensor):
                weight.data = blank_like(weight.data)
            elif stored.dtype == weight.dtype and stored.device == weight.device:
                weight.data = stored
            elif name in self._elsewhere:
                weight.data = blank_like(weight.data)
        self.inspect()

    @property
    def _holders(self) -> Mapping[str, nn.Parameter]:
        return self._read

    def _attached(self, model: nn.Module) -> Iterator[Reader]:
        return attach_moved(self, model, self._read, self._plain, set(self._weights.parameters))

    def _plain(self, module: nn.Module, name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        stored = self.base.get(name)
        if stored is None:
            return None
        if isinstance(stored, torch.Tensor):
            dtype = module.get_parameter("weight").dtype
            if name not in self._elsewhere or stored.dtype == dtype:
                return None
        return StoredProduct(module, stored, self._directions)

    def form(self, name: str, now: Perturbation, *, few: bool = False) -> Form:
        """Return what forms a parameter at one point: whole, or unperturbed in tiles of rows."""
        (scale,), factor = now.scales, self.scales.get(name, 1.0)
        if name not in self._weights.parameters:  # read where it lies, and never moved
            scale = 0.0

        def form(out: torch.Tensor, start: int) -> None:
            stored = self.base[name] if name in self.base else self._multiplied(name)
            state = self._present if factor == 1 else self._present.scaled(factor)
            if name not in self._weights.parameters:
                state = Projected.none()
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
