"""Checks of stored weights before anything is loaded: which files, whole, in a type that can be used."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.core.errors import ModelError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_INTEGERS = frozenset({"BOOL", "U8", "I8", "I16", "I32", "I64"})
_LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format."""


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


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        owners = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(owners.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("the index of the weight files is damaged", where=index) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise ModelError(
                f"the weight file {name} is missing", where=index, hint="copy or download it again"
            )
    return tuple(index.parent / name for name in names)


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
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ModelError("the header of the weight file is damaged", where=file, hint=_AGAIN) from error
    if not isinstance(header, dict):
        raise ModelError("the header of the weight file is damaged", where=file, hint=_AGAIN)
    return header, 8 + length


def _check_tensor(file: Path, name: str, entry: Any) -> int:
    """Return where the tensor ends, counted from the end of the header."""
    try:
        kind, (begin, end) = entry["dtype"], entry["data_offsets"]
        sound = 0 <= begin <= end
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"the header entry of {name} is damaged", where=file, hint=_AGAIN) from error
    if not sound:
        raise ModelError(f"the header entry of {name} is damaged", where=file, hint=_AGAIN)
    # Old checkpoints store attention masks and positions beside the weights, as integers; the model ignores them.
    if kind not in FLOATS and (kind not in _INTEGERS or name.endswith("weight")):
        raise ModelError(f"{name} is stored as {kind}", where=file, hint="use weights in F32, F16 or BF16")
    return int(end)


_AGAIN = "copy or download it again"
