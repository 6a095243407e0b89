"""The ledger: the whole fine-tune as a small file beside an immutable base.

A `.ledger` is a safetensors file. Projected: `coefficients` float32 [K] (and `keys` int64 [n], in the order of the
steps, if the directions are not a pool). Dense: the tuned tensors by name. Its metadata names the base by digest, so
that it can never be applied to another one, and carries a digest of its own tensors, so that a damaged file is refused
before anything is changed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from edgetune.core.canonical import saved
from edgetune.core.errors import DigestError, ModelError
from edgetune.core.files import write_atomic
from edgetune.core.ledger_checks import (
    MalformedError,
    check_adapter,
    check_dense,
    check_directions,
    check_extra,
    check_projected,
    parsed,
    text,
    unsigned,
)
from edgetune.core.update import Dense, Projected, Update

FAMILY = "edgetune-ledger-"
FORMAT = FAMILY + "2"
DIGEST = "[0-9a-f]{64}"
"""A SHA-256 in hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class DirectionsSpec:
    """Which directions the coefficients belong to.

    Args:
        kind: a name in `edgetune.directions.KINDS`.
        size: number of directions of the pool; 0 if every step drew a fresh one.
        key_id: names the key without revealing it.
        seed: master seed of a public key; None if the key is secret.
    """

    kind: str
    size: int
    key_id: str
    seed: int | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """A fine-tune: what was learnt, and what it is relative to.

    Args:
        base_digest: digest of the base's stored weights.
        method: name of the method that made it.
        update: the sum of all steps, relative to the base.
        directions: what projected coefficients refer to; None for dense tensors.
        adapter: the peft configuration of dense adapter tensors; None otherwise.
        weights_digest: digest of the materialised trainable weights in float32; empty if not known.
        round: completed rounds (or checkpoint intervals).
        fingerprint: digest of the configuration that made it; a resume with another one is refused.
    """

    base_digest: str
    method: str
    update: Update
    directions: DirectionsSpec | None = None
    adapter: dict[str, Any] | None = None
    weights_digest: str = ""
    round: int = 0
    fingerprint: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over the tensors and what they refer to."""
        return _content_digest(
            _tensors(self), asdict(self.directions) if self.directions else {}, self.base_digest
        )


def _tensors(ledger: Ledger) -> dict[str, torch.Tensor]:
    update = ledger.update
    if isinstance(update, Dense):
        return {name: tensor.detach().contiguous().cpu() for name, tensor in update.tensors.items()}
    if ledger.directions is not None and ledger.directions.size:
        table = np.zeros(ledger.directions.size, np.float32)
        np.add.at(table, update.keys, update.coefficients)
        return {"coefficients": torch.from_numpy(table)}
    return {
        "keys": torch.from_numpy(update.keys.copy()),
        "coefficients": torch.from_numpy(update.coefficients.copy()),
    }


def _content_digest(tensors: dict[str, torch.Tensor], directions: dict[str, Any], base_digest: str) -> str:
    hasher = sha256(json.dumps([directions, base_digest], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        hasher.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return hasher.hexdigest()


def write_ledger(path: Path, ledger: Ledger) -> None:
    """Write a ledger atomically; equal ledgers are equal files.

    Raises:
        OutputError: if the file cannot be written; an older file stays as it was.
    Cost: 4 bytes a pool direction (16 KB for K = 4096), or the tensors' bytes.
    """
    header = {
        "format": FORMAT,
        "base_digest": ledger.base_digest,
        "method": ledger.method,
        "directions": json.dumps(asdict(ledger.directions) if ledger.directions else None),
        "adapter": json.dumps(ledger.adapter, sort_keys=True),
        "weights_digest": ledger.weights_digest,
        "round": str(ledger.round),
        "fingerprint": ledger.fingerprint,
        "extra": json.dumps(ledger.extra, sort_keys=True),
        "content_digest": ledger.digest,
    }
    header["header_digest"] = _header_digest(header)
    # Python writes the bytes: the library's own writer reports a full disk as an error that is no OSError.
    data = saved(_tensors(ledger), header)
    write_atomic(path, lambda temporary: temporary.write_bytes(data))


def _header_digest(header: dict[str, str]) -> str:
    fields = {name: value for name, value in header.items() if name != "header_digest"}
    return sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def read_ledger(path: Path, *, base_digest: str | None = None) -> Ledger:
    """Read a ledger and check its integrity.

    Args:
        path: the file.
        base_digest: digest of the base it shall be applied to; None to only look.

    Raises:
        ModelError: if the file is missing, not a ledger, or damaged.
        DigestError: if it belongs to another base.
    """
    if not path.is_file():
        raise ModelError("no such ledger", where=path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"not a readable ledger: {error}", where=path) from error
    if header.get("format") != FORMAT:
        found = str(header.get("format"))[:40]
        hint = f"this version reads {FORMAT}" if found.startswith(FAMILY) else None
        raise ModelError(f"not an edgetune ledger (format {found!r})", where=path, hint=hint)
    try:
        ledger = _from_header(header, tensors)
    except MalformedError as error:
        raise ModelError(f"the ledger is malformed: {error}", where=path, hint="get it again") from error
    spec = asdict(ledger.directions) if ledger.directions else {}
    found = _content_digest(tensors, spec, ledger.base_digest)
    if found != header.get("content_digest") or _header_digest(header) != header.get("header_digest"):
        raise ModelError("the ledger is damaged: its digest does not match its contents", where=path)
    if base_digest is not None:
        check_base(ledger, base_digest, path)
    return ledger


def check_base(ledger: Ledger, base_digest: str, where: Path | None = None) -> None:
    """Refuse a ledger of another base.

    Raises:
        DigestError: naming both bases.
    """
    if ledger.base_digest != base_digest:
        raise DigestError(
            f"this ledger belongs to base {ledger.base_digest[:12]}, not to {base_digest[:12]}",
            where=where,
            hint="load the base that it was tuned from; weights and config.json both count",
        )


def _from_header(header: dict[str, str], tensors: dict[str, torch.Tensor]) -> Ledger:
    raw = parsed(header, "directions")
    directions = DirectionsSpec(**check_directions(raw)) if raw is not None else None
    update: Update
    if directions is None:
        check_dense(tensors)
        update = Dense(tensors)
    else:
        check_projected(tensors, directions.size)
        coefficients = tensors["coefficients"].numpy()
        keys = tensors["keys"].numpy() if "keys" in tensors else np.arange(len(coefficients), dtype=np.int64)
        update = Projected(keys, coefficients)
    return Ledger(
        base_digest=text(header, "base_digest", DIGEST),
        method=text(header, "method", "[a-z0-9_]{0,64}"),
        update=update,
        directions=directions,
        adapter=check_adapter(parsed(header, "adapter")),
        weights_digest=text(header, "weights_digest", f"({DIGEST})?"),
        round=unsigned(header, "round"),
        fingerprint=text(header, "fingerprint", ".{0,256}"),
        extra=check_extra(parsed(header, "extra")),
    )
