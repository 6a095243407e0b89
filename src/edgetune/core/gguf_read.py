"""Read GGUF files that anyone may have made: every count, length and offset is checked before it is followed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.core.cursor import Cursor
from edgetune.core.errors import MissingExtraError, ModelError

Scalar = str | int | float | bool

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LONGEST_KEY, LONGEST_NAME, MOST_DIMENSIONS = 65535, 63, 4
"""Bytes and dimensions; the limits of the format and of ggml."""
WEIGHT, UNIT = ".weight", ".scale"
"""How names of matrices end, and of the number that all of one is multiplied by."""
MAKERS = "edgetune run, compress and export write GGUF files"
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF's number of a type to its letter in `struct`."""
SMALLEST_PAIR, SMALLEST_INFO = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
"""Bytes of the shortest metadata entry and tensor entry; a file of n bytes cannot hold more than n over this."""


def gguf_library() -> Any:
    """Return the optional library `gguf`.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("gguf", "deploy", "Writing or reading a GGUF file") from error
    return gguf


@dataclass(frozen=True, slots=True)
class StoredArray:
    """A metadata array that was skipped over: where it is and what it holds."""

    kind: int
    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file.

    Args:
        name: its name.
        kind: ggml's number of its type.
        shape: outermost dimension first, as in PyTorch.
        offset: first byte, from the start of the file.
        size: bytes; None for a type whose blocks are not known here.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int
    size: int | None


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a GGUF file whose structure is sound.

    Args:
        path: the file.
        metadata: scalar metadata by key.
        arrays: the other metadata by key, to be read with `array`.
        tensors: in the file's order.
    """

    path: Path
    metadata: dict[str, Scalar]
    arrays: dict[str, StoredArray]
    tensors: tuple[StoredTensor, ...] = field(repr=False)

    def array(self, key: str) -> list[Any]:
        """Return one metadata array; empty if the file has none of that name."""
        stored = self.arrays.get(key)
        if stored is None:
            return []
        with self.path.open("rb") as file:
            cursor = Cursor(self.path, file)
            cursor.skip(stored.offset)
            if stored.kind in SCALARS:
                return list(cursor.unpack(f"{stored.count}{SCALARS[stored.kind]}"))
            return [cursor.string() for _ in range(stored.count)]


def read_gguf(path: Path) -> GgufFile:
    """Read and check the header of a GGUF file; no tensor is read.

    Raises:
        ModelError: if it is not a readable GGUF file; says what is wrong.
        MissingExtraError: if `gguf` is not installed.
    Cost: one pass over the header, some tenths of a second for a vocabulary of 150,000 tokens.
    """
    try:
        _refuse_none(path)
        with path.open("rb") as file:
            return _read(Cursor(path, file), path)
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        what = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"cannot read this file: {what}", where=path) from error


def read_metadata(path: Path) -> dict[str, Scalar]:
    """Return the scalar metadata of a GGUF file by key; arrays such as the token list are left out.

    Raises:
        ModelError, MissingExtraError: as `read_gguf`.
    """
    return read_gguf(path).metadata


