"""What a fuzz target is, and how cases are mutated."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol, TypeVar

from edgetune.core.errors import EdgetuneError

T = TypeVar("T")
LONGEST_LINE = 3000
"""Characters of an error's text; a terminal must not be filled by hostile input."""


class Target(Protocol):
    """One parser under test."""

    name: str

    def case(self, rng: Random) -> bytes:
        """Return one case: a valid input with some of its structure changed."""
        ...

    def check(self, case: bytes) -> str:
        """Run one case and name its outcome.

        Raises:
            AssertionError: if something was accepted that must not be.
            Exception: whatever is no `EdgetuneError` escapes and is a failure.
        """
        ...


def refusal(work: Callable[[], T]) -> T | str:
    """Return what the work gives, or the name of the typed error that it ends in.

    Raises:
        AssertionError: if the error's text is too long to read.
    """
    try:
        return work()
    except EdgetuneError as error:
        require(len(str(error)) < LONGEST_LINE, f"an error of {len(str(error))} characters")
        return type(error).__name__


def require(condition: bool, sentence: str) -> None:
    """Fail a case."""
    if not condition:
        raise AssertionError(sentence)


INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    31,
    32,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
)
FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    1e-30,
    1e18,
    1.0000001e18,
    3e38,
    float("inf"),
    float("-inf"),
    float("nan"),
)
TEXTS = (
    "",
    " ",
    "a",
    "A" * 300,
    "é",
    "\u0000",
    "\ud800",
    "../x",
    "x" * 70_000,
    "٣",
    "NaN",
    "1e999",
    "null",
    "[]",
    "\n",
)


def mutated_bytes(data: bytes, rng: Random) -> bytes:
    """Flip, cut, repeat, insert or overwrite some bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 8, 100)))
        elif kind == 3:
            del out[at : at + rng.choice((1, 2, 4, 8, 64))]
        elif kind == 4:
            number = rng.choice(INTEGERS)
            out[at : at + 8] = struct.pack("<q", max(-(2**63), min(2**63 - 1, number)))[
                : rng.choice((1, 2, 4, 8))
            ]
        else:
            out[at:at] = out[max(0, at - 16) : at]
    return bytes(out)


def any_value(rng: Random, depth: int = 0) -> Any:
    """Return a value of any JSON type, hostile ones among them."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return rng.choice(INTEGERS)
    if kind == 1:
        return rng.choice(FLOATS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.choice((True, False, None))
    if kind == 4:
        return 10 ** rng.choice((20, 400, 5000)) - 1
    if kind == 5:
        return rng.choice(("hadamard", "rademacher", "gaussian", "mezo", "float32", "Q4_0", "a"))
    if kind == 6:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {str(any_key(rng)): any_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def any_key(rng: Random) -> str:
    """Return a name."""
    return str(rng.choice(("a", "kind", "size", "seed", "r", "", "x" * 100, "model", "name", "é")))


def mutated_json(value: Any, rng: Random) -> Any:
    """Change one place of a JSON value: replace, drop, add or nest."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        changed = dict(value)
        kind = rng.randrange(5)
        if kind == 0:
            del changed[key]
        elif kind == 1:
            changed[any_key(rng)] = any_value(rng)
        elif kind == 2:
            changed[key] = mutated_json(value[key], rng)
        else:
            changed[key] = any_value(rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], mutated_json(value[at], rng), *value[at + 1 :]]
    return any_value(rng)


def deep(rng: Random) -> str:
    """Return text that is nested too deeply for a recursive reader."""
    depth = rng.choice((50, 1000, 20_000))
    return rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth))


def as_json(value: Any) -> str:
    """Write JSON as hostile writers do: NaN, numbers of any length, lone surrogates."""
    if isinstance(value, bool) or value is None or isinstance(value, float | str):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**4000 else "9" * 5000
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(str(key))}: {as_json(item)}" for key, item in value.items()) + "}"
        )
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(as_json, value)) + "]"
    return json.dumps(str(value))
