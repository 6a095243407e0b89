"""Directions of rank one: products of signs, pure functions of (key, name, seed, shape), one transform for a pool."""

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

from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import CachedSource, Hadamard, RankOne, RankOnePool, Source, made_of
from edgetune.directions.draw import Fresh, Pool
from edgetune.directions.kept import KeptSpace
from edgetune.directions.native import best_level, library
from edgetune.directions.native.signs import CompiledSource
from edgetune.directions.rank_one import RankOneKind
from edgetune.directions.space import BoundSpace

KEY = pool_key(7)
CPU = torch.device("cpu")
KIND_LIST: list[RankOneKind] = [RankOne(), *map(RankOnePool, (1, 2, 6, 64, 1000))]
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
kinds = pytest.mark.parametrize("kind", KIND_LIST, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
SHAPES = [(0,), (3, 0), (1,), (5,), (700,), (1, 1), (37, 53), (64, 33), (2, 3, 40), ()]


def draw(kind: RankOneKind, shape: tuple[int, ...], seed: int = 0, name: str = "w") -> torch.Tensor:
    return kind.whole(Source(KEY), name, seed, shape, CPU)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@kinds
def test_matrices_and_vectors_equal_the_defining_formula_element_by_element(kind: RankOneKind) -> None:
    rows, columns, name = 77, 41, "läyer.w"
    seed = kind.size - 1 if isinstance(kind, RankOnePool) else 2**63 - 5
    places = itertools.product(range(rows), range(columns))
    if isinstance(kind, RankOnePool):
        matrix = [streams.rank_one_pool(KEY, name, seed, i, j, kind.size) for i, j in places]
        vector = [streams.rank_one_pool_vector(KEY, name, seed, j, kind.size) for j in range(1100)]
    else:
        matrix = [streams.rank_one(KEY, name, seed, i, j, rows) for i, j in places]
        vector = [streams.rademacher(KEY, name, seed, j) for j in range(1100)]
    assert draw(kind, (rows, columns), seed, name).flatten().tolist() == matrix
    assert draw(kind, (1100,), seed, name).tolist() == vector


def test_columns_begin_at_a_new_block_of_the_stream() -> None:
    u, v = RankOne().factors(Source(KEY), "w", 5, 513, 9, CPU)
    assert u.tolist() == [streams.rademacher(KEY, "w", 5, i) for i in range(513)]
    assert v.tolist() == [streams.rademacher(KEY, "w", 5, 1024 + j) for j in range(9)]


@kinds
def test_the_last_dimension_is_the_columns(kind: RankOneKind) -> None:
    assert torch.equal(draw(kind, (4, 6, 10)), draw(kind, (24, 10)).view(4, 6, 10))


@pytest.mark.skipif(library() is None, reason="the compiled kernel is not built here")
def test_signs_drawn_in_c_are_the_reference_s() -> None:
    drawn, reference = CompiledSource(KEY, best_level()), Source(KEY)
    for name, seed, start, count in [
        ("a", 0, 0, 1),
        ("a", 2**63 - 1, 0, 1537),
        ("b", 9, 5, 600),
        ("a", 3, 0, 0),
    ]:
        ours = drawn.signs(name, seed, start, count, CPU)
        assert ours.tolist() == reference.signs(name, seed, start, count, CPU).tolist()


@kinds
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_axpy_is_computed_in_float32_and_rounded_once(
    kind: RankOneKind, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    base = random(*shape[::-1]).permute(tuple(reversed(range(len(shape))))).to(dtype)
    expected = (base.float() + torch.tensor(1e-3) * draw(kind, shape)).to(dtype)
    for source in (Source(KEY), CachedSource(KEY)):
        out = torch.empty(shape, dtype=dtype)
        kind.axpy(out, base, 1e-3, source, "w", 0)
        assert torch.equal(out, expected)
    in_place = base.clone(memory_format=torch.contiguous_format)
    kind.axpy(in_place, in_place, 1e-3, Source(KEY), "w", 0)
    assert torch.equal(in_place, expected)


@kinds
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_replay_is_the_sum_of_all_terms(
    kind: RankOneKind, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    keys = range(min(kind.size, 40)) if isinstance(kind, RankOnePool) else [3, 2**62, 5, 8]
    rng = np.random.Generator(np.random.Philox(1))
    terms = [(key, float(np.float32(rng.normal() * 1e-3))) for key in keys]
    base = random(*shape, seed=2).to(dtype)
    total = base.double()
    for key, value in terms:
        total = total + value * draw(kind, shape, key).double()
    update = Projected(np.array(list(keys), np.int64), np.array([value for _, value in terms], np.float32))
    for out in (torch.empty_like(base), base.clone()):
        BoundSpace(kind, KEY).replay(out, base, update, "w")
        # one rounding of the sum to the tensor's type, and float32 rounding before it
        assert bool(
            ((out.double() - total).abs() <= torch.finfo(dtype).eps * total.abs() * 0.51 + 1e-6).all()
        )
    again = torch.empty_like(base)
    kind.replay(again, base, iter(terms), Source(KEY), "w")
    assert torch.equal(again, out)


@dtypes
def test_a_replay_in_groups_of_rows_is_the_replay_of_the_whole(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, update = (
        random(70, 6).to(dtype),
        Projected(np.array([1, 9], np.int64), np.array([1, -0.5], np.float32)),
    )
    for kind in (RankOne(), RankOnePool(64)):
        whole, parts = torch.empty_like(base), torch.empty_like(base)
        BoundSpace(kind, KEY).replay(whole, base, update, "w")
        for module in ("rank_one", "rank_one_pool"):
            monkeypatch.setattr(f"edgetune.directions.{module}.CHUNK", 50)
        BoundSpace(kind, KEY).replay(parts, base, update, "w")
        monkeypatch.undo()
        assert torch.equal(whole, parts)


def test_fresh_terms_are_the_additions_of_the_steps() -> None:
    base, space = random(37, 53), BoundSpace(RankOne(), KEY)
    update = Projected(np.array([4, 2, 7], np.int64), np.array([0.1, 0.3, -0.7], np.float32))
    step, whole = base.clone(), torch.empty_like(base)
    for key, value in zip(update.keys.tolist(), update.coefficients.tolist(), strict=True):
        space.axpy(step, step, value, "w", key)
    space.replay(whole, base, update, "w")
    assert torch.equal(step, whole)


@pytest.mark.parametrize("size", [2, 16, 32, 64])
def test_any_two_directions_of_a_pool_are_exactly_orthogonal_on_whole_tiles(size: int) -> None:
    kind = RankOnePool(size)
    tall, wide = kind.tile
    assert tall * wide == size
    for shape in ((3 * tall, 5 * wide), (2 * size,)):
        pool = torch.stack([draw(kind, shape, k).flatten() for k in range(size)])
        assert torch.equal(pool @ pool.T, math.prod(shape) * torch.eye(size))


@pytest.mark.parametrize("shape", [(40, 24), (37, 53), (5, 3)], ids=str)
def test_a_pool_s_sum_is_an_adapter_of_the_tile_s_width(shape: tuple[int, int]) -> None:
    """B A with A the tiled column signs, from the formula in docs/formats.md; ranks by an independent decomposition."""
    kind, source = RankOnePool(32), Source(KEY)
    (tall, wide), (rows, columns) = kind.tile, shape
    values = np.random.Generator(np.random.Philox(3)).normal(size=32).astype(np.float32)
    core = kind.core(Projected(np.arange(32, dtype=np.int64), values))
    d, e = source.signs("w", 0, 0, rows, CPU).float(), source.signs("w", 1, 0, columns, CPU).float()
    b = torch.stack([d[i] * core[i % tall] for i in range(rows)])
    a = torch.stack([torch.where(torch.arange(columns) % wide == q, e, 0.0) for q in range(wide)])
    summed = torch.zeros(shape)
    kind.replay(summed, summed, enumerate(values.tolist()), source, "w")
    torch.testing.assert_close(b @ a, summed, rtol=1e-6, atol=1e-6)
    assert int(torch.linalg.matrix_rank(summed.double(), rtol=1e-5)) <= wide


@pytest.mark.parametrize(
    ("size", "tile"), [(1, (1, 1)), (2, (2, 1)), (3, (2, 2)), (512, (32, 16)), (4096, (64, 64))]
)
def test_a_pool_is_padded_to_a_tile_of_powers_of_two(size: int, tile: tuple[int, int]) -> None:
    assert RankOnePool(size).tile == tile


@kinds
def test_moments_are_those_of_independent_signs(kind: RankOneKind) -> None:
    """Each direction alone: of an outer product a mean has the variance of a product of means."""
    z = draw(kind, (256, 384)).double()
    assert bool((z.abs() == 1).all())
    assert abs(float(z.mean())) < 4 * math.sqrt(1 / 256 / 384) * 4
    other = draw(kind, (256, 384), name="other").double()
    assert abs(float((z * other).mean())) < 16 * math.sqrt(1 / 256 / 384)
    if isinstance(kind, RankOne):
        inner = [float((z * draw(kind, (256, 384), seed)).sum()) for seed in range(1, 200)]
        assert np.mean(np.square(inner)) == pytest.approx(256 * 384, rel=0.75)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    for kind in KIND_LIST:
        draw(kind, (10, 10))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("case", GOLDEN["rank_one"], ids=lambda case: f"{case['kind']}-{case['shape']}")
def test_published_vectors_are_reproduced(case: dict[str, object]) -> None:
    kind = RankOnePool(case["size"]) if case["kind"] == "rank_one_pool" else RankOne()
    z = kind.whole(Source(pool_key(case["master_seed"])), case["name"], case["seed"], case["shape"], CPU)
    assert hashlib.sha256(z.numpy().astype("<f4").tobytes()).hexdigest() == case["sha256"]
    assert z.flatten()[:8].tolist() == case["first"]


def test_kept_directions_are_the_drawn_ones() -> None:
    kept, drawn = (make(RankOne(), KEY) for make in (KeptSpace, BoundSpace))
    base = random(11, 7)
    for seed, scale, name in itertools.product((5, 6), (1e-3, -1e-3), ("a", "b")):
        first, second = torch.empty_like(base), torch.empty_like(base)
        kept.axpy(first, base, scale, name, seed)
        drawn.axpy(second, base, scale, name, seed)
        assert torch.equal(first, second)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("shape", [(40, 24), (37, 53), (1000, 70)], ids=str)
def test_rows_of_a_pool_s_sum_have_the_bits_of_the_whole(
    shape: tuple[int, int], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_KERNEL", kernel)
    space, base = BoundSpace(RankOnePool(64), KEY, pooled=True), random(*shape)
    state = Projected(np.arange(64), np.linspace(-1, 1, 64, dtype=np.float32))
    whole, parts = torch.empty_like(base), torch.full_like(base, math.nan)
    space.read(whole, base, state, "w", (0, 0.0), 0)
    step = 3 * space.row_alignment
    for first in range(0, shape[0], step):
        part = parts[first : first + step]
        space.read(part, base[first : first + step], state, "w", (0, 0.0), first * shape[1])
    assert torch.equal(parts, whole)
    assert not torch.equal(whole, base)
    with pytest.raises((RuntimeError, ModelError)):  # perturbed ones are formed whole
        space.read(parts[8:], base[8:], state, "w", (1, 1.0), 8 * shape[1])


def test_what_a_space_says_of_them() -> None:
    pool, fresh = BoundSpace(RankOnePool(64), KEY), BoundSpace(RankOne(), KEY)
    assert (pool.pooled, pool.transforms, fresh.pooled, fresh.transforms) == (True, True, False, False)
    assert (pool.alignment, fresh.alignment, pool.replay_alignment) == (0, 0, 0)
    with pytest.raises(TypeError, match="no core"):
        fresh.core(Projected.none())
    with pytest.raises(ModelError, match="numbered"):
        pool.replay(random(2, 2), random(2, 2), Projected.of(64, 1.0), "w")


@pytest.mark.parametrize(
    "make",
    [
        lambda: RankOnePool(0),
        lambda: RankOnePool((1 << 20) + 1),
        lambda: Pool(RankOnePool(8), 16),
        lambda: Fresh(RankOnePool(8)),
    ],
)
def test_impossible_pools_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()


def test_a_kind_is_made_with_a_size_where_it_has_one() -> None:
    assert made_of(RankOnePool, 9) == RankOnePool(9)
    assert made_of(Hadamard, 9) == Hadamard(9)
    assert made_of(RankOne, 9) == RankOne()


@kinds
@pytest.mark.parametrize("shape", [(1, 1), (37, 53), (64, 33), (3, 300)], ids=str)
def test_two_factors_multiply_to_the_replayed_sum(kind: RankOneKind, shape: tuple[int, int]) -> None:
    terms = 1 if isinstance(kind, RankOnePool) and kind.size == 1 else 2
    # Coefficients that are sums of few powers of two: every order of the additions gives the same bits.
    update = Projected(np.arange(terms), np.array([0.75, -0.0625][:terms], np.float32))
    space = BoundSpace(kind, KEY, pooled=kind.sized)
    found = space.low_rank(update, "w", *shape)
    assert found is not None
    left, right = found
    expected = torch.zeros(shape)
    space.replay(expected, torch.zeros(shape), update, "w")
    assert torch.equal(left @ right, expected)
    assert left.shape[1] == right.shape[0] == (kind.tile[1] if isinstance(kind, RankOnePool) else terms)
    assert set(right.unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_directions_of_full_rank_have_no_factors() -> None:
    update = Projected(np.arange(4), np.ones(4, np.float32))
    assert BoundSpace(Hadamard(4), KEY).low_rank(update, "w", 8, 8) is None
