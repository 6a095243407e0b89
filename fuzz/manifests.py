"""Manifests of updates: what is taken is bounded, can be kept as a record, and is what was signed."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

from edgetune.core.errors import EdgetuneError
from edgetune.installed.manifest import FORMAT, LARGEST, MOST_LEDGERS, Manifest, read_manifest, touched_named
from edgetune.installed.refusing import refuse_record
from edgetune.installed.signing import PURPOSE, check_signature
from fuzz.target import (
    FLOATS,
    INTEGERS,
    any_value,
    as_json,
    deep,
    mutated_bytes,
    mutated_json,
    refusal,
    require,
)

NAMES = (
    "..",
    ".",
    "a/b",
    "https://x.example/y",
    "a\\b",
    "a.ledger",
    "A" * 128,
    "A" * 129,
    "-a",
    "a\n",
    "\u0661",
)
PATHS = re.compile(r"[/\\:\s]|^\.")


class Manifests:
    """Files that claim to say what devices shall hold."""

    name = "manifests"

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
        self._public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def case(self, rng: Random) -> bytes:
        """Return a manifest, often signed, with some of it changed afterwards."""
        said: Any = _valid(rng)
        if rng.random() < 0.5:
            said["signature"] = self._signature(said)
        for _ in range(rng.choice((0, 1, 1, 2))):
            said = _changed(said, rng)
        text = deep(rng) if rng.random() < 0.02 else as_json(said)
        if rng.random() < 0.2:
            text = re.sub(
                ", ", lambda found: rng.choice((", ", ",\n", f', "serial": {rng.choice(INTEGERS)}, ')), text
            )
        data = text.encode("utf-8", "surrogatepass")
        return mutated_bytes(data, rng) if rng.random() < 0.2 else data

    def check(self, case: bytes) -> str:
        """Read the file; what is accepted is written, read again, kept as a record, and has the signature checked."""
        found = refusal(lambda: read_manifest(case, "x"))
        if isinstance(found, str):
            return found
        _require_sound(found)
        require(
            read_manifest(found.text().encode(), "x").text() == found.text(), "a manifest reads otherwise"
        )
        outcome = refusal(lambda: refuse_record(found, "x"))
        if outcome is None:
            _require_kept(found)
        try:
            check_signature(found, self._public, "x")
        except EdgetuneError:
            return "accepted, not signed" if outcome is None else "a record"
        return "accepted, signed"

    def _signature(self, said: dict[str, Any]) -> dict[str, str]:
        manifest = read_manifest(as_json(said).encode(), "x")
        return {"key": self._public, "value": self._private.sign(PURPOSE + manifest.payload).hex()}


def _require_sound(found: Manifest) -> None:
    require(1 <= found.serial < 1 << 53, "a serial number out of range")
    require(len(found.ledgers) <= MOST_LEDGERS, "too many ledgers")
    touched_named(found.touched)
    for one in found.ledgers:
        require(PATHS.search(one.name) is None and one.name.isascii(), f"a ledger named {one.name!r}")
        require(0 < one.bytes <= 1 << 50 and 0 <= one.round < 1 << 32, "a ledger's numbers out of range")


def _require_kept(found: Manifest) -> None:
    from dataclasses import replace

    record = replace(found, signed=found.as_json()).text().encode()
    require(len(record) <= LARGEST, f"a record of {len(record)} bytes")
    require(read_manifest(record, "x").signed == found.as_json(), "a record reads otherwise")


def _valid(rng: Random) -> dict[str, Any]:
    def stored() -> dict[str, Any]:
        return {"sha256": rng.randbytes(32).hex(), "bytes": rng.randrange(1, 1 << 40)}

    ledgers = [
        stored()
        | {
            "name": f"{number}.ledger",
            "digest": rng.randbytes(32).hex(),
            "method": rng.choice(("fedkseed", "lora", "")),
            "round": rng.randrange(100),
            "run": rng.choice(("", "federated-" + "c" * 64, "\u00e9" * 256)),
        }
        for number in range(rng.choice((0, 1, 1, 2, 64)))
    ]
    return {
        "format": FORMAT, "serial": rng.randrange(1, 100), "base": stored(), "base_digest": rng.randbytes(32).hex(),
        "ledgers": ledgers, "touched": rng.choice(("own", "F16", "Q8_0")), "result": stored(),
    }  # fmt: skip


def _changed(said: Any, rng: Random) -> Any:
    """Change a place that a reader looks at, more often than any."""
    if not isinstance(said, dict) or rng.random() < 0.3:
        return mutated_json(said, rng)
    changed: dict[str, Any] = json.loads(json.dumps(said)) if _plain(said) else dict(said)
    kind = rng.randrange(6)
    if kind == 0:
        changed["signed"] = rng.choice((said, _valid(rng), mutated_json(said, rng), any_value(rng)))
    elif kind == 1 and isinstance(changed.get("ledgers"), list) and changed["ledgers"]:
        one = rng.choice(changed["ledgers"])
        if isinstance(one, dict):
            key = rng.choice((*one, "name"))
            one[key] = rng.choice(NAMES) if key == "name" else any_value(rng)
    elif kind == 2:
        changed["serial"] = rng.choice((*INTEGERS, *FLOATS, True, 1.0))
    elif kind == 3:
        changed["signature"] = rng.choice((any_value(rng), {"key": "0" * 64, "value": "0" * 128}))
    elif kind == 4:
        changed["touched"] = rng.choice(("NVFP4", "Q4_K", "own\n", "OWN", "F32", "x" * 17))
    else:
        changed["ledgers"] = rng.choice(([], [{}] * 65, {}, any_value(rng)))
    return changed


def _plain(said: Any) -> bool:
    try:
        return len(json.dumps(said)) < 1 << 20
    except (ValueError, TypeError, RecursionError):
        return False
