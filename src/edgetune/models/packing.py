"""What `quantization_config` of a model folder says: how its layers are packed, or why they cannot be read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.core import gptq, pack_quantized
from edgetune.core.errors import ModelError
from edgetune.core.gptq import Gptq
from edgetune.core.integers import BITS
from edgetune.core.levels import LevelMatrix, Tensors
from edgetune.core.pack_quantized import PackQuantized
from edgetune.core.words import WORD
from edgetune.models.weights import read_json

LARGEST = 16 << 20
"""Bytes of a configuration file."""
ORIGINAL = "use the model it was quantised from"
LIFTS = {"gptq": 1, "gptq_v2": 0}
"""Format of a GPTQ checkpoint to what is added to its stored zero points."""
ROUNDED = {"auto_round:auto_gptq": 1, "auto_round:gptqmodel": 0, "auto_round": 0}
"""The same of AutoRound's own folders, which pack as GPTQ does (`auto_round/inference/backend.py`, 0.16)."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How the layers of a folder are packed.

    Args:
        parts: last parts of the names of a packed layer's tensors, the codes first.
        readers: ways to read a layer: one, or for compressed-tensors one for each number of bits in the folder.
        digest: SHA-256 of what was said, for the same words can mean other weights.
    """

    parts: tuple[str, ...]
    readers: tuple[Gptq | PackQuantized, ...]
    digest: str

    def matrix(self, tensors: Tensors, where: str) -> LevelMatrix:
        """Return the matrix of a layer.

        Raises:
            ModelError: if its tensors do not fit together, or not to what was said.
        """
        readers = [one for one in self.readers if isinstance(one, Gptq) or _fits(one, tensors)]
        if len(readers) != 1:
            said = sorted({one.bits for one in self.readers if one.bits})
            raise ModelError(
                f"a quantised layer has a shape of none of {said} bits, or of several", where=where
            )
        reader = readers[0]
        if isinstance(reader, PackQuantized):
            reader = PackQuantized(reader.bits, pack_quantized.ZEROS not in tensors, reader.ordered)
        return reader.matrix(tensors, where)


def packing_in(folder: Path) -> Packing | None:
    """Return how a model folder says its layers are packed; None for plain weights.

    Raises:
        ModelError: if config.json cannot be read, or says a packing that is not read here; says which.
    """
    file = folder / "config.json"
    try:
        content = read_json(file, LARGEST)
    except (ValueError, OSError) as error:
        raise ModelError(f"cannot use this configuration: {str(error)[:200]}", where=file) from error
    said = content.get("quantization_config") if isinstance(content, dict) else None
    if said is None:
        return None
    if not isinstance(said, dict):
        raise ModelError("quantization_config is no group of settings", where=file, hint=ORIGINAL)
    try:
        return packing_of(said, file)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError("quantization_config is damaged", where=file, hint=ORIGINAL) from error


def packing_of(said: Mapping[str, Any], where: Path) -> Packing:
    """Return the packing that a `quantization_config` says.

    Raises:
        ModelError: for another method, number of bits or format than is read here.
    """
    method = said.get("quant_method")
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    if method == "gptq":
        return Packing(gptq.PARTS, (_gptq(said, where),), digest)
    if method == "auto-round":
        return Packing(gptq.PARTS, (_rounded(said, where),), digest)
    if method == "compressed-tensors":
        return Packing(pack_quantized.PARTS, tuple(_groups(said, where)), digest)
    raise ModelError(
        f"this model is already quantised, by {str(method)[:40]!r}",
        where=where,
        hint=f"gptq, auto-round and compressed-tensors are read; else {ORIGINAL}",
    )


def _gptq(said: Mapping[str, Any], where: Path) -> Gptq:
    # `dynamic` of GPTQModel gives layers bits of their own.
    bits = None if said.get("dynamic") else _known(said["bits"], "GPTQ", where)
    return Gptq(
        bits, bool(said.get("desc_act")), _lift(LIFTS, said.get("checkpoint_format") or "gptq", "GPTQ", where)
    )


def _rounded(said: Mapping[str, Any], where: Path) -> Gptq:
    if (said.get("data_type") or "int") != "int" or (said.get("act_bits") or 16) < 16:
        raise ModelError("an AutoRound checkpoint of more than packed integers", where=where, hint=ORIGINAL)
    # `extra_config` gives layers bits of their own.
    bits = None if said.get("extra_config") else _known(said["bits"], "AutoRound", where)
    return Gptq(bits, False, _lift(ROUNDED, said.get("packing_format"), "AutoRound", where))


def _known(bits: object, whose: str, where: Path) -> int:
    if type(bits) is not int or bits not in BITS:
        raise ModelError(f"{whose} with {bits!r} bits", where=where, hint=f"{BITS} are read; else {ORIGINAL}")
    return bits


def _lift(lifts: Mapping[str, int], kind: Any, whose: str, where: Path) -> int:
    if kind not in lifts:
        hint = f"{' and '.join(lifts)} are read; else {ORIGINAL}"
        raise ModelError(f"{whose} in the format {str(kind)[:40]!r}", where=where, hint=hint)
    return lifts[kind]


def _groups(said: Mapping[str, Any], where: Path) -> Iterator[PackQuantized]:
    for what in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if said.get(what):
            raise ModelError(f"a checkpoint with a {what}", where=where, hint=ORIGINAL)
    seen: dict[int, bool] = {}
    for group in said["config_groups"].values():
        weights, kind = group["weights"], group.get("format") or said.get("format")
        if group.get("input_activations") or group.get("output_activations"):
            raise ModelError("activations are quantised too", where=where, hint=ORIGINAL)
        if kind != "pack-quantized" or weights.get("type", "int") != "int":
            raise ModelError(
                f"compressed-tensors in the format {str(kind)[:40]!r}",
                where=where,
                hint=f"pack-quantized is read; else {ORIGINAL}",
            )
        bits = weights["num_bits"]
        if type(bits) is not int or not 1 <= bits <= 8:
            raise ModelError(f"compressed-tensors with {bits!r} bits", where=where, hint=ORIGINAL)
        seen[bits] = seen.get(bits, False) or weights.get("actorder") == "group"
    yield from (PackQuantized(bits, symmetric=True, ordered=ordered) for bits, ordered in seen.items())


def _fits(reader: PackQuantized, tensors: Tensors) -> bool:
    """Say whether packed codes have the width of so many bits."""
    shape, words = tensors.get(pack_quantized.SHAPE), tensors[pack_quantized.CODES]
    if shape is None or shape.numel() != 2 or words.dim() != 2:
        return True  # the reader says what is wrong
    return words.shape[1] == -(-int(shape[1]) * reader.bits // WORD)
