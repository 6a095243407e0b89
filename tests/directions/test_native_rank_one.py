"""Sums of rank one in the compiled kernel equal the torch reference bit for bit, on every instruction set here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgetune.core.errors import ModelError
from edgetune.core.quantised import GRIDS
from edgetune.core.update import Projected
from edgetune.directions import CachedSource, RankOne, RankOnePool, native
from edgetune.directions.native.rank_one import LARGE, RankedTerms, RankOneTensor, ranks
from edgetune.directions.rank_one import RankOneKind
from edgetune.directions.space import BoundSpace
from edgetune.federation.residency import pack_tensor

KEY = bytes(range(32))
KINDS: list[RankOneKind] = [RankOne(), *map(RankOnePool, (1, 2, 6, 64, 1000, 20_000))]
SHAPES = [
    (0,),
    (3, 0),
    (),
    (1,),
    (700,),
    (9000,),
    (1, 1),
    (37, 53),
    (64, 33),
    (2, 3, 40),
    (600, 130),
    (70, 1100),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEVELS = range(native.best_level() + 1)
SOURCE = CachedSource(KEY)
pytestmark = pytest.mark.skipif(
    native.library() is None, reason="no compiled kernel: no C compiler at install"
)
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)
levels = pytest.mark.parametrize("level", LEVELS, ids=native.LEVELS.__getitem__)


def weights(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)


def update(kind: RankOneKind, count: int) -> Projected:
    keys = np.arange(count, dtype=np.int64) * 7919 % (kind.size if isinstance(kind, RankOnePool) else 2**40)
    return Projected(keys, np.random.Generator(np.random.Philox(1)).normal(size=count).astype(np.float32))


def reference(kind: RankOneKind, out: torch.Tensor, base: torch.Tensor, terms: Projected) -> torch.Tensor:
    pairs = zip(terms.keys.tolist(), terms.coefficients.tolist(), strict=True)
    kind.replay(out, base, pairs, SOURCE, "w")
    return out


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


@kinds
@levels
@pytest.mark.parametrize("count", [0, 1, 2, 5, 130])
def test_replays_have_equal_bits(kind: RankOneKind, level: int, count: int) -> None:
    terms, kernel = update(kind, count), RankOneTensor(kind, KEY, "w")
    for shape in SHAPES:
        for dtype in DTYPES:
            base = weights(shape, dtype)
            expected = reference(kind, torch.empty_like(base), base, terms)
            for threads in (1, 3):
                got = torch.full_like(base, float("nan"))
                kernel.replay(got, base, RankedTerms(kind, terms), level=level, threads=threads)
                assert torch.equal(bits(got), bits(expected)), (shape, dtype, threads)
            kernel.replay(base, base, RankedTerms(kind, terms), level=level)
            assert torch.equal(bits(base), bits(expected)), (shape, dtype)


@kinds
@levels
@pytest.mark.parametrize("coefficient", [0.37, 0.0, 1e300])
def test_steps_have_equal_bits(kind: RankOneKind, level: int, coefficient: float) -> None:
    seed = kind.size - 1 if isinstance(kind, RankOnePool) else 2**63 - 5
    for shape in SHAPES:
        for dtype in DTYPES:
            base = weights(shape, dtype)
            base.view(-1)[::3] = -0.0
            expected, got = torch.empty_like(base), torch.empty_like(base)
            kind.axpy(expected, base, coefficient, SOURCE, "w", seed)
            RankOneTensor(kind, KEY, "w").axpy(got, base, coefficient, seed, level=level, threads=3)
            assert torch.equal(bits(got), bits(expected)), (shape, dtype)


@kinds
@levels
@pytest.mark.parametrize("grid", ["Q8_0", "Q4_0", "Q4_1"])
def test_packed_bases_are_read_where_they_are_stored(kind: RankOneKind, level: int, grid: str) -> None:
    packed, terms = pack_tensor(weights((70, 1056), torch.float32), GRIDS[grid], "w"), update(kind, 7)
    for dtype in DTYPES:
        got, expected = torch.empty(70, 1056, dtype=dtype), torch.empty(70, 1056, dtype=dtype)
        RankOneTensor(kind, KEY, "w").replay(got, packed, RankedTerms(kind, terms), level=level, threads=2)
        reference(kind, expected, packed.dequantise(), terms)
        assert torch.equal(bits(got), bits(expected))


@levels
def test_sums_around_the_cache_are_the_same(level: int) -> None:
    """Large and apart from their base, rows aligned and not."""
    kind = RankOnePool(4096)
    terms = update(kind, 4096)
    for columns in (1024, 1003):
        base = weights((-(-LARGE // columns), columns), torch.float32)
        got = torch.empty_like(base)
        RankOneTensor(kind, KEY, "w").replay(got, base, RankedTerms(kind, terms), level=level)
        assert torch.equal(bits(got), bits(reference(kind, torch.empty_like(base), base, terms)))


@kinds
def test_a_space_takes_them_and_reads_weights_that_are_not_stored(
    kind: RankOneKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, terms = pack_tensor(weights((40, 64), torch.float32), GRIDS["Q4_0"], "w"), update(kind, 3)
    expected = reference(kind, torch.empty(40, 64), base.dequantise(), terms)
    step = torch.empty_like(expected)
    kind.axpy(step, expected, 0.25, SOURCE, "w", 0)
    space = BoundSpace(kind, KEY)
    for name in ("axpy", "replay"):  # the reference must not be asked
        monkeypatch.setattr(type(kind), name, None)
    summed, read = torch.empty(40, 64), torch.empty(40, 64)
    space.replay(summed, base.dequantise(), terms, "w")
    assert torch.equal(summed, expected)
    space.read(read, base, terms, "w", (0, 0.25), 0)
    assert torch.equal(read, step)


def test_what_does_not_fit_is_refused() -> None:
    kind, w = RankOnePool(8), torch.zeros(8, 64)
    kernel, terms = RankOneTensor(kind, KEY, "w"), RankedTerms(kind, update(kind, 3))
    with pytest.raises(ModelError, match="formed whole"):
        kernel.replay(w, w, terms, start=8192)
    with pytest.raises(ModelError, match="formed whole"):
        kernel.replay(w, w, native.Terms(kind, update(kind, 3)))
    with pytest.raises(ModelError, match="numbered"):
        kernel.axpy(w, w, 1.0, 8)
    with pytest.raises(ModelError, match="cannot compute"):
        kernel.replay(w, w.T, terms)
    assert not ranks(kind, w, w.double())
