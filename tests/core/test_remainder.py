"""A 16-bit weight and its remainder hold a number to 2^-15 of the last place: exact arithmetic as the oracle."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.remainder import DIGITS, held, join, narrow, split

LEAST = {torch.float16: -14, torch.bfloat16: -100}
LARGEST = {torch.float16: 65000.0, torch.bfloat16: 1e30}
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
numbers = st.floats(-(2.0**40), 2.0**40, width=32) | st.floats(-(2.0**-10), 2.0**-10, width=32)


def exact(x: float, dtype: torch.dtype) -> Fraction:
    """Round to the type, and what is left to whole units, in fractions."""
    weight = Fraction(float(torch.tensor(x).to(dtype)))
    exponent = math.frexp(float(weight))[1] - 1 if weight else LEAST[dtype]
    unit = Fraction(2) ** (max(exponent, LEAST[dtype]) - DIGITS[dtype] - 15)
    return weight + round((Fraction(x) - weight) / unit) * unit  # round() takes halves to even


@dtypes
@settings(derandomize=True, deadline=None, max_examples=400)
@given(values=st.lists(numbers, min_size=1, max_size=20))
def test_a_number_is_held_to_a_fraction_of_the_last_place(dtype: torch.dtype, values: list[float]) -> None:
    x = torch.tensor([max(-LARGEST[dtype], min(LARGEST[dtype], value)) for value in values])
    kept = held(x, dtype)
    assert [Fraction(one) for one in kept.tolist()] == [exact(one, dtype) for one in x.tolist()]
    weight, remainder = split(kept, dtype)
    assert (weight.dtype, remainder.dtype) == (dtype, torch.int16)
    assert torch.equal(weight, kept.to(dtype))
    assert torch.equal(join(weight, remainder), kept)
    assert torch.equal(held(kept, dtype), kept)


@dtypes
def test_a_weight_without_a_remainder_is_itself(dtype: torch.dtype) -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = patterns[torch.isfinite(patterns)]
    weight, remainder = split(held(every.float(), dtype), dtype)
    assert torch.equal(weight, every)
    assert not remainder.any()


def test_remainders_reach_half_a_last_place_on_either_side() -> None:
    step = 2.0**-7
    for sign in (1.0, -1.0):
        x = torch.tensor([sign * (1 + step / 2), sign * (1 + 3 * step / 2)])
        weight, remainder = split(held(x, torch.bfloat16), torch.bfloat16)
        assert weight.tolist() == [sign, sign * (1 + 2 * step)], "a half goes to the even neighbour"
        assert remainder.tolist() == [sign * 2**14, -sign * 2**14]


def test_only_narrow_types_have_remainders() -> None:
    assert [narrow(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32)] == [True, True, False]
