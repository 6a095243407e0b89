"""Model folders with packed layers: what compressed-tensors and GPTQ checkpoints can hold, and what they say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.gptq import gptq_tensors
from edgetune.core.integers import INTEGERS
from edgetune.core.pack_quantized import pack_quantized_tensors
from edgetune.core.quantised import BlockGrid, QuantisedMatrix
from edgetune.core.widths import widths_of
from edgetune.core.words import WORD

WEIGHT = ".weight"
Grids = Mapping[str, BlockGrid]
"""Parameter name to the grid that it is going to be on."""


@dataclass(frozen=True, slots=True)
class FolderFormat:
    """A way to pack the layers of a model folder.

    Args:
        name: what a person calls it.
        tensors: what is stored of a matrix, by the last part of a name.
        says: `quantization_config`, from the grids and the linear layers that stay in float.
        refuse: raises for grids and layers that have no place in it.
        library: what transformers reads it with, if that is light enough to be tried here.
    """

    name: str
    tensors: Callable[[QuantisedMatrix], dict[str, torch.Tensor]]
    says: Callable[[Grids, list[str]], dict[str, Any]]
    refuse: Callable[[Grids, list[str], PreTrainedModel], None]
    library: str | None = None


def _bits(grid: BlockGrid) -> int:
    return (grid.high - grid.low).bit_length()


def _group(grid: BlockGrid) -> int | None:
    """Return the weights of a group; None for whole rows."""
    return INTEGERS[grid.name].block or None


def _compressed(grids: Grids, floats: list[str]) -> dict[str, Any]:
    kinds = dict.fromkeys(grid.name for grid in grids.values())
    groups = {}
    for number, kind in enumerate(kinds):
        grid, size = INTEGERS[kind], _group(INTEGERS[kind])
        own = [name.removesuffix(WEIGHT) for name, one in grids.items() if one.name == kind]
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if len(kinds) == 1 else own,
            "weights": {
                "num_bits": _bits(grid), "type": "int", "symmetric": not grid.tied, "dynamic": False,
                "strategy": "channel" if size is None else "group", "group_size": size, "actorder": None,
            },
            "input_activations": None,
            "output_activations": None,
        }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": groups, "ignore": floats, "kv_cache_scheme": None,
    }  # fmt: skip


def _gptq(grids: Grids, floats: list[str]) -> dict[str, Any]:
    grid = next(iter(grids.values()))
    return {
        "quant_method": "gptq", "checkpoint_format": "gptq", "bits": _bits(grid), "group_size": _group(grid) or -1,
        "sym": True, "desc_act": False, "static_groups": False, "true_sequential": True, "lm_head": False,
    }  # fmt: skip


def _anything(grids: Grids, floats: list[str], model: PreTrainedModel) -> None:
    """Refuse nothing: groups of any size stand side by side, and layers that stay in float have their place."""


def _refuse_for_gptq(grids: Grids, floats: list[str], model: PreTrainedModel) -> None:
    head = cast(Any, model).get_output_embeddings()
    inside = [name for name in floats if model.get_submodule(name) is not head]
    if len({grid.name for grid in grids.values()}) > 1 or inside:
        odd = (
            inside[0]
            if inside
            else next(name for name, one in grids.items() if one != next(iter(grids.values())))
        )
        raise ModelError(
            "a GPTQ checkpoint has one size of groups, which does not divide the inputs of every layer",
            where=odd,
            hint="choose smaller groups (int4-g32), whole rows (int4-row), or the format compressed-tensors",
        )
    for name, grid in grids.items():
        if grid.tied or grid.scale[0].number.dtype != torch.float16:
            raise ConfigError(
                f"{grid.name} is not written as GPTQ: symmetric grids with fp16 scales are",
                where="--grid",
                hint="int4-g128, or the format compressed-tensors",
            )
        shape = model.get_parameter(name).shape
        if shape[0] % WORD or shape[1] % WORD:
            raise ModelError(f"{tuple(shape)} is no multiple of {WORD}, which GPTQ packs by", where=name)


FOLDER_FORMATS = {
    one.name: one
    for one in (
        FolderFormat(
            "compressed-tensors", pack_quantized_tensors, _compressed, _anything, library="compressed_tensors"
        ),
        FolderFormat("gptq", gptq_tensors, _gptq, _refuse_for_gptq),
    )
}
"""Formats of folders by name."""


def float_layers(model: PreTrainedModel, grids: Grids) -> list[str]:
    """Return the linear layers that stay in float, by module name."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name + WEIGHT not in grids
    ]


def refuse_folder(kind: FolderFormat, model: PreTrainedModel, grids: Grids) -> None:
    """Refuse what a folder could not hold, from shapes and settings alone.

    Args:
        kind: the format.
        model: what is going to be compressed.
        grids: where its matrices will be.

    Raises:
        ConfigError, ModelError: naming the layer or setting, and what to do.
    """
    if widths_of(model.config) is not None:
        raise ModelError(
            "transformers reads no model whose layers differ in width",
            hint="prune it uniformly, or write GGUF",
        )
    if not grids:
        raise ModelError("no layer of this model has inputs that whole groups divide", hint="choose int4-row")
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            raise ModelError(
                f"{kind.name} packs linear layers, and this is a Conv1D", where=name, hint="write GGUF"
            )
    for grid in grids.values():
        if grid.name not in INTEGERS:
            hint = "int4-g128, int8-g32, uint4-g64 or int4-row, for example"
            raise ConfigError(f"{kind.name} has no grid {grid.name}", where="--grid", hint=hint)
    kind.refuse(grids, float_layers(model, grids), model)


def folder_tensors(
    kind: FolderFormat, model: PreTrainedModel, quantised: Mapping[str, QuantisedMatrix], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return every tensor of a folder: packed layers, and everything else in one type of floats.

    Args:
        kind: the format.
        model: its other parameters are of float values that `dtype` holds (`hold_in`); tied ones are stored once.
        quantised: parameter name to matrix; codes are packed as they are.
        dtype: of the floats.
    """
    parameters = dict(model.named_parameters())
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - parameters.keys()
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in quantised:
            stem = name.removesuffix(WEIGHT)
            found |= {f"{stem}.{part}": one for part, one in kind.tensors(quantised[name]).items()}
        elif name not in tied:
            own = tensor.detach().cpu()
            found[name] = (own.to(dtype) if own.is_floating_point() else own).contiguous()
    return found


def hold_in(model: PreTrainedModel, quantised: Mapping[str, QuantisedMatrix], dtype: torch.dtype) -> None:
    """Give a model the floats that its folder holds, in place; quantised matrices it has already.

    Raises:
        ModelError: if a weight is too large for the type.
    """
    for name, parameter in model.named_parameters():
        if name in quantised:
            continue
        held = parameter.data.to(dtype)
        if not bool(torch.isfinite(held).all()):
            raise ModelError(f"a weight does not fit {dtype}", where=name, hint="store the base in bfloat16")
        parameter.data = held.to(parameter.dtype)
