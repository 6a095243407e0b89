"""Steps of 16-bit weights: the compiled kernel equals held sums of the reference, in any number of calls."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from edgetune.core.errors import ModelError
from edgetune.core.remainder import held, join, split
from edgetune.core.update import Projected
from edgetune.directions import Gaussian, Kind, Rademacher, Source, native
from edgetune.directions.kept import KeptSpace
from edgetune.directions.native import TensorDirections, Terms
from edgetune.directions.native.remainder import follow, follows
from edgetune.directions.space import BoundSpace

KEY = bytes(range(32))
SIGNS = TensorDirections(Rademacher(), KEY, "w")
NOTHING = Terms(Rademacher(), Projected.none())
NARROW = (torch.float16, torch.bfloat16)
needs_kernel = pytest.mark.skipif(
    native.library() is None, reason="no compiled kernel: no C compiler at install"
)
kinds = pytest.mark.parametrize("kind", [Rademacher(), Gaussian()], ids=str)
dtypes = pytest.mark.parametrize("dtype", NARROW, ids=str)


def steps(count: int = 6) -> Projected:
    sizes = np.array([1e-3, -1e-7, 3e-9, 2e-5, 0.3, -1e-12], np.float32)[:count]
    return Projected(np.arange(count) * 7**9, sizes)


def base_of(size: int) -> torch.Tensor:
    """Numbers of every size that either type tells from zero, zeros and both signs among them."""
    spread = torch.randn(size, generator=torch.Generator().manual_seed(size))
    powers = torch.arange(size).remainder(40).float().neg().exp2()
    return torch.where(torch.arange(size) % 17 == 3, torch.zeros(()), spread * powers)


def expected(kind: Kind, base: torch.Tensor, update: Projected, dtype: torch.dtype) -> torch.Tensor:
    x = held(base.float(), dtype)
    for seed, coefficient in zip(update.keys.tolist(), update.coefficients.tolist(), strict=True):
        z = kind.values(Source(KEY), "w", seed, 0, base.numel(), base.device)
        x = held(x + torch.tensor(coefficient) * z, dtype)
    return x


def empty(size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((size,), float("nan"), dtype=dtype), torch.full((size,), 99, dtype=torch.int16)


@needs_kernel
@kinds
@dtypes
@pytest.mark.parametrize("level", range(native.best_level() + 1))
def test_equal_bits(kind: Kind, dtype: torch.dtype, level: int) -> None:
    for size, wide in product((1, 31, 8192, 8193, 30_000), (torch.float32, *NARROW)):
        base, update = base_of(size).to(wide), steps()
        x = expected(kind, base, update, dtype)
        want, left = split(x, dtype)
        weight, remainder = empty(size, dtype)
        follow(
            TensorDirections(kind, KEY, "w"),
            weight,
            remainder,
            Terms(kind, update),
            base=base,
            level=level,
            threads=3,
        )
        assert torch.equal(weight.view(torch.int16), want.view(torch.int16)), (size, wide)
        assert torch.equal(remainder, left), (size, wide)


@needs_kernel
@kinds
@dtypes
@pytest.mark.parametrize("level", range(native.best_level() + 1))
def test_steps_one_by_one_are_the_steps_at_once(kind: Kind, dtype: torch.dtype, level: int) -> None:
    base, update = base_of(20_000), steps()
    whole, parts = empty(20_000, dtype), empty(20_000, dtype)
    directions = TensorDirections(kind, KEY, "w")
    follow(directions, *whole, Terms(kind, update), base=base, level=level)
    follow(directions, *parts, Terms(kind, Projected.none()), base=base, level=level)
    for at in range(len(update.keys)):
        one = Projected(update.keys[at : at + 1], update.coefficients[at : at + 1])
        follow(directions, *parts, Terms(kind, one), level=level, threads=1 + at % 3)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


@needs_kernel
@dtypes
def test_every_16_bit_number_is_read_and_written(dtype: torch.dtype) -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = patterns[
        torch.isfinite(patterns.view(dtype)) & (patterns != -(2**15))
    ].contiguous()  # -0 + 0 is 0
    weight = every.clone().view(dtype)
    remainder = torch.zeros_like(every)
    for level in range(native.best_level() + 1):
        follow(SIGNS, weight, remainder, NOTHING, level=level)
        assert torch.equal(weight.view(torch.int16), every)
        assert not remainder.any()
    large = torch.tensor([1e6, -1e6])
    follow(SIGNS, weight[:2], remainder[:2], NOTHING, base=large)
    assert torch.equal(weight[:2].float(), large.to(dtype).float())


@kinds
@dtypes
@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("space", [BoundSpace, KeptSpace])
def test_a_space_follows_steps_in_either_implementation(
    space: type[BoundSpace], kernel: str, kind: Kind, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_KERNEL", kernel)
    base = base_of(9_000).view(90, 100)
    weight, remainder = (one.view(90, 100) for one in empty(9_000, dtype))
    made = space(kind, KEY)
    made.follow(weight, remainder, steps(2), "w", base)
    made.follow(weight, remainder, Projected(steps().keys[2:], steps().coefficients[2:]), "w")
    assert torch.equal(join(weight, remainder).view(-1), expected(kind, base.view(-1), steps(), dtype))


@needs_kernel
def test_what_the_kernel_does_not_follow_is_left_to_the_reference() -> None:
    weight, wide = torch.zeros(4, dtype=torch.float16), torch.zeros(4)
    assert follows(Rademacher(), weight, wide)
    assert not follows(Rademacher(), wide, wide)
    assert not follows(Rademacher(), weight, wide.double())
    remainder = torch.zeros(4, dtype=torch.int16)
    with pytest.raises(RuntimeError, match="refused"):
        follow(SIGNS, weight, remainder, NOTHING, level=9)
    for other in (remainder[:3], remainder.int(), remainder.view(2, 2)):
        with pytest.raises(ModelError, match="remainders"):
            follow(SIGNS, weight, other, NOTHING)
