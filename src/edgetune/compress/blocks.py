"""What a decoder looks like: its blocks, and the matrices in them that can go on a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgetune.core.errors import ModelError

Linear = nn.Linear | Conv1D
"""Layers whose matrix can go on a grid; transformers' Conv1D (GPT-2) holds it transposed."""


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks: the longest outermost `nn.ModuleList` of the base model.

    Raises:
        ModelError: if the model has an encoder, or no list of blocks.
    """
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer, _ in lists):
            lists.append((name, module))
    if getattr(model.config, "is_encoder_decoder", False) or not lists:
        raise ModelError(
            "compression needs a decoder-only model whose blocks stand in one nn.ModuleList",
            where=type(model).__name__,
        )
    return max((blocks for _, blocks in lists), key=len)


def matrices_in(block: nn.Module, names: dict[int, str]) -> tuple[dict[str, Linear], dict[str, nn.Parameter]]:
    """Find what of a block can go on a grid.

    Args:
        block: a decoder block.
        names: parameter name by `id` of the parameter.

    Returns:
        (linear layers, every other parameter of two or more dimensions), both by parameter name.
    """
    linears: dict[str, Linear] = {}
    others: dict[str, nn.Parameter] = {}
    for module in block.modules():
        for parameter in module.parameters(recurse=False):
            name = names[id(parameter)]
            if isinstance(module, (nn.Linear, Conv1D)) and parameter is module.weight:
                linears[name] = module
                continue
            if parameter.ndim >= 2:
                others[name] = parameter
    return linears, others


def read_matrix(module: Linear, *, copy: bool = True) -> torch.Tensor:
    """Return a linear layer's weights, float32 [out, in].

    transformers' Conv1D (GPT-2) holds its weights transposed; they come and go as [out, in] here.

    Args:
        module: the layer.
        copy: whether the caller may write to them; without, they may be the layer's own memory.
    """
    oriented = module.weight.T if isinstance(module, Conv1D) else module.weight
    return oriented.detach().to(torch.float32, copy=copy).contiguous()


def write_matrix(module: Linear, weights: torch.Tensor) -> None:
    """Give a linear layer new weights, float32 [out, in], in the layer's own dtype."""
    replace_data(module.weight, weights.T if isinstance(module, Conv1D) else weights)


def replace_data(parameter: Any, values: torch.Tensor) -> None:
    """Point a parameter at new values; its old storage may be memory-mapped or shared: never write to it."""
    parameter.data = values.to(device=parameter.device, dtype=parameter.dtype, copy=True).contiguous()
