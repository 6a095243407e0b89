"""Sizes as people write them."""

from __future__ import annotations

import re
from decimal import Decimal

from edgetune.core.errors import ConfigError

FORMS = "2GB, 1.5G, 512MiB or 800000000"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_BITS = re.compile(r"(\d{1,2}(?:\.\d{1,9})?)\s*bpw", re.IGNORECASE | re.ASCII)
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*(?:([kmgt]?)b?|([kmgt])ib)", re.IGNORECASE | re.ASCII)


def parse_size(text: str, where: str | None = None) -> int:
    """Read a number of bytes: a number, and a unit if any.

    MB and M are 10^6 bytes, MiB is 2^20; capital letters or not. Where people mean either by G, the smaller one is the
    bound that nobody is surprised by.

    Args:
        text: what was typed.
        where: the option, for errors.

    Returns:
        Bytes, at least 1.

    Raises:
        ConfigError: if it is no size, or none above zero.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"cannot read the size {text!r}", where=where, hint=f"write it like {FORMS}")
    number, decimal, binary = found.groups()
    size = int(Decimal(number) * (_BINARY[binary.lower()] if binary else _UNITS[decimal.lower()]))
    if size < 1:
        raise ConfigError(f"a size of {text!r} leaves nothing", where=where, hint=f"write it like {FORMS}")
    return size


def parse_budget(text: str, weights: int, where: str | None = None) -> int:
    """Read the size of a file: bytes as in `parse_size`, or bits a weight such as 4.5bpw.

    Args:
        text: what was typed.
        weights: of the model.
        where: the option, for errors.

    Returns:
        Bytes, at least 1.

    Raises:
        ConfigError: if it is neither.
    """
    found = _BITS.fullmatch(text.strip())
    if found is None:
        return parse_size(text, where)
    size = int(Decimal(found.group(1)) * weights / 8)
    if size < 1:
        raise ConfigError(f"a size of {text!r} leaves nothing", where=where, hint="write it like 4.5bpw")
    return size
