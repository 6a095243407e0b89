"""Checks of stored weights before anything is loaded: which files, whole, in a type that can be used."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.core.errors import ModelError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_INTEGERS = frozenset({"BOOL", "U8", "I8", "I16", "I32", "I64"})
_LARGEST_HEADER = 32 << 20
"""Bytes; 30 times the header of a shard with ten thousand tensors. (The format allows 100 MB.)"""
_LARGEST_INDEX = 64 << 20
_BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "I16": 16,
    "I32": 32,
    "I64": 64,
}


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a model folder, one or several shards, after checking that each is whole.

    Args:
        folder: a Hugging Face model folder.

    Raises:
        ModelError: no safetensors weights (with the way to convert pickled ones), a missing shard, a truncated or
            damaged file, or weights in a type that is not a plain float. The message names the file.
    Cost: reads the headers only.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        files: tuple[Path, ...] = (single,)
    elif index.is_file():
        files = _shards(index)
    else:
        raise _no_weights(folder)
    for file in files:
        _check_file(file)
    return files


def stored_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in files that `weight_files` has checked.

    Cost: reads the headers.
    """
    return {
        name: tuple(entry["shape"])
        for file in files
        for name, entry in _header(file)[0].items()
        if name != "__metadata__"
    }


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """Where one tensor of a weight file is.

    Args:
        file: the safetensors file.
        kind: its type as safetensors names it, for example `BF16`.
        shape: its shape.
        offset: first byte, from the start of the file.
    """

    file: Path
    kind: str
    shape: tuple[int, ...]
    offset: int


def stored_entries(files: Iterable[Path]) -> dict[str, StoredEntry]:
    """Return where every tensor is, in files that `weight_files` has checked.

    Cost: reads the headers.
    """
    found = {}
    for file in files:
        header, start = _header(file)
        for name, entry in header.items():
            if name != "__metadata__":
                begin = start + int(entry["data_offsets"][0])
                found[name] = StoredEntry(file, entry["dtype"], tuple(entry["shape"]), begin)
    return found


def read_json(file: Path, largest: int) -> Any:
    """Parse a JSON file of bounded size.

    Raises:
        ValueError: too large, not JSON, nested too deeply, or with a number of thousands of digits.
        OSError: it cannot be read.
    """
    size = file.stat().st_size
    if size > largest:
        raise ValueError(f"{size} bytes are too many")
    try:
        return json.loads(file.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        owners = read_json(index, _LARGEST_INDEX)["weight_map"]
        names = sorted(set(owners.values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ModelError("the index of the weight files is damaged", where=index, hint=_AGAIN) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not _is_file(index.parent / name):
            raise ModelError(f"the weight file {repr(name)[:80]} is missing", where=index, hint=_AGAIN)
    return tuple(index.parent / name for name in names)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def _no_weights(folder: Path) -> ModelError:
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if not pickled:
        return ModelError("no model.safetensors in this folder", where=folder)
    return ModelError(
        "pickled weights can run any code when loaded and are refused",
        where=pickled[0],
        hint="convert them where you trust them: AutoModelForCausalLM.from_pretrained(folder)"
        ".save_pretrained(new_folder) writes model.safetensors",
    )


def _check_file(file: Path) -> None:
    header, start = _header(file)
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        end = max(end, _check_tensor(file, name, entry))
    size = file.stat().st_size
    if size != start + end:
        state = "cut short" if size < start + end else "longer than its header says"
        raise ModelError(
            f"the weight file is {state}: {size} bytes, expected {start + end}", where=file, hint=_AGAIN
        )


def _header(file: Path) -> tuple[Mapping[str, Any], int]:
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 0 < length <= min(_LARGEST_HEADER, file.stat().st_size - 8):
            raise ModelError("the weight file is cut short or is not safetensors", where=file, hint=_AGAIN)
        text = stream.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError("the header of the weight file is damaged", where=file, hint=_AGAIN) from error
    if not isinstance(header, dict):
        raise ModelError("the header of the weight file is damaged", where=file, hint=_AGAIN)
    return header, 8 + length


def _check_tensor(file: Path, name: str, entry: Any) -> int:
    """Return where the tensor ends, counted from the end of the header."""
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = all(type(number) is int and 0 <= number < 1 << 60 for number in (*shape, begin, end))
        sound = sound and isinstance(kind, str) and isinstance(shape, list) and begin <= end
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged_entry(file, name) from error
    if not sound:
        raise _damaged_entry(file, name)
    # Old checkpoints store attention masks and positions beside the weights, as integers; the model ignores them.
    # Codes of packed layers are integers too, under names of their own (`qweight`).
    named = name == "weight" or name.endswith((".weight", "_weight"))
    if kind not in FLOATS and (kind not in _INTEGERS or named):
        shown, kind = repr(name)[:80], kind[:20]
        raise ModelError(f"{shown} is stored as {kind}", where=file, hint="use weights in F32, F16 or BF16")
    if (end - begin) * 8 != math.prod(shape) * _BITS[kind]:
        raise _damaged_entry(file, name)
    return int(end)


def _damaged_entry(file: Path, name: str) -> ModelError:
    return ModelError(f"the header entry of {repr(name)[:80]} is damaged", where=file, hint=_AGAIN)


_AGAIN = "copy or download it again"
