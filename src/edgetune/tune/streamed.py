"""The tuned handle that stores no tuned weights: they are formed from base and ledger whenever a layer reads them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgetune.core.blank import blank_like, is_blank
from edgetune.core.errors import ModelError
from edgetune.core.perturbation import Perturbation
from edgetune.core.quantised import BaseTensor, CodedTensor, part_of
from edgetune.core.tuned import Space
from edgetune.core.update import Projected
from edgetune.tune.formed import FORMED_PART, FormedTuned
from edgetune.tune.parts import Form, floats_of


class StreamedTuned(FormedTuned):
    """A model on a read-only base, which may be memory-mapped or packed to 8 or 4 bits.

        weights = base + sum_k a_k z_k,   formed where they are read

    A step changes coefficients, nothing else. The model's parameters become placeholders of no size until `close` (NaN,
    should anything but a reader read them).

    Args:
        model: as for `ProjectedTuned`.
        space: the directions; a replay should be cheap, so a Hadamard pool.
        base: the base values of every parameter, as stored.

    Raises:
        ModelError: if a base tensor is missing, or the model is not on the CPU.
    Cost: no memory but the base's own, K coefficients and 4 MB of scratch; a replay of every layer in every pass.
    Source: design after Malladi et al. 2023 (MeZO) and Qin et al. 2024 (FedKSeed).
    """

    def __init__(self, model: nn.Module, space: Space, base: Mapping[str, BaseTensor]) -> None:
        missing = [
            name for name, one in model.named_parameters() if one.is_floating_point() and name not in base
        ]
        if missing:
            raise ModelError("a streamed model needs its whole base", where=missing[0])
        if any(weight.device.type != "cpu" for weight in model.parameters()):
            raise ModelError("a model can be streamed on the CPU only", hint="use residency fused")
        self.base, self._present = base, Projected.none()
        self._blanks = {name for name, weight in floats_of(model).items() if is_blank(weight)}
        super().__init__(model, space, base={})
        self._weights.late.clear()
        self.inspect()
        for weight in self._weights.parameters.values():
            weight.data = blank_like(weight.data)

    @property
    def alignment(self) -> int:
        """Multiples at which a part of a tensor may start; 0 if tensors are formed whole."""
        return self._directions.replay_alignment

    @property
    def part(self) -> int:
        """Elements of a matrix that are formed at a time."""
        return FORMED_PART

    def form(self, name: str, now: Perturbation, *, few: bool = False) -> Form:
        """Return what forms parts of a parameter at one point."""
        (scale,) = now.scales

        def form(out: torch.Tensor, start: int) -> None:
            base = part_of(self.base[name], start, out.numel())
            if isinstance(base, torch.Tensor):
                base = base.view(out.shape)
            self._directions.read(out, base, self._present, name, (now.seed, scale), start)

        return form

    def product(self, name: str, x: torch.Tensor, now: Perturbation) -> torch.Tensor | None:
        """Return `x W^T` at all points, W formed in the cache; None if that is not served."""
        base = self.base[name]
        if isinstance(base, CodedTensor) or not self._directions.multiplies(x, base, stored=False):
            return None
        return self._directions.multiply(x, base, name, now.seed, now.scales, None, self._present)

    def rows(self, name: str, ids: torch.Tensor, now: Perturbation) -> torch.Tensor | None:
        """Return None: rows that are not stored are formed in parts."""
        return None

    def points(self, name: str, now: Perturbation) -> torch.Tensor:
        """Return a small parameter at all points, [points, ...]."""
        like = self._weights.parameters[name]
        out = like.new_empty(len(now.scales), *like.shape)
        for point, one in enumerate(out):
            self.form(name, now.only(point))(one, 0)
        return out

    def _unit(self, name: str) -> int:
        return self.alignment

    def _become(self, state: Projected) -> None:
        self._present = state
