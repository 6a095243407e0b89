"""What a file shall hold, or holds: its base and the ledgers on it by digest, for whoever manages a fleet."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgetune.core.errors import ModelError
from edgetune.core.ledger import DIGEST, Ledger
from edgetune.core.quantised import GRIDS
from edgetune.installed.base import OWN, Touched

FORMAT = "edgetune-update-1"
LARGEST = 1 << 20
"""Bytes of a manifest."""
MOST_LEDGERS = 64
LARGEST_FILE = 1 << 50
"""Bytes that anything may claim to have."""
NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
"""A file's name that is no path and no address."""
AT_ONCE = 1 << 20
HALF = "F16"
SIGNATURE = "signature"


@dataclass(frozen=True, slots=True)
class Stored:
    """A file by its bytes.

    Args:
        sha256: of the whole file, hexadecimal.
        bytes: its size.
    """

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A ledger of a stack.

    Args:
        name: its file's name, beside the manifest.
        sha256: of the whole file.
        bytes: its size.
        digest: of its contents, as the file made with it records.
        method: what made it.
        round: completed rounds.
        run: the fingerprint of the run; rounds of one run have an order.
    """

    name: str
    sha256: str
    bytes: int
    digest: str
    method: str
    round: int
    run: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A stack of ledgers on a base, and what comes out.

    Args:
        serial: at least 1; a device goes from lower numbers to higher ones.
        base: the untouched file.
        base_digest: what the ledgers call it.
        ledgers: the lowest first; none is the base itself.
        touched: how matrices in blocks are stored that they change: `own`, `F16` or a grid.
        result: the file that comes out, the same on every machine.
        signed: the manifest that the lowest ledgers came with, as it was signed; None for a stack of one's own.
        signature: by what key it was signed and how, hexadecimal; None for none.
    """

    serial: int
    base: Stored
    base_digest: str
    ledgers: tuple[Entry, ...]
    touched: str
    result: Stored
    signed: dict[str, Any] | None = None
    signature: dict[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; what is None is left out."""
        found = {"format": FORMAT} | asdict(self) | {"ledgers": [asdict(one) for one in self.ledgers]}
        return {key: value for key, value in found.items() if value is not None}

    @property
    def payload(self) -> bytes:
        """What a signature is over: everything but itself, as JSON with sorted keys and no spaces."""
        return canonical({key: value for key, value in self.as_json().items() if key != SIGNATURE})

    def text(self) -> str:
        """Return the manifest as a file holds it."""
        return json.dumps(self.as_json(), indent=2, sort_keys=True) + "\n"

    def with_signature(self, key: str, value: str) -> Manifest:
        """Return the manifest, signed."""
        return replace(self, signature={"key": key, "value": value})


def canonical(value: Mapping[str, Any]) -> bytes:
    """Return JSON bytes that are equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read_manifest(data: bytes, where: str | Path) -> Manifest:
    """Read a manifest that anyone may have written.

    Args:
        data: its bytes.
        where: where it is from, for errors.

    Raises:
        ModelError: too large, not JSON, of another format, or a field that is missing, unknown or out of range.
    """
    try:
        if len(data) > LARGEST:
            raise ValueError(f"{len(data)} bytes are too many")
        return _manifest(json.loads(data), True)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"not a manifest of updates: {error}", where=where, hint="get it again") from error


def _manifest(said: Any, whole: bool) -> Manifest:
    known = {"format", "serial", "base", "base_digest", "ledgers", "touched", "result", "signed", SIGNATURE}
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    if extra := set(said) - known:
        raise ValueError(f"the field {min(extra)[:40]!r} is unknown")
    ledgers = said["ledgers"]
    if not isinstance(ledgers, list) or len(ledgers) > MOST_LEDGERS:
        raise ValueError(f"'ledgers' is no list of at most {MOST_LEDGERS}")
    signed, signature = said.get("signed"), said.get(SIGNATURE)
    if signed is not None:
        if not whole:
            raise ValueError("a signed manifest holds another one")
        _manifest(signed, False)
    if signature is not None:
        signature = {
            "key": _text(signature, "key", DIGEST),
            "value": _text(signature, "value", "[0-9a-f]{128}"),
        }
    touched = _text(said, "touched", "[A-Za-z0-9_]{1,16}")
    touched_named(touched)
    return Manifest(
        serial=_number(said, "serial", 1, 1 << 53),
        base=_stored(said["base"]),
        base_digest=_text(said, "base_digest", DIGEST),
        ledgers=tuple(_entry(one) for one in ledgers),
        touched=touched,
        result=_stored(said["result"]),
        signed=signed,
        signature=signature,
    )


def _stored(said: Any) -> Stored:
    return Stored(_text(said, "sha256", DIGEST), _number(said, "bytes", 1, LARGEST_FILE))


def _entry(said: Any) -> Entry:
    return Entry(
        _text(said, "name", NAME),
        _text(said, "sha256", DIGEST),
        _number(said, "bytes", 1, LARGEST_FILE),
        _text(said, "digest", DIGEST),
        _text(said, "method", "[a-z0-9_]{0,64}"),
        _number(said, "round", 0, 1 << 32),
        _text(said, "run", ".{0,256}"),
    )


def _text(said: Any, key: str, pattern: str) -> str:
    found = said[key]
    if not isinstance(found, str) or re.fullmatch(pattern, found) is None:
        raise ValueError(f"{key!r} is malformed")
    return found


def _number(said: Any, key: str, least: int, end: int) -> int:
    found = said[key]
    if type(found) is not int or not least <= found < end:
        raise ValueError(f"{key!r} is no number from {least} on")
    return found


def touched_named(name: str) -> Touched:
    """Return how changed matrices are stored, by its name in a manifest or on a command line.

    Raises:
        ValueError: for an unknown name.
    """
    if name == "own":
        return OWN
    if name == HALF:
        return Touched(half=True)
    if name not in GRIDS or GRIDS[name].has_unit:
        raise ValueError(
            f"no way to store changed matrices is called {name[:20]!r}: own, F16 or a grid such as Q8_0"
        )
    return Touched(GRIDS[name])


def stored_file(path: Path) -> Stored:
    """Return a file's digest and size.

    Raises:
        ModelError: if it cannot be read.
    Cost: reads it once.
    """
    digest, size = sha256(), 0
    try:
        with path.open("rb") as file:
            while part := file.read(AT_ONCE):
                digest.update(part)
                size += len(part)
    except OSError as error:
        raise ModelError(f"cannot read this file: {error.strerror}", where=path) from error
    return Stored(digest.hexdigest(), size)


def entry_of(path: Path, ledger: Ledger) -> Entry:
    """Return how a manifest names a ledger.

    Raises:
        ModelError: if its file's name is none that a manifest holds.
    """
    if re.fullmatch(NAME, path.name) is None:
        raise ModelError(
            "a manifest names ledgers by letters, digits, dot, dash and underscore",
            where=path,
            hint="rename the file",
        )
    stored = stored_file(path)
    return Entry(
        path.name, stored.sha256, stored.bytes, ledger.digest, ledger.method, ledger.round, ledger.fingerprint
    )
