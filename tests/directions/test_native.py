"""The compiled kernel equals the torch reference bit for bit, on every instruction set of this machine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgetune.core.errors import ConfigError
from edgetune.core.update import Projected
from edgetune.directions import CachedSource, Gaussian, Hadamard, Kind, Rademacher, native
from edgetune.directions.few import MEASURED, few_rows
from edgetune.directions.few import VARIABLE as ROWS
from edgetune.directions.kernel import VARIABLE, compiled_level, describe_kernel
from edgetune.directions.space import BoundSpace

KEY = bytes(range(32))
KINDS = [Rademacher(), Gaussian(), *map(Hadamard, (1, 2, 3, 20, 64, 300, 4096, 10_000))]
SIZES = (1, 31, 512, 8192, 8193, 50_001)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEVELS = range(native.best_level() + 1)
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


def replayed(
    kind: Kind,
    out: torch.Tensor,
    base: torch.Tensor,
    terms: list[tuple[int, float]],
    *,
    level: int | None = None,
    threads: int | None = None,
) -> None:
    kernel = native.TensorDirections(kind, KEY, "w")
    kernel.replay(out, base, native.Terms(kind, projected(terms)), level=level, threads=threads)


def added(
    out: torch.Tensor, base: torch.Tensor, seed: int, coefficient: float, threads: int | None = None
) -> None:
    native.TensorDirections(Rademacher(), KEY, "w").axpy(out, base, coefficient, seed, threads=threads)


@needs_kernel
@pytest.mark.parametrize("level", LEVELS, ids=native.LEVELS.__getitem__)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("replay", [False, True], ids=["axpy", "replay"])
def test_equal_bits(kind: Kind, level: int, replay: bool) -> None:
    source = CachedSource(KEY)
    for size in SIZES:
        for dtype in DTYPES:
            base = weights(size, dtype)
            expected, got = torch.empty_like(base), torch.full_like(base, float("nan"))
            terms = some_terms(kind)
            if replay:
                kind.replay(expected, base, terms, source, "w")
                replayed(kind, got, base, terms, level=level, threads=3)
            else:
                seed, value = terms[-1]
                kind.axpy(expected, base, value, source, "w", seed)
                native.TensorDirections(kind, KEY, "w").axpy(got, base, value, seed, level=level, threads=3)
            assert torch.equal(expected, got), (size, dtype)


@needs_kernel
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_narrow_base_and_a_wide_result(kind: Kind) -> None:
    base = weights(9000, torch.float16)
    expected, got = torch.empty(9000), torch.empty(9000)
    kind.replay(expected, base, some_terms(kind), CachedSource(KEY), "w")
    replayed(kind, got, base, some_terms(kind))
    assert torch.equal(expected, got)


@needs_kernel
def test_the_result_may_be_the_base() -> None:
    base = weights(100_000, torch.float32)
    out = torch.empty_like(base)
    added(out, base, 3, 1e-3, threads=1)
    added(base, base, 3, 1e-3, threads=4)
    assert torch.equal(out, base)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_every_half_value_survives_a_zero_step(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    out = torch.empty_like(every)
    added(out, every, 1, 0.0)
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
    added(got, base, 1, 1e-7)
    assert torch.equal(expected, got)


@needs_kernel
def test_what_the_kernel_does_not_know_goes_to_the_reference() -> None:
    base = weights(600, torch.float32).view(20, 30).T
    assert not native.serves(Rademacher(), base)
    out = torch.empty(30, 20)
    BoundSpace(Rademacher(), KEY).axpy(out, base, 0.5, "w", 1)
    assert torch.equal((out - base).abs(), (out - base).abs().clamp(0.49, 0.51))


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    assert compiled_level() is None
    assert describe_kernel() == "torch"
    monkeypatch.setenv(VARIABLE, "tourch")
    with pytest.raises(ConfigError, match="did you mean 'torch'"):
        compiled_level()


@needs_kernel
@pytest.mark.parametrize("best", LEVELS, ids=native.LEVELS.__getitem__)
def test_an_instruction_set_is_chosen_by_name_or_refused(best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "best_level", lambda: best)
    for level, name in enumerate(native.LEVELS):
        monkeypatch.setenv(VARIABLE, f"c-{name}")
        if level <= best:
            assert compiled_level() == level
            assert describe_kernel() == f"c ({name}, products of up to {MEASURED[name]} rows)"
            assert BoundSpace(Rademacher(), KEY).few == MEASURED[name]
        else:
            with pytest.raises(ConfigError, match=f"this machine has no {name}.*c-{native.LEVELS[best]}"):
                BoundSpace(Rademacher(), KEY)
    for wanted in ("c", "auto"):
        monkeypatch.setenv(VARIABLE, wanted)
        assert compiled_level() == best


def test_the_number_of_rows_is_pinned_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROWS, raising=False)
    assert [few_rows(level) for level in range(len(native.LEVELS))] == list(MEASURED.values())
    for pinned in ("0", "7", "1048576"):
        monkeypatch.setenv(ROWS, pinned)
        assert {few_rows(level) for level in (None, 0, 2)} == {int(pinned)}
    for wrong in ("", "-1", "1048577", "many", "2.5", "9" * 5000, "٣"):
        monkeypatch.setenv(ROWS, wrong)
        with pytest.raises(ConfigError, match="no number of rows"):
            few_rows(1)


def test_without_a_kernel_the_reference_runs_and_c_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert describe_kernel() == "torch"
    for wanted in ("c", "c-baseline"):
        monkeypatch.setenv(VARIABLE, wanted)
        with pytest.raises(ConfigError, match="not installed"):
            BoundSpace(Rademacher(), KEY)
