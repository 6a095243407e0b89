"""The base weights where they are stored: memory-mapped, shared, never copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from edgetune.core.in_parts import InParts
from edgetune.core.quantised import BaseTensor, values_of
from edgetune.models.gguf.weights import GgufWeights
from edgetune.models.packed import PackedWeights, turned_in
from edgetune.models.packing import packing_in
from edgetune.models.weights import weight_files

PART = 1 << 18
"""Stored weights that are floats at a time."""


def stored_weights(folder: Path, model: nn.Module) -> Mapping[str, torch.Tensor] | None:
    """Return a model's parameters as views of its weight files, or as a GGUF file's, dequantised when asked for.

    The pages belong to the file: the system drops them when memory is short, and all processes share them.

    Args:
        folder: the folder or GGUF file that the model was loaded from.
        model: names and shapes of the parameters.

    Returns:
        Tensors of the stored type by parameter name, or None if the files name or shape a parameter otherwise (some
        architectures are converted while loading), so that the caller has to keep a copy.
    Cost: no memory of its own; pages are read when touched.
    """
    if folder.is_file():
        return GgufWeights(folder)
    packed = packed_weights(folder, model)
    if packed is not None:
        return packed if _names(model) <= set(packed) else None
    found: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            found.update((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - not a mapping
    wanted = {name: weight.shape for name, weight in model.named_parameters() if weight.is_floating_point()}
    if any(name not in found or found[name].shape != shape for name, shape in wanted.items()):
        return None
    return {name: found[name] for name in wanted}


def streamed_weights(folder: Path, model: nn.Module) -> Mapping[str, BaseTensor] | None:
    """Return a model's parameters for layers that read them over and over: as `stored_weights`, but blocks stay blocks.

    Args, Returns: as in `stored_weights`; of a GGUF file as `GgufWeights.as_stored`, and a packed layer is packed that
        Q4_0 or Q8_0 hold bit for bit.
    Cost: of a plain folder none; of a GGUF file the matrices whose rows it holds in another order (q and k of Llama).
    """
    weights = GgufWeights(folder) if folder.is_file() else packed_weights(folder, model)
    if weights is None or not _names(model) <= set(weights):
        return stored_weights(folder, model)
    return {name: weights.as_stored(name) for name in weights}


def packed_weights(folder: Path, model: nn.Module) -> PackedWeights | None:
    """Return the weights of a model folder whose layers are packed; None for a plain folder, or a file.

    Raises:
        ModelError: as `packing_in` and `weight_files`.
    """
    packing = None if folder.is_file() else packing_in(folder)
    return None if packing is None else PackedWeights(weight_files(folder), packing, turned_in(model))


def _names(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.is_floating_point()}


def weight_parts(model: nn.Module, base: Mapping[str, BaseTensor] | None) -> Iterator[tuple[str, InParts]]:
    """Yield a model's weights by name, in parts and in the type that it computes in, wherever they are.

    Args:
        model: its parameters.
        base: their values as stored, where the model is without its matrices; None if it holds all.
    Cost: of stored ones a megabyte of floats at a time.
    """
    for name, weight in model.named_parameters():
        stored = weight.detach() if base is None else base[name]
        each = PART if base is not None else max(1, weight.numel())
        yield name, InParts(tuple(weight.shape), weight.dtype, partial(_parts, stored, weight.dtype, each))


def _parts(stored: BaseTensor, dtype: torch.dtype, each: int) -> Iterator[torch.Tensor]:
    width, count = max(1, stored.shape[-1]) if stored.shape else 1, stored.numel()
    step = max(1, each // width) * width
    for start in range(0, count, step):
        yield values_of(stored, start, min(step, count - start)).to(dtype)


def stored_size(folder: Path) -> int:
    """Return the bytes of the weight files of a model folder, or of a GGUF file."""
    files = (folder,) if folder.is_file() else weight_files(folder)
    return sum(file.stat().st_size for file in files)
