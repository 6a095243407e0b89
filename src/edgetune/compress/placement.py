"""Where every matrix of a model will go, known before anything is compressed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgetune.compress.blocks import Linear, decoder_blocks, matrices_in
from edgetune.compress.method import CompressionMethod
from edgetune.core.fitting import fitting
from edgetune.core.quantised import BlockGrid


def placement(
    model: PreTrainedModel,
    method: CompressionMethod,
    grids: Mapping[str, BlockGrid] = MappingProxyType({}),
) -> dict[str, BlockGrid]:
    """Return the grid of each matrix that `compress_model` will put on one.

    Args:
        model: any Hugging Face decoder; nothing of it but shapes is read.
        method: what will be done.
        grids: parameter name to a grid in place of the method's.

    Returns:
        parameter name to grid; the keys of what `compress_model` returns. Everything else stays in float.

    Raises:
        ModelError: if the model is no decoder.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters())
    found: dict[str, BlockGrid | None] = {}
    for name in held_outside(model, names):
        grid = grids.get(name, method.embeddings)
        found[name] = None if grid is None else fitting(grid, parameters[name].shape[1])
    for block in decoder_blocks(model):
        linears, _ = matrices_in(block, names)
        found |= {name: place_of(name, layer, method, grids) for name, layer in linears.items()}
    return {name: grid for name, grid in found.items() if grid is not None}


def place_of(
    name: str, layer: Linear, method: CompressionMethod, grids: Mapping[str, BlockGrid]
) -> BlockGrid | None:
    """Return the grid of a linear layer; None if there is none, or none fits its width, so that it stays in float."""
    grid = grids.get(name, method.grid)
    return None if grid is None else fitting(grid, width_of(layer))


def width_of(layer: Linear) -> int:
    """Return the inputs of a linear layer."""
    return int(layer.weight.shape[0 if isinstance(layer, Conv1D) else 1])


def held_outside(model: PreTrainedModel, names: Mapping[int, str]) -> list[str]:
    """Return the parameter names of embedding and head, one if they are tied."""
    modules = (model.get_input_embeddings(), cast(Any, model).get_output_embeddings())
    return list(dict.fromkeys(names[id(one.weight)] for one in modules if hasattr(one, "weight")))
