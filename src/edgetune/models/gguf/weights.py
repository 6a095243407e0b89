"""The weights of a GGUF file under the names, and in the row order, that transformers gives them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from edgetune.core.errors import ModelError
from edgetune.core.gguf_read import GgufFile, StoredTensor, dequantised, read_gguf, unit_name, units_of
from edgetune.core.quantised import Q4_0, Q4_1, Q8_0, BaseTensor, CodedTensor, PackedTensor, whole_blocks
from edgetune.models.gguf.families import Family, config_of, family_of
from edgetune.models.gguf.metadata import Metadata
from edgetune.models.gguf.rope import FACTORS

CHUNK = 1 << 24
"""Bytes hashed at a time."""
FLOATS = {1: torch.float16, 30: torch.bfloat16}
PLAIN = {0: torch.float32, **FLOATS}
PACKED = {2: Q4_0, 3: Q4_1, 8: Q8_0}
"""ggml's numbers of types that lose nothing beside float32, and of those whose blocks this package computes with."""


class _Pages:
    """A mapped file as an array that does not say that it is read-only: torch has no such tensors, and would warn.

    Whoever writes to it ends the process. A mapping that is copied on write would need memory for all of the file.
    """

    def __init__(self, mapped: NDArray[np.uint8]) -> None:
        self._mapped = mapped
        self.__array_interface__ = {**mapped.__array_interface__, "data": (mapped.ctypes.data, False)}


class GgufWeights(Mapping[str, torch.Tensor]):
    """The parameters of a model by name, dequantised from its file whenever one is asked for; none is kept.

    The file stays mapped: what is read later is what was read first, even if the file's name is given to another one.

    Args:
        path: a GGUF file.

    Raises:
        ModelError: if it is damaged, of an architecture that is not supported, or holds a tensor that its model has no
            place for.
        MissingExtraError: if `gguf` is not installed.
    Cost: pages of the file while they are read; about a second for 100 M weights in blocks.
    """

    def __init__(self, path: Path) -> None:
        self.file: GgufFile = read_gguf(path)
        self.family: Family
        self.said: Metadata
        self.family, self.said = family_of(self.file)
        self._bytes: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")
        self._pages = torch.from_numpy(np.asarray(_Pages(self._bytes)))
        self._units = units_of(self.file)
        stored = {one.name: one for one in self.file.tensors if one.name not in self._units}
        factors = stored.pop(FACTORS, None)
        self.config: PreTrainedConfig = config_of(
            self.family, self.said, None if factors is None else self._values(factors)
        )
        self._stored: dict[str, StoredTensor] = {}
        for name, tensor in stored.items():
            parameter = self.family.parameter(name)
            if parameter is None:
                raise ModelError(f"this architecture has no tensor {name!r}", where=path)
            self._stored[parameter] = tensor

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a parameter, float32; the values are those that ggml defines for the stored blocks."""
        tensor = self._stored[name]
        values = torch.from_numpy(self._values(tensor))
        order = self.family.rows(name, self.config, tensor.shape[0])
        return values if order is None else values[order]

    def as_stored(self, name: str) -> BaseTensor:
        """Return a parameter as the file holds it, its pages mapped where the rows have the model's order.

        Returns:
            Blocks for a matrix in Q4_0, Q4_1 or Q8_0, floats of the stored type for one in floats, codes that become
            float32 a few rows at a time for one in other blocks; a vector in floats, by value.
        """
        tensor = self._stored[name]
        kind, shape = tensor.kind, tensor.shape
        if len(shape) < 2:
            return self[name].to(FLOATS.get(kind, torch.float32))
        order = self.family.rows(name, self.config, shape[0])
        if unit_name(tensor.name) not in self._units:
            grid, dtype = PACKED.get(kind), PLAIN.get(kind)
            if grid is not None and whole_blocks(shape):
                return PackedTensor(grid, self._bytes_of(tensor, order).view(-1), shape)
            if dtype is not None and tensor.offset % dtype.itemsize == 0:
                return self._bytes_of(tensor, order).view(-1).view(dtype).view(shape)
        return CodedTensor(shape, partial(self._some_rows, tensor, order))

    def _bytes_of(self, tensor: StoredTensor, order: torch.Tensor | None) -> torch.Tensor:
        """Return a matrix's bytes, uint8 [rows, n]: the file's own pages, or a copy in the model's order of rows."""
        rows = self._pages[tensor.offset :][: tensor.size or 0].view(tensor.shape[0], -1)
        return rows if order is None else rows[order]

    def _some_rows(
        self, tensor: StoredTensor, order: torch.Tensor | None, which: slice | torch.Tensor
    ) -> torch.Tensor:
        """Return rows of [rows, last dimension], float32."""
        raw = self.raw(tensor).reshape(prod(tensor.shape[:-1]), -1)
        wanted = which if order is None else order[which]
        some = np.ascontiguousarray(raw[wanted if isinstance(wanted, slice) else wanted.numpy()])
        part = replace(tensor, shape=(len(some), tensor.shape[-1]), size=some.size)
        return torch.from_numpy(self._floats(part, some.reshape(-1)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter."""
        return {name: tensor.shape for name, tensor in self._stored.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The type that loses nothing of the matrices: float16 or bfloat16 if all are so stored, else float32."""
        kinds = {tensor.kind for tensor in self._stored.values() if len(tensor.shape) > 1}
        return FLOATS.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32

    @property
    def digest(self) -> str:
        """SHA-256 over every tensor as stored, in sorted order: its name, type and shape, then its bytes."""
        digest = hashlib.sha256()
        for tensor in sorted(self.file.tensors, key=lambda one: one.name):
            head = [tensor.name, tensor.kind, list(tensor.shape)]
            digest.update(json.dumps(head, separators=(",", ":")).encode() + b"\n")
            raw = self.raw(tensor)
            for start in range(0, len(raw), CHUNK):
                digest.update(raw[start : start + CHUNK].data)
        return digest.hexdigest()

    def tensor(self, name: str) -> StoredTensor:
        """Return where a parameter is in the file, and how it is stored."""
        return self._stored[name]

    def stored_rows(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Return values of a parameter in the file's row order: the inverse of what reading does."""
        order = self.family.rows(name, self.config, len(values))
        return values if order is None else values[torch.argsort(order)]

    def unit(self, tensor: StoredTensor) -> float:
        """Return what all weights of a matrix are multiplied by; 1 for most."""
        return float(self._units.get(unit_name(tensor.name), 1.0))

    def raw(self, tensor: StoredTensor) -> NDArray[np.uint8]:
        """Return the bytes of a tensor as stored, uint8 [n], mapped."""
        return self._bytes[tensor.offset : tensor.offset + (tensor.size or 0)]

    def _values(self, tensor: StoredTensor) -> NDArray[np.float32]:
        return self._floats(tensor, self.raw(tensor))

    def _floats(self, tensor: StoredTensor, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = dequantised(tensor, raw, self.file.path)
        unit = self._units.get(unit_name(tensor.name))
        if unit is not None:
            values = values * unit
        # Of floats a view of the file's own pages, which are nobody's to write to, and are not aligned in every file.
        return np.array(values, np.float32) if np.may_share_memory(values, raw) else values
