"""Fields of an event log as the types that their events declare; a log is a file that anyone may have written."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

LARGEST = 2**63 - 1
"""No count, size or seed of a run is greater."""

LARGEST_FLOAT = 1e200
"""Beyond this a figure's axis overflows; no loss or time of a run is greater, unless it is infinite."""

DEEPEST = 32
"""Levels of a configuration."""

Read = Callable[[Any], Any]


class FieldError(Exception):
    """A field is not of its type; the message says what it is."""


def reader(kind: Any) -> Read:
    """Return what reads values of an annotation: number, text, truth value, or a list, table or option of these.

    Numbers with a fraction may be NaN or infinite. Lone halves of characters in texts are replaced.

    Raises:
        TypeError: for an annotation that no event has.
    """
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    inner = [reader(one) for one in get_args(kind) if one is not types.NoneType]
    if get_origin(kind) in (Union, types.UnionType) and len(inner) == 1:
        return lambda value: None if value is None else inner[0](value)
    if get_origin(kind) is list:
        return lambda value: [inner[0](one) for one in _of(list, value)]
    if get_origin(kind) is dict:
        return lambda value: {inner[0](key): inner[1](one) for key, one in _of(dict, value).items()}
    raise TypeError(f"no reader for {kind}")


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise FieldError(f"{_named(value)} instead of a {'list' if kind is list else 'table'}")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise FieldError(f"{_named(value)} instead of a whole number")
    if not 0 <= value <= LARGEST:
        raise FieldError("a number out of range")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FieldError(f"{_named(value)} instead of a number")
    if abs(value) > LARGEST_FLOAT and not (isinstance(value, float) and math.isinf(value)):
        raise FieldError("a number out of range")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise FieldError(f"{_named(value)} instead of a text")
    return value.encode("utf-8", "replace").decode("utf-8")


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise FieldError(f"{_named(value)} instead of true or false")
    return value


def _anything(value: Any, level: int = 0) -> Any:
    if level > DEEPEST:
        raise FieldError(f"more than {DEEPEST} levels")
    if isinstance(value, dict):
        return {_text(key): _anything(one, level + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_anything(one, level + 1) for one in value]
    return _text(value) if isinstance(value, str) else value


def _named(value: Any) -> str:
    names = {dict: "a table", list: "a list", str: "a text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")


_SIMPLE: dict[Any, Read] = {
    int: _whole,
    float: _number,
    str: _text,
    bool: _truth,
    Any: _anything,
}
