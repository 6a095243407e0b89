"""Directions are pure functions of (key, name, seed, element index)."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import streams
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.directions import KINDS, CachedSource, Gaussian, Hadamard, Kind, Rademacher, Source
from edgetune.directions.draw import Fresh, Pool
from edgetune.directions.gaussian import quantile_table
from edgetune.directions.hadamard import hadamard_column, walsh
from edgetune.directions.kept import KeptSpace
from edgetune.directions.space import BoundSpace

KEY = pool_key(7)
CPU = torch.device("cpu")
KIND_LIST: list[Kind] = [Rademacher(), Gaussian(), Hadamard(1), Hadamard(6), Hadamard(64), Hadamard(1000)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
examples = settings(derandomize=True, deadline=None, max_examples=60)
kinds = pytest.mark.parametrize("kind", KIND_LIST, ids=str)


def draw(kind: Kind, count: int, *, start: int = 0, seed: int = 0, name: str = "w") -> torch.Tensor:
    return kind.values(Source(KEY), name, seed, start, count, CPU)


@kinds
def test_values_equal_the_defining_formula_element_by_element(kind: Kind) -> None:
    seed, count = (kind.size - 1 if isinstance(kind, Hadamard) else 2**63 - 5), 1100
    if isinstance(kind, Hadamard):
        expected = [streams.hadamard(KEY, "läyer.w", seed, j, kind.size) for j in range(count)]
    else:
        formula = streams.gaussian if isinstance(kind, Gaussian) else streams.rademacher
        expected = [formula(KEY, "läyer.w", seed, j) for j in range(count)]
    assert torch.equal(draw(kind, count, seed=seed, name="läyer.w"), torch.tensor(expected).float())


@examples
@given(st.sampled_from(KIND_LIST), st.integers(0, 2100), st.integers(0, 1500), st.data())
def test_any_slice_equals_that_slice_of_the_whole(
    kind: Kind, start: int, count: int, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, kind.size - 1 if isinstance(kind, Hadamard) else 2**63 - 1))
    whole = draw(kind, 3600, seed=seed)
    assert torch.equal(draw(kind, count, start=start, seed=seed), whole[start : start + count])


@kinds
def test_the_order_of_drawing_does_not_matter(kind: Kind) -> None:
    source = CachedSource(KEY)
    asked = [(name, start) for name in ("a", "b") for start in (0, 512, 77)]
    forwards = [kind.values(source, name, 0, start, 300, CPU) for name, start in asked]
    backwards = [kind.values(Source(KEY), name, 0, start, 300, CPU) for name, start in reversed(asked)]
    assert all(map(torch.equal, forwards, reversed(backwards)))
    assert not torch.equal(forwards[0], forwards[3])


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    for kind in KIND_LIST:
        draw(kind, 100)
    assert torch.equal(torch.get_rng_state(), before)


@kinds
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_axpy_is_computed_in_float32_and_rounded_once(kind: Kind, dtype: torch.dtype) -> None:
    base = torch.randn(37, 53, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = (base.float() + torch.tensor(1e-3) * draw(kind, base.numel()).view(37, 53)).to(dtype)
    for source in (Source(KEY), CachedSource(KEY)):
        out = torch.empty_like(base)
        kind.axpy(out, base, 1e-3, source, "w", 0)
        assert torch.equal(out, expected)
    in_place = base.clone()
    kind.axpy(in_place, in_place, 1e-3, Source(KEY), "w", 0)
    assert torch.equal(in_place, expected)


@kinds
@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), (5,), (64, 33)], ids=str)
def test_tensors_of_any_size_and_a_transposed_base_are_served(kind: Kind, shape: tuple[int, ...]) -> None:
    base = torch.randn(*shape[::-1], generator=torch.Generator().manual_seed(1))
    base = base.permute(*reversed(range(base.ndim)))
    z, out = draw(kind, base.numel()).view(base.shape), torch.empty(base.shape)
    kind.axpy(out, base, 0.5, Source(KEY), "w", 0)
    assert torch.equal(out, base + 0.5 * z)
    kind.replay(out, base, [(0, 0.25)], Source(KEY), "w")
    assert torch.equal(out, base + 0.25 * z)


@kinds
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_replay_is_the_sum_of_all_terms(kind: Kind, dtype: torch.dtype) -> None:
    keys = range(min(kind.size, 40)) if isinstance(kind, Hadamard) else [3, 2**62, 5, 8]
    rng = np.random.Generator(np.random.Philox(1))
    terms = [(key, float(np.float32(rng.normal() * 1e-3))) for key in keys]
    base = torch.randn(700, 3, generator=torch.Generator().manual_seed(2)).to(dtype)
    total = base.double()
    for key, value in terms:
        total = total + value * draw(kind, base.numel(), seed=key).view(base.shape).double()
    for source in (Source(KEY), CachedSource(KEY), CachedSource(KEY)):
        out = torch.empty_like(base)
        kind.replay(out, base, iter(terms), source, "w")
        # one rounding of the sum to the tensor's type, and float32 rounding before it
        spacing = torch.finfo(dtype).eps * total.abs()
        assert bool(((out.double() - total).abs() <= spacing * 0.51 + 1e-6).all())


def test_replay_crosses_the_borders_of_chunks_and_of_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.zeros(64 * 16 * 2 + 5)
    for kind in (Rademacher(), Gaussian(), Hadamard(16)):
        whole = torch.empty_like(base)
        kind.replay(whole, base, [(1, 1.0), (2, -0.5)], Source(KEY), "w")
        expected = draw(kind, len(base), seed=1) - 0.5 * draw(kind, len(base), seed=2)
        monkeypatch.setattr("edgetune.directions.kind.CHUNK", 1000)
        parts = torch.empty_like(base)
        kind.replay(parts, base, [(1, 1.0), (2, -0.5)], Source(KEY), "w")
        monkeypatch.undo()
        assert torch.equal(whole, expected)
        assert torch.equal(parts, expected)


@pytest.mark.parametrize("size", [2, 16, 64])
def test_any_two_hadamard_directions_are_exactly_orthogonal_on_whole_blocks(size: int) -> None:
    kind, blocks = Hadamard(size), 3
    pool = torch.stack([draw(kind, blocks * size, seed=k) for k in range(size)])
    assert torch.equal(pool @ pool.T, blocks * size * torch.eye(size))


@pytest.mark.parametrize(("size", "padded"), [(1, 1), (2, 2), (3, 4), (1000, 1024), (4096, 4096)])
def test_a_pool_is_padded_to_a_power_of_two(size: int, padded: int) -> None:
    assert Hadamard(size).padded == padded


@pytest.mark.parametrize("size", [1, 2, 8, 128])
def test_walsh_multiplies_by_the_explicit_hadamard_matrix(size: int) -> None:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    blocks = torch.randint(-50, 50, (3, size), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(walsh(blocks), blocks @ matrix)
    assert torch.equal(torch.stack([hadamard_column(k, size, CPU) for k in range(size)]), matrix)


def test_the_quantile_table_is_a_symmetric_unit_normal_and_the_same_everywhere() -> None:
    table = quantile_table().double()
    assert torch.equal(table, -table.flip(0))
    assert float(table.sum()) == 0
    assert bool((table.diff() > 0).all())
    assert float((table**2).mean()) == pytest.approx(1, abs=2e-4)
    digest = hashlib.sha256(quantile_table().numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == GOLDEN["quantile_table"]


def test_gaussian_values_reach_as_far_as_the_outermost_quantile_and_no_farther() -> None:
    """Phi(x) is checked by the error function, which the table does not use."""
    greatest = float(quantile_table().max())
    assert greatest == pytest.approx(4.325, abs=5e-4)
    assert math.erfc(greatest / math.sqrt(2)) / 2 == pytest.approx(2**-17, rel=1e-5)
    assert float(quantile_table().min()) == -greatest


@kinds
def test_moments_are_those_of_independent_unit_values(kind: Kind) -> None:
    n = 1 << 15
    period = kind.padded if isinstance(kind, Hadamard) else 1
    z = draw(kind, n, seed=0).double()
    bound = 4 / math.sqrt(n)
    kurtosis = 3 if isinstance(kind, Gaussian) else 1
    assert abs(float(z.mean())) < bound
    assert float((z**2).mean()) == pytest.approx(1, abs=2 * bound if kurtosis == 3 else 0)
    assert float((z**4).mean()) == pytest.approx(kurtosis, abs=10 * bound if kurtosis == 3 else 0)
    for lag in (1, 2, period, 32, 512):
        assert abs(float((z[:-lag] * z[lag:]).mean())) < bound * math.sqrt(n / (n - lag))
    assert abs(float((z * draw(kind, n, seed=0, name="other").double()).mean())) < bound
    if not isinstance(kind, Hadamard):
        assert abs(float((z * draw(kind, n, seed=1).double()).mean())) < bound


@pytest.mark.parametrize("case", GOLDEN["directions"], ids=lambda case: f"{case['kind']}-{case['start']}")
def test_published_vectors_are_reproduced(case: dict[str, object]) -> None:
    kind = Hadamard(case["size"]) if case["kind"] == "hadamard" else KINDS[str(case["kind"])]()
    source = Source(pool_key(case["master_seed"]))
    z = kind.values(source, case["name"], case["seed"], case["start"], case["count"], CPU)
    assert hashlib.sha256(z.numpy().astype("<f4").tobytes()).hexdigest() == case["sha256"]
    assert z[:8].tolist() == case["first"]


def test_kept_directions_are_the_drawn_ones() -> None:
    kept, drawn = (make(Gaussian(), KEY) for make in (KeptSpace, BoundSpace))
    base = torch.randn(11, 7, generator=torch.Generator().manual_seed(0))
    for seed, scale, name in itertools.product((5, 6), (1e-3, -1e-3), ("a", "b")):
        first, second = torch.empty_like(base), torch.empty_like(base)
        kept.axpy(first, base, scale, name, seed)
        drawn.axpy(second, base, scale, name, seed)
        assert torch.equal(first, second)


def test_draws_are_pure_functions_of_seed_round_and_device() -> None:
    for directions in (Pool(Hadamard(64), 64), Fresh(Rademacher())):
        drawn = directions.draw(1, 2, 3, 500)
        assert drawn == directions.draw(1, 2, 3, 500)
        assert all(directions.draw(*other, 500) != drawn for other in [(0, 2, 3), (1, 3, 3), (1, 2, 4)])
        assert all(0 <= key < (directions.size or 2**63) for key in drawn)
        assert directions.draw(1, 2, 3, 400) == drawn[:400]


def test_a_fresh_direction_is_never_drawn_twice() -> None:
    keys = [key for r in range(20) for d in range(5) for key in Fresh(Rademacher()).draw(0, r, d, 50)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Hadamard(0),
        lambda: Hadamard((1 << 20) + 1),
        lambda: Pool(Rademacher(), 0),
        lambda: Pool(Hadamard(8), 16),
        lambda: Fresh(Hadamard(8)),
    ],
)
def test_impossible_pools_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()
