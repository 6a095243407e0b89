"""Ledger files: digests that fit contents that make no sense, and bytes of any kind."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from edgetune.core.ledger import Ledger, read_ledger, write_ledger
from edgetune.core.update import Dense, Projected
from fuzz.target import FLOATS, INTEGERS, as_json, deep, mutated_bytes, mutated_json, refusal, require

BASE = "ab" * 32
SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "C64": 8,
}
TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "C64": "complex64",
}  # fmt: skip
Tensor = tuple[str, tuple[int, ...], bytes]
"""Type, shape and bytes."""


class Ledgers:
    """Files that claim to be ledgers."""

    name = "ledgers"

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self._path = Path(self._folder.name) / "x.ledger"

    def case(self, rng: Random) -> bytes:
        """Return a ledger with a changed header, changed tensors, or changed bytes; digests mostly fit."""
        header, directions, tensors = _valid(rng)
        for _ in range(rng.choice((0, 1, 1, 2))):
            kind = rng.randrange(4)
            if kind == 0:
                directions = mutated_json(directions, rng)
            elif kind == 1:
                field = rng.choice(list(header))
                header[field] = _text(header[field], rng)
            else:
                tensors = _changed(tensors, rng)
        data = _file(header, directions, tensors, rng)
        return mutated_bytes(data, rng) if rng.random() < 0.15 else data

    def check(self, case: bytes) -> str:
        """Read the file; what is accepted is written and read again."""
        self._path.write_bytes(case)
        found = refusal(lambda: read_ledger(self._path))
        if isinstance(found, str):
            return found
        _require_sound(found)
        write_ledger(self._path, found)
        again = read_ledger(self._path)
        require(again.digest == found.digest, "a ledger that is written again has another digest")
        return "accepted"


def _require_sound(ledger: Ledger) -> None:
    require(ledger.update.is_bounded, "a number is NaN, infinite or absurd")
    require(0 <= ledger.round < 1 << 32, "a round out of range")
    if isinstance(ledger.update, Dense):
        require(
            ledger.directions is None and bool(ledger.update.tensors),
            "a dense ledger with directions, or of nothing",
        )
        return
    keys = ledger.update.keys
    require(
        isinstance(ledger.update, Projected) and ledger.directions is not None,
        "coefficients without directions",
    )
    require(keys.dtype == np.int64, "keys of another type")
    top = ledger.directions.size if ledger.directions is not None and ledger.directions.size else 1 << 63
    require(not len(keys) or (int(keys.min()) >= 0 and int(keys.max()) < top), "a key outside the pool")


def _valid(rng: Random) -> tuple[dict[str, str], Any, dict[str, Tensor]]:
    header = {
        "format": "edgetune-ledger-2", "base_digest": BASE, "method": "fedkseed", "adapter": "null",
        "weights_digest": "", "round": str(rng.randrange(100)), "fingerprint": "federated-" + "c" * 64, "extra": "{}",
    }  # fmt: skip
    kind = rng.randrange(3)
    directions: Any = {"kind": "hadamard", "size": 8, "key_id": "0123456789abcdef", "seed": 7}
    if kind == 0:
        return header, directions, {"coefficients": ("F32", (8,), _floats(8, rng))}
    if kind == 1:
        keys = struct.pack("<4q", *(rng.randrange(2**63) for _ in range(4)))
        tensors: dict[str, Tensor] = {
            "keys": ("I64", (4,), keys),
            "coefficients": ("F32", (4,), _floats(4, rng)),
        }
        return header, directions | {"kind": "rademacher", "size": 0}, tensors
    header |= {"method": "lora", "adapter": json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16.0})}
    return header, None, {"a.B": ("F32", (2, 2), _floats(4, rng)), "a.A": ("F16", (2,), b"\0\x3c\0\x3c")}


def _floats(count: int, rng: Random) -> bytes:
    values = [rng.gauss(0, 1) if rng.random() < 0.95 else rng.choice(FLOATS) for _ in range(count)]
    with np.errstate(over="ignore"):
        return np.array(values).astype("<f4").tobytes()


def _text(text: str, rng: Random) -> str:
    kind = rng.randrange(5)
    if kind == 0:
        return str(rng.choice(INTEGERS))
    if kind == 1:
        return deep(rng)
    if kind == 2:
        return as_json(mutated_json({"a": "b", "r": 8, "seed": 1}, rng))
    if kind == 3:
        return mutated_bytes(text.encode(), rng).decode("latin-1")
    return str(rng.choice(("", "9" * 5000, "-1", "x" * 1000, "é", "null")))


def _changed(tensors: dict[str, Tensor], rng: Random) -> dict[str, Tensor]:
    if not tensors:
        return {"coefficients": ("F32", (8,), _floats(8, rng))}
    changed = dict(tensors)
    name = rng.choice(list(changed))
    kind, shape, data = changed.pop(name)
    choice = rng.randrange(6)
    if choice == 0:
        return changed
    if choice == 1:
        return changed | {rng.choice(("keys", "coefficients", "x")): (kind, shape, data)}
    if choice == 2:
        kind = rng.choice(list(SIZES))
    elif choice == 3:
        shape = rng.choice(
            ((len(data) // SIZES[kind],), (1, len(data) // SIZES[kind]), (), (0,), (2, 4), (2**40,))
        )
    elif choice == 4:
        data = mutated_bytes(data, rng)
    else:
        at = rng.randrange(max(1, len(data) // 8)) * 8
        data = (
            data[:at]
            + struct.pack("<q", max(-(2**63), rng.choice(INTEGERS) * rng.choice((1, -1))))
            + data[at + 8 :]
        )
    if rng.random() < 0.8:
        count = int(np.prod(shape, dtype=object)) * SIZES[kind]
        data = (data * (count // max(1, len(data)) + 1))[:count] if count < 1000 else data
    return changed | {name: (kind, shape, data)}


def _file(header: dict[str, str], directions: Any, tensors: dict[str, Tensor], rng: Random) -> bytes:
    """Return safetensors bytes whose digests fit, as docs/formats.md says, unless chance has it otherwise."""
    header = header | {"directions": as_json(directions)}
    try:
        said = json.dumps([directions or {}, header["base_digest"]], sort_keys=True)
    except (ValueError, TypeError):
        said = ""
    content = hashlib.sha256(said.encode())
    for name in sorted(tensors):
        kind, shape, data = tensors[name]
        content.update(f"{name}{tuple(shape)}torch.{TORCH[kind]}".encode() + data)
    header["content_digest"] = content.hexdigest()
    header["header_digest"] = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    if rng.random() < 0.05:
        header["header_digest"] = "0" * 64
    described: dict[str, Any] = {"__metadata__": header}
    body = b""
    for name in sorted(tensors, key=lambda one: (-SIZES[tensors[one][0]], one)):
        kind, shape, data = tensors[name]
        described[name] = {
            "dtype": kind,
            "shape": list(shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(described, separators=(",", ":")).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body
