"""A GGUF file as a base: its header copied but for provenance, its tensors changed one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.core.errors import ModelError
from edgetune.core.files import unwritable
from edgetune.core.fitting import fitting
from edgetune.core.gguf_read import StoredTensor, gguf_library, unit_name
from edgetune.core.gguf_write import header, number_pair, raw_pairs, text_pair
from edgetune.core.packing import unpack
from edgetune.core.quantised import GRIDS, BlockGrid
from edgetune.export.plan import FILE_TYPES
from edgetune.installed.base import OWN, Base, Form, Touched, Written
from edgetune.installed.blocks import moved, rounded
from edgetune.models.gguf.opening import outline_of
from edgetune.models.gguf.weights import CHUNK, GgufWeights
from edgetune.models.identity import base_digest

Bytes = NDArray[np.uint8]
F32, F16, BF16 = 0, 1, 30
"""ggml's numbers of types."""
FLOATS = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
PREFIX = "edgetune."
FILE_TYPE = "general.file_type"


class GgufBase(Base):
    """A GGUF file of a family that can be a base model.

    Args:
        path: the file.
        touched: how matrices in blocks are stored that a ledger changes.

    Raises:
        ModelError: if it is damaged, or of a family that cannot be read.
        MissingExtraError: if `gguf` is not installed.
    Cost: reads all tensors once, for their digest.
    """

    def __init__(self, path: Path, touched: Touched = OWN) -> None:
        self.weights = GgufWeights(path)
        outline = outline_of(self.weights)
        super().__init__(path, outline, base_digest(self.weights.digest, self.weights.config))
        self._touched = touched
        self._names: dict[int, str] = {kind.value: kind.name for kind in gguf_library().GGMLQuantizationType}

    @property
    def claimed(self) -> str:
        """Digest of the base that this file was exported from."""
        return self._said("base_digest")

    @property
    def holds(self) -> str:
        """Digests of the ledgers that it holds."""
        return self._said("ledger_digest")

    def _said(self, key: str) -> str:
        return str(self.weights.file.metadata.get(PREFIX + key, ""))

    def names(self) -> Sequence[str]:
        """Return the parameters, sorted."""
        return sorted(self.weights)

    def read(self, name: str) -> torch.Tensor:
        """Return a parameter in float32; blocks have the values that ggml defines."""
        return self.weights[name].clone()

    def write(self, target: Path, names: Iterable[str], form: Form, said: dict[str, str]) -> Written:
        """Write a file with the same tensors in the same order; what is not changed is copied."""
        names = list(names)
        tensors = self.weights.file.tensors
        kinds = {one.name: one.kind for one in tensors}
        for name in names:
            stored = self.weights.tensor(name)
            kinds[stored.name] = self._kind(stored)
        sizes = [self._size(one, kinds[one.name]) for one in tensors]
        infos = [
            (one.name, kinds[one.name], one.shape, size) for one, size in zip(tensors, sizes, strict=True)
        ]
        alignment = int(self.weights.file.metadata.get("general.alignment", 32))
        head, offsets = header(self._pairs(said, kinds), infos, alignment)
        places = dict(zip(kinds, offsets, strict=True))
        ours = {self.weights.tensor(name).name for name in names}
        freed = {unit_name(one.name) for one in tensors if kinds[one.name] != one.kind} - ours
        changed, arrived, wanted = 0, 0.0, 0.0
        try:
            with target.open("wb") as file:
                file.write(head)
                for one, size in zip(tensors, sizes, strict=True):
                    file.seek(places[one.name])
                    if one.name in freed:  # its matrix is in no blocks any more
                        file.write(np.ones(1, "<f4").tobytes())
                    elif one.name not in ours:
                        self._copy(file, one)
                    end = places[one.name] + size
                file.truncate(end + -end % alignment)
                for name in names:
                    one = self.weights.tensor(name)
                    old = self.weights.raw(one)
                    values = form(name, self.read(name))
                    new = self._encoded(name, one, kinds[one.name], values)
                    there, whole = self._arrived(name, one, kinds[one.name], values, new)
                    arrived, wanted = arrived + there, wanted + whole
                    changed += len(new) != len(old) or not np.array_equal(new, old)
                    file.seek(places[one.name])
                    file.write(new.tobytes())
        except OSError as error:
            raise unwritable(error, target) from error
        return Written(changed, len(tensors), arrived / wanted if wanted else 1.0)

    def _arrived(
        self, name: str, tensor: StoredTensor, kind: int, values: torch.Tensor, new: Bytes
    ) -> tuple[float, float]:
        """Return <wanted, stored> and |wanted|^2 of a tensor's change, where it is in blocks."""
        if kind in FLOATS:
            return 0.0, 0.0
        before = self.weights.stored_rows(name, self.read(name))
        matrix = unpack(GRIDS[self._names[kind]], new.reshape(len(values), -1))
        stored = matrix.dequantise() * (self.weights.unit(tensor) if kind == tensor.kind else 1.0) - before
        wanted = self.weights.stored_rows(name, values) - before
        return float((wanted * stored).sum(dtype=torch.float64)), float(
            wanted.square().sum(dtype=torch.float64)
        )

    def _copy(self, file: Any, tensor: StoredTensor) -> None:
        raw = self.weights.raw(tensor)
        for start in range(0, len(raw), CHUNK):
            file.write(raw[start : start + CHUNK].tobytes())

    def _pairs(self, said: dict[str, str], kinds: dict[str, int]) -> dict[str, bytes]:
        pairs = raw_pairs(self.path)
        pairs |= {PREFIX + key: text_pair(PREFIX + key, text) for key, text in said.items()}
        matrices = Counter(
            self._names[kinds[one.name]] for one in self.weights.file.tensors if len(one.shape) == 2
        )
        most = max(matrices, key=lambda kind: (kind in GRIDS, matrices[kind]))
        before = {one.name: one.kind for one in self.weights.file.tensors}
        if kinds != before and most in FILE_TYPES:
            pairs[FILE_TYPE] = number_pair(FILE_TYPE, FILE_TYPES[most])
        return pairs

    def _kind(self, tensor: StoredTensor) -> int:
        """Return the type in which a changed tensor is stored."""
        if tensor.kind in FLOATS:
            return tensor.kind
        name = self._names.get(tensor.kind, str(tensor.kind))
        if self._touched.half:
            return F16
        grid = GRIDS.get(name) if self._touched.grid is None else self._touched.grid
        if grid is None:
            raise ModelError(
                f"{tensor.name} is stored as {name}, whose codes cannot be changed here",
                where=self.path,
                hint="--touched F16 or --touched Q8_0 stores changed matrices so",
            )
        fits = fitting(grid, tensor.shape[-1])
        if fits is None or (fits.has_unit and name != fits.name):
            return F16
        found: int = gguf_library().GGMLQuantizationType[fits.name].value
        return found

    def _size(self, tensor: StoredTensor, kind: int) -> int:
        if kind == tensor.kind and tensor.size is not None:
            return tensor.size
        block, size = gguf_library().GGML_QUANT_SIZES[kind]
        return int(np.prod(tensor.shape)) // int(block) * int(size)

    def _encoded(self, name: str, tensor: StoredTensor, kind: int, values: torch.Tensor) -> Bytes:
        """Return the stored bytes of new values, in the file's row order."""
        values = self.weights.stored_rows(name, values)
        if kind in FLOATS:
            stored = values.to(FLOATS[kind]).contiguous()
            if not bool(torch.isfinite(stored).all()):
                raise ModelError(f"{tensor.name} does not fit {self._names[kind]}", where=self.path)
            return stored.view(-1).view(torch.uint8).numpy()
        grid: BlockGrid = GRIDS[self._names[kind]]
        if kind != tensor.kind or self._touched.grid is not None:
            return rounded(grid, values, tensor.name).reshape(-1)
        raw = np.array(self.weights.raw(tensor)).reshape(len(values), -1)
        return moved(grid, raw, values, tensor.name, self.weights.unit(tensor)).reshape(-1)
