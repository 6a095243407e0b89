"""The weights of a folder with packed layers (GPTQ, compressed-tensors), dequantised exactly when asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from edgetune.core.errors import ModelError
from edgetune.core.levels import LevelMatrix
from edgetune.core.packing import pack
from edgetune.core.quantised import HELD, PackedTensor, QuantisedMatrix, StoredTensor
from edgetune.core.widths import widths_of
from edgetune.models.by_layer import by_layer
from edgetune.models.packing import Packing

WEIGHT = ".weight"


class PackedWeights(Mapping[str, torch.Tensor]):
    """The parameters of a folder by name; a packed layer's weight is dequantised whenever it is asked for.

    Args:
        files: its safetensors files, checked (`models.weights.weight_files`).
        packing: how its layers are packed.
        turned: parameters that the model holds as [in, out] (`turned_in`); packed layers are [out, in].

    Raises:
        ModelError: if no layer is packed.
    Cost: pages of the files while they are read.
    """

    def __init__(self, files: Sequence[Path], packing: Packing, turned: frozenset[str] = frozenset()) -> None:
        self.packing, self.turned = packing, turned
        self._owners: dict[str, Any] = {}
        for file in files:
            handle: Any = safe_open(file, framework="pt")
            self._owners.update(dict.fromkeys(handle.keys(), handle))
        codes = f".{packing.parts[0]}"
        stems = [name.removesuffix(codes) for name in self._owners if name.endswith(codes)]
        self.layers = {
            stem + WEIGHT: {
                part: name for part in packing.parts if (name := f"{stem}.{part}") in self._owners
            }
            for stem in stems
        }
        """Parameter name of every packed layer to its tensors: last part of a name to the name."""
        if not self.layers:
            raise ModelError(
                "config.json says that layers are packed, and none is",
                where=files[0].parent,
                hint="take quantization_config out of it if these are plain weights",
            )
        used = {name for parts in self.layers.values() for name in parts.values()}
        self._names = [*self.layers, *(name for name in self._owners if name not in used)]

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a parameter: float32 where it is packed, else as stored."""
        if name not in self.layers:
            return self._stored(name)
        values = self.matrix(name).dequantise()
        return values.T.contiguous() if name in self.turned else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def matrix(self, name: str) -> LevelMatrix:
        """Return a packed layer's matrix, [out, in].

        Raises:
            ModelError: if its tensors do not fit together; names the layer.
        """
        tensors = {part: self._stored(one) for part, one in self.layers[name].items()}
        return self.packing.matrix(tensors, name)

    def as_stored(self, name: str) -> StoredTensor:
        """Return a parameter without dequantising it where it fits blocks that this package computes with."""
        blocks = self.matrix(name).in_blocks() if name in self.layers and name not in self.turned else None
        if blocks is None or blocks.grid.name not in HELD:
            return self[name]
        raw = torch.from_numpy(pack(blocks)).reshape(-1)
        return PackedTensor(HELD[blocks.grid.name], raw, tuple(blocks.codes.shape))

    def in_blocks(self, names: Iterable[str]) -> dict[str, QuantisedMatrix]:
        """Return those of some parameters whose codes a GGUF file holds as they are, bit for bit."""
        found = {name: self.matrix(name).in_blocks() for name in names if name in self.layers}
        return {name: blocks for name, blocks in found.items() if blocks is not None}

    @property
    def digest(self) -> str:
        """SHA-256 over the packing and every tensor in order of name: its name, type and shape, then its bytes."""
        digest = hashlib.sha256(self.packing.digest.encode())
        for name in sorted(self._owners):
            tensor = self._stored(name).contiguous()
            head = [name, str(tensor.dtype), list(tensor.shape)]
            digest.update(json.dumps(head, separators=(",", ":")).encode() + b"\n")
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def empty_biases(self, names: Iterable[str]) -> set[str]:
        """Return which of some tensors are biases of packed layers that add nothing: old writers store one a layer."""
        return {
            name
            for name in names
            if name.endswith(".bias")
            and name.removesuffix(".bias") + WEIGHT in self.layers
            and not bool(self._stored(name).any())
        }

    def _stored(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._owners[name].get_tensor(name)
        return tensor


def turned_in(model: nn.Module) -> frozenset[str]:
    """Return the parameters that a model holds as [in, out] (Conv1D of GPT-2)."""
    return frozenset(
        f"{name}{WEIGHT}" for name, module in model.named_modules() if isinstance(module, Conv1D)
    )


def model_class(config: PreTrainedConfig) -> Any:
    """Return the class of a configuration's causal language model."""
    if widths_of(config) is not None:
        return by_layer(config)
    known: Any = AutoModelForCausalLM
    return known._model_mapping[type(config)]
