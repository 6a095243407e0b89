"""The compiled kernel equals the torch reference bit for bit, on every instruction set of this machine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgetune.core.errors import ConfigError
from edgetune.core.update import Projected
from edgetune.directions import CachedSource, Gaussian, Hadamard, Kind, Rademacher, native
from edgetune.directions.kernel import VARIABLE, compiled_wanted, describe_kernel
from edgetune.directions.space import BoundSpace

KEY = bytes(range(32))
KINDS = [Rademacher(), Gaussian(), *map(Hadamard, (1, 2, 3, 20, 64, 300, 4096, 10_000))]
SIZES = (1, 31, 512, 8192, 8193, 50_001)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
needs_kernel = pytest.mark.skipif(
    native.library() is None, reason="no compiled kernel: no C compiler at install"
)


def weights(size: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(size, generator=torch.Generator().manual_seed(size)) * 0.1).to(dtype)


def some_terms(kind: Kind, count: int = 5) -> list[tuple[int, float]]:
    size = kind.size if isinstance(kind, Hadamard) else 2**60
    return [((7**9 * index) % size, 0.01 * (index + 1)) for index in range(count)]


def projected(terms: list[tuple[int, float]]) -> Projected:
    return Projected(
        np.array([seed for seed, _ in terms]), np.array([value for _, value in terms], np.float32)
    )


@needs_kernel
@pytest.mark.parametrize("level", range(native.best_level() + 1))
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("replay", [False, True], ids=["axpy", "replay"])
def test_equal_bits(kind: Kind, level: int, replay: bool) -> None:
    source = CachedSource(KEY)
    for size in SIZES:
        for dtype in DTYPES:
            base = weights(size, dtype)
            expected, got = torch.empty_like(base), torch.full_like(base, float("nan"))
            terms = some_terms(kind) if replay else some_terms(kind)[-1:]
            if replay:
                kind.replay(expected, base, terms, source, "w")
            else:
                kind.axpy(expected, base, terms[0][1], source, "w", terms[0][0])
            native.run(kind, KEY, "w", got, base, projected(terms), replay=replay, level=level, threads=3)
            assert torch.equal(expected, got), (size, dtype)


@needs_kernel
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_narrow_base_and_a_wide_result(kind: Kind) -> None:
    base = weights(9000, torch.float16)
    expected, got = torch.empty(9000), torch.empty(9000)
    kind.replay(expected, base, some_terms(kind), CachedSource(KEY), "w")
    native.run(kind, KEY, "w", got, base, projected(some_terms(kind)), replay=True)
    assert torch.equal(expected, got)


@needs_kernel
def test_the_result_may_be_the_base() -> None:
    base = weights(100_000, torch.float32)
    out = torch.empty_like(base)
    native.run(Rademacher(), KEY, "w", out, base, projected([(3, 1e-3)]), replay=False, threads=1)
    native.run(Rademacher(), KEY, "w", base, base, projected([(3, 1e-3)]), replay=False, threads=4)
    assert torch.equal(out, base)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_every_half_value_survives_a_zero_step(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    out = torch.empty_like(every)
    native.run(Rademacher(), KEY, "w", out, every, projected([(1, 0.0)]), replay=False)
    finite = torch.isfinite(every) & (every != 0)
    assert torch.equal(out[finite].view(torch.int16), every[finite].view(torch.int16))
    assert torch.equal(out.isnan(), every.isnan())
    assert torch.equal(out.isinf(), every.isinf())


@needs_kernel
def test_halves_are_rounded_to_nearest_even() -> None:
    base = torch.linspace(-70_000, 70_000, 40_001)
    base = torch.cat([base, base * 1e-6, base * 1e-10])
    expected, got = torch.empty(len(base), dtype=torch.float16), torch.empty(len(base), dtype=torch.float16)
    Rademacher().axpy(expected, base, 1e-7, CachedSource(KEY), "w", 1)
    native.run(Rademacher(), KEY, "w", got, base, projected([(1, 1e-7)]), replay=False)
    assert torch.equal(expected, got)


@needs_kernel
def test_what_the_kernel_does_not_know_goes_to_the_reference() -> None:
    base = weights(600, torch.float32).view(20, 30).T
    assert not native.serves(Rademacher(), base)
    out = torch.empty(30, 20)
    BoundSpace(Rademacher(), KEY).axpy(out, base, 0.5, "w", 1)
    assert torch.equal((out - base).abs(), (out - base).abs().clamp(0.49, 0.51))
    with pytest.raises(RuntimeError, match="refused"):
        native.run(Rademacher(), KEY, "w", out, out, projected([(1, 0.5)]), replay=False, level=9)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    assert not compiled_wanted()
    assert describe_kernel() == "torch"
    monkeypatch.setenv(VARIABLE, "tourch")
    with pytest.raises(ConfigError, match="did you mean 'torch'"):
        compiled_wanted()


def test_without_a_kernel_the_reference_runs_and_c_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    assert describe_kernel() == "torch"
    monkeypatch.setenv(VARIABLE, "c")
    with pytest.raises(ConfigError, match="not installed"):
        BoundSpace(Rademacher(), KEY)
