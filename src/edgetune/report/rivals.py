"""Points of other tools, measured elsewhere, that stand beside a run's own: a JSON file of names, bytes and KL."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.core.errors import DataError

LARGEST = 1_000_000
"""Bytes of the file."""


@dataclass(frozen=True, slots=True)
class Rival:
    """One file of another tool.

    Args:
        name: how people know it.
        size_bytes: of the file.
        kl: mean KL to the same model before compression, nats, above 0.
    """

    name: str
    size_bytes: int
    kl: float


def read_rivals(path: Path) -> tuple[Rival, ...]:
    """Read `[{"name": "Q4_K + imatrix", "bytes": 1100000, "kl": 4.5e-4}, ...]`; other keys are left out.

    Raises:
        DataError: the file cannot be read, or one of them has no name, size or KL.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"a file of more than {LARGEST:,} bytes", where=path)
        listed = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            "cannot read the rivals", where=path, hint='[{"name": ..., "bytes": ..., "kl": ...}]'
        ) from error
    if not isinstance(listed, list):
        raise DataError("the rivals are no list", where=path, hint='[{"name": ..., "bytes": ..., "kl": ...}]')
    return tuple(_rival(one, f"{path}, number {number}") for number, one in enumerate(listed, start=1))


def _rival(one: Any, where: str) -> Rival:
    said = one if isinstance(one, dict) else {}
    name: Any = said.get("name")
    size: Any = said.get("bytes")
    kl: Any = said.get("kl")
    if not isinstance(name, str) or not _positive(size) or not _positive(kl):
        raise DataError("a rival has a name, bytes and a kl, both above 0", where=where)
    return Rival(name, int(size), float(kl))


def _positive(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 < value < 1e18
