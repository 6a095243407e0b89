"""What a ledger must be before anything is computed from it: a digest that fits does not make its contents sensible."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from edgetune.core.update import FLOATS, within

LARGEST_POOL = 1 << 20
"""Directions of a pool at most."""
LONGEST_NUMBER = 10
"""Digits of the largest unsigned 32-bit number."""


class MalformedError(ValueError):
    """A field is not what the format says; the reader adds the file's name."""


def require(condition: bool, sentence: str) -> None:
    """Refuse what the condition rules out.

    Raises:
        MalformedError: with the sentence.
    """
    if not condition:
        raise MalformedError(sentence)


def parsed(header: Mapping[str, str], field: str) -> Any:
    """Return the value of a JSON field.

    Raises:
        MalformedError: if the field is missing, not JSON, or nested too deeply.
    """
    require(field in header, f"the header lacks {field!r}")
    try:
        return json.loads(header[field])
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{field!r} is not JSON") from error


def text(header: Mapping[str, str], field: str, pattern: str) -> str:
    """Return a field of a given form (a regular expression over the whole text).

    Raises:
        MalformedError: if it is missing or of another form.
    """
    found = header.get(field)
    require(found is not None and re.fullmatch(pattern, found) is not None, f"{field!r} is malformed")
    return str(found)


def unsigned(header: Mapping[str, str], field: str) -> int:
    """Return an unsigned 32-bit number written in decimal digits.

    Raises:
        MalformedError: if it is none.
    """
    number = int(text(header, field, rf"[0-9]{{1,{LONGEST_NUMBER}}}"))
    require(number < 1 << 32, f"{field!r} is {number}")
    return number


def is_unsigned(value: object, bound: int) -> bool:
    """Say whether a JSON value is a whole number in [0, bound)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < bound


def check_directions(spec: Any) -> dict[str, Any]:
    """Check what a ledger says of its directions.

    Returns:
        The fields `kind`, `size`, `key_id` and `seed`.

    Raises:
        MalformedError: naming the field.
    """
    require(isinstance(spec, dict), "'directions' is no table")
    require(set(spec) == {"kind", "size", "key_id", "seed"}, "'directions' has other fields than it should")
    require(isinstance(spec["kind"], str) and len(spec["kind"]) < 64, "the kind of direction is no name")
    require(is_unsigned(spec["size"], LARGEST_POOL + 1), "the size of the pool is out of range")
    key = spec["key_id"]
    require(isinstance(key, str) and re.fullmatch("[0-9a-f]{16}", key) is not None, "'key_id' is malformed")
    require(
        spec["seed"] is None or is_unsigned(spec["seed"], 1 << 32),
        "the seed of the directions is out of range",
    )
    return dict(spec)


def check_projected(tensors: Mapping[str, torch.Tensor], size: int) -> None:
    """Check the coefficients of a pool (`size` > 0) or of fresh directions.

    Raises:
        MalformedError: for another name, type, shape or number of tensors, a negative key, or a coefficient that is
            NaN, infinite or absurd. A key may occur again: momentum moves a direction in two intervals.
    """
    names = {"coefficients"} if size else {"keys", "coefficients"}
    require(set(tensors) == names, f"a ledger of these directions holds {' and '.join(sorted(names))}")
    coefficients = tensors["coefficients"]
    require(
        coefficients.dtype == torch.float32 and coefficients.ndim == 1,
        "the coefficients are no float32 vector",
    )
    require(within(coefficients), "a coefficient is NaN, infinite or beyond any use")
    if size:
        require(len(coefficients) == size, f"{len(coefficients)} coefficients for a pool of {size}")
        return
    keys = tensors["keys"]
    require(
        keys.dtype == torch.int64 and keys.shape == coefficients.shape,
        "the keys are no int64 vector of that length",
    )
    require(not len(keys) or int(keys.min()) >= 0, "a key is negative")


def check_dense(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check the tensors of an adapter.

    Raises:
        MalformedError: if there are none, or one has a type that no adapter has, or is NaN, infinite or absurd.
    """
    require(bool(tensors), "the ledger holds no tensor")
    for name, tensor in tensors.items():
        require(tensor.dtype in FLOATS, f"{name} has the type {tensor.dtype}")
        require(within(tensor), f"{name} is NaN, infinite or beyond any use")


def check_adapter(adapter: Any) -> dict[str, Any] | None:
    """Check an adapter's configuration as far as it decides sizes; None stands for no adapter.

    Raises:
        MalformedError: naming the setting.
    """
    if adapter is None:
        return None
    require(isinstance(adapter, dict), "'adapter' is no table")
    for setting, least in (("r", 1), ("num_virtual_tokens", 1), ("reduction", 1), ("seed", 0)):
        value = adapter.get(setting)
        require(
            value is None or (is_unsigned(value, 1 << 32) and value >= least),
            f"the adapter's {setting} is {value!r}",
        )
    names = adapter.get("tensors")
    require(
        names is None
        or (isinstance(names, list) and bool(names) and all(isinstance(one, str) for one in names)),
        "the adapter's tensors are no list of names",
    )
    for setting in ("lora_alpha", "initial_scale"):
        value = adapter.get(setting)
        real = isinstance(value, int | float) and not isinstance(value, bool)
        require(
            value is None or (real and math.isfinite(value) and value >= 0),
            f"the adapter's {setting} is {value!r}",
        )
    return dict(adapter)


def check_extra(extra: Any) -> dict[str, str]:
    """Check that further entries are texts by name.

    Raises:
        MalformedError: if they are not.
    """
    texts = isinstance(extra, dict) and all(isinstance(value, str) for value in extra.values())
    require(texts, "'extra' is no table of texts")
    return dict(extra)