def read_tensors(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield every tensor of a GGUF file, dequantised to float32 and multiplied by its unit, in the file's order.

    Raises:
        ModelError, MissingExtraError: as `read_gguf`, `dequantised` and `units_of`.
    Cost: one tensor in memory at a time.
    """
    file = read_gguf(path)
    units = units_of(file)
    for tensor in file.tensors:
        if tensor.name not in units:
            values = dequantised(tensor, stored_bytes(path, tensor), path)
            unit = units.get(unit_name(tensor.name))
            yield tensor.name, values if unit is None else values * unit


def unit_name(name: str) -> str:
    """Return the name of the tensor that holds the unit of a matrix; the name itself for what is no weight."""
    return name.removesuffix(WEIGHT) + UNIT if name.endswith(WEIGHT) else name


def units_of(file: GgufFile) -> dict[str, np.float32]:
    """Return the numbers that whole matrices are multiplied by, under the names of their tensors.

    Raises:
        ModelError: if one is not a single finite F32 number.
    Source: `build_lora_mm` of llama.cpp; of files in NVFP4.
    """
    weights = {unit_name(tensor.name) for tensor in file.tensors if tensor.name.endswith(WEIGHT)}
    found = {}
    for tensor in file.tensors:
        if tensor.name in weights:
            value = stored_bytes(file.path, tensor).view(np.float32) if tensor.kind == 0 else np.empty(0)
            if len(value) != 1 or not np.isfinite(value[0]):
                raise ModelError("a matrix's unit is not one number", where=f"{file.path}: {tensor.name!r}")
            found[tensor.name] = np.float32(value[0])
    return found


def stored_bytes(path: Path, tensor: StoredTensor) -> NDArray[np.uint8]:
    """Return the bytes of a tensor as stored, uint8 [n]."""
    return np.fromfile(path, np.uint8, tensor.size or 0, offset=tensor.offset)


def dequantised(tensor: StoredTensor, raw: NDArray[np.uint8], path: Path) -> NDArray[np.float32]:
    """Return the float32 values of a tensor, in its shape, exactly as ggml defines them.

    Args:
        tensor: what it is.
        raw: its bytes as stored, uint8 [tensor.size].
        path: the file, for errors.

    Raises:
        ModelError: for a type that cannot be dequantised.
        MissingExtraError: if `gguf` is not installed.
    Source: `gguf.quants`, by llama.cpp's authors.
    """
    library = gguf_library()
    where = f"{path}: {tensor.name!r}"
    if tensor.size is None:
        raise ModelError(f"tensors of type {tensor.kind} cannot be read", where=where)
    kind = library.GGMLQuantizationType(tensor.kind)
    plain = {"F32": np.float32, "F16": np.float16}.get(kind.name)
    try:
        with np.errstate(all="ignore"):  # the caller looks at what comes out
            values = library.quants.dequantize(raw, kind) if plain is None else raw.view(plain)
    except NotImplementedError as error:
        raise ModelError(f"tensors of type {kind.name} cannot be read", where=where) from error
    return values.reshape(tensor.shape).astype(np.float32, copy=False)


def _refuse_none(path: Path) -> None:
    """Refuse what no file can be read of, with a name that may have been meant.

    Raises:
        ModelError: for nothing, a folder, or a device.
    """
    if not path.exists():
        raise ModelError("no such file", where=path, hint=MAKERS)
    inside = path / "model.gguf"
    if path.is_dir():
        hint = f"did you mean {inside}?" if inside.is_file() else MAKERS
        raise ModelError("a folder, not a GGUF file", where=path, hint=hint)
    if not path.is_file():
        raise ModelError("not a regular file", where=path, hint=MAKERS)


def _read(cursor: Cursor, path: Path) -> GgufFile:
    if cursor.bytes(4) != MAGIC:
        raise ModelError("not a GGUF file: it does not begin as one", where=path, hint=MAKERS)
    version = cursor.number("I")
    if version not in VERSIONS:
        cursor.refuse(f"version {version}")
    tensors, pairs = cursor.unpack("QQ")
    if tensors * SMALLEST_INFO + pairs * SMALLEST_PAIR > cursor.size:
        cursor.refuse(f"{tensors} tensors and {pairs} keys in {cursor.size} bytes")
    metadata: dict[str, Scalar] = {}
    arrays: dict[str, StoredArray] = {}
    for _ in range(pairs):
        key = cursor.string(LONGEST_KEY)
        if key in metadata or key in arrays:
            cursor.refuse(f"the key {key[:80]!r} stands there twice")
        kind = cursor.number("I")
        if kind == ARRAY:
            arrays[key] = _skip_array(cursor)
        elif kind == STRING:
            metadata[key] = cursor.string()
        else:
            metadata[key] = _scalar(cursor, kind)
    return GgufFile(path, metadata, arrays, _tensors(cursor, tensors, _alignment(cursor, metadata)))


def _scalar(cursor: Cursor, kind: int) -> Scalar:
    if kind not in SCALARS:
        cursor.refuse(f"a value of unknown type {kind}")
    value: Scalar = cursor.unpack(SCALARS[kind])[0]
    return value


def _skip_array(cursor: Cursor) -> StoredArray:
    kind, count = cursor.unpack("IQ")
    place = cursor.place
    if kind in SCALARS:
        cursor.skip(count * struct.calcsize(f"<{SCALARS[kind]}"))
    elif kind == STRING:
        if count * 8 > cursor.size - place:
            cursor.refuse(f"{count} texts in {cursor.size - place} bytes")
        for _ in range(count):
            cursor.string()
    else:
        cursor.refuse(f"an array of type {kind}")
    return StoredArray(kind, count, place)


def _alignment(cursor: Cursor, metadata: dict[str, Scalar]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        cursor.refuse(f"an alignment of {alignment!r}")
    return alignment


def _tensors(cursor: Cursor, count: int, alignment: int) -> tuple[StoredTensor, ...]:
    sizes = gguf_library().GGML_QUANT_SIZES
    read = [_info(cursor) for _ in range(count)]
    if len({name for name, *_ in read}) < count:
        cursor.refuse("two tensors have the same name")
    start = -(-cursor.place // alignment) * alignment
    found = []
    for name, shape, kind, offset in read:
        block, width = sizes.get(kind, (0, 0))
        if block and shape and shape[-1] % block:
            cursor.refuse(f"tensor {name!r} has rows of {shape[-1]} weights in blocks of {block}")
        size = prod(shape) // block * width if block else None
        if offset % alignment or start + offset + (size or 0) > cursor.size:
            cursor.refuse(f"tensor {name!r} lies outside the file")
        found.append(StoredTensor(name, kind, shape, start + offset, size))
    return tuple(found)


def _info(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string(LONGEST_NAME)
    dimensions = cursor.number("I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        cursor.refuse(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reversed(cursor.unpack(f"{dimensions}Q")))
    if not all(shape):
        cursor.refuse(f"tensor {name!r} has the shape {shape}")
    kind, offset = cursor.unpack("IQ")
    return name, shape, kind, offset
