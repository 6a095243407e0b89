"""A 16-bit weight and the remainder of its rounding: four bytes that lose no step a float32 weight would keep."""

from __future__ import annotations

import torch

DIGITS = {torch.float16: 10, torch.bfloat16: 7}
"""Stored bits of a significand."""
LEAST = {torch.float16: -14, torch.bfloat16: -100}
"""Exponent below which a weight's last place gets no smaller: float16's own, and far below any weight in bfloat16."""
STEPS = 15
"""A remainder counts 2^-15 of its weight's last place: at most half a last place, so 2^14 of them."""


def narrow(dtype: torch.dtype) -> bool:
    """Say whether weights of a type have remainders."""
    return dtype in DIGITS


def held(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what a weight and its remainder hold of a number.

        held(x) = w + r u,   w = x rounded to the type,   r = (x - w) / u rounded to a whole number

    u is 2^-15 of w's last place: bfloat16 holds 23 binary digits, float16 all 24 of a float32 number down to 2^-15
    and multiples of 2^-39 below.

    Args:
        x: float32 [...].
        dtype: float16 or bfloat16.

    Returns:
        Float32 [...].
    """
    weight = x.to(dtype).float()
    unit = _unit(weight, dtype)
    return weight + ((x - weight) / unit).round() * unit


def split(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight and the remainder, int16, of a number that is held; `join` is the way back."""
    weight = x.to(dtype)
    wide = weight.float()
    return weight, ((x - wide) / _unit(wide, dtype)).round().to(torch.int16)


def join(weight: torch.Tensor, remainder: torch.Tensor) -> torch.Tensor:
    """Return the number that a weight and its remainder hold, float32 [...], exact."""
    wide = weight.float()
    return wide + remainder.float() * _unit(wide, weight.dtype)


def _unit(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    least = (127 + LEAST[dtype]) << 23
    exponent = (weight.view(torch.int32) & 0x7F800000).clamp(min=least)
    return (exponent - ((DIGITS[dtype] + STEPS) << 23)).view(torch.float32)
