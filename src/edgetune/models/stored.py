"""The base weights where they are stored: memory-mapped, shared, never copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from edgetune.core.quantised import StoredTensor
from edgetune.models.gguf.weights import GgufWeights
from edgetune.models.packed import PackedWeights, turned_in
from edgetune.models.packing import packing_in
from edgetune.models.weights import weight_files


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


def streamed_weights(folder: Path, model: nn.Module) -> Mapping[str, StoredTensor] | None:
    """Return a model's parameters for layers that read them over and over: as `stored_weights`, but blocks stay blocks.

    Args, Returns: as in `stored_weights`; a matrix of a GGUF file in Q4_0 or Q8_0 is packed, and a packed layer that
        these types hold bit for bit.
    Cost: of a folder none; of a GGUF file the stored size of such matrices, the float32 size of those in other blocks.
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


def stored_size(folder: Path) -> int:
    """Return the bytes of the weight files of a model folder, or of a GGUF file."""
    files = (folder,) if folder.is_file() else weight_files(folder)
    return sum(file.stat().st_size for file in files)
