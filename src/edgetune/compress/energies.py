"""What calibration text says of every input of every linear layer: the mean of its square."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.blocks import Linear
from edgetune.compress.streams import hooked
from edgetune.core.batch import Batch


@dataclass(frozen=True, slots=True)
class Energy:
    """Sums over the tokens that a layer was given.

    Args:
        sums: float32 [inputs], sum of x_j^2.
        tokens: how many tokens; padding counts nothing.
    """

    sums: torch.Tensor
    tokens: int

    @property
    def mean(self) -> torch.Tensor:
        """float32 [inputs], E[x_j^2]."""
        return self.sums / max(self.tokens, 1)


@torch.no_grad()
def input_energies(
    model: PreTrainedModel, linears: Mapping[str, Linear], calibration: Sequence[torch.Tensor | Batch]
) -> dict[str, Energy]:
    """Return the energies of every layer that calibration reaches.

    Args:
        model: any decoder, as it is.
        linears: its layers by parameter name.
        calibration: int64 [batch, length] ids, or batches whose padding the mask leaves out. Inputs of another number
            of rows (tokens routed to one expert) have lost their place; all of them count.
    Cost: one forward pass over the calibration tokens.
    """
    found: dict[str, Energy] = {}
    real = torch.zeros(0, dtype=torch.bool)

    def listen(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            x = arguments[0].detach().float().flatten(0, -2)
            x = x[real.to(x.device)] if len(x) == len(real) else x
            before = found.get(name)
            sums, tokens = x.square().sum(0), len(x)
            found[name] = (
                Energy(sums + before.sums, tokens + before.tokens) if before else Energy(sums, tokens)
            )

        return hook

    with hooked(layer.register_forward_pre_hook(listen(name)) for name, layer in linears.items()):
        for batch in calibration:
            ids = batch if isinstance(batch, torch.Tensor) else batch.input_ids
            mask = torch.ones_like(ids) if isinstance(batch, torch.Tensor) else batch.attention_mask
            real = mask.flatten().bool()
            there = model.device
            model.base_model(input_ids=ids.to(there), attention_mask=mask.to(there), use_cache=False)
    return {name: energy for name, energy in found.items() if energy.tokens}
