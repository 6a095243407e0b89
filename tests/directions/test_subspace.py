"""Directions of low rank in a shared subspace: by formulas, independent decompositions, statistics."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import streams
import torch

from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.core.ledger import DirectionsSpec
from edgetune.core.remainder import held, join
from edgetune.core.update import Projected
from edgetune.directions import Gaussian, Lozo, Rademacher, RankOne, Source, SubZero
from edgetune.directions.draw import Fresh, describe
from edgetune.directions.intervals import Intervals
from edgetune.directions.native import best_level, library
from edgetune.directions.native.signs import CompiledSource
from edgetune.directions.space import BoundSpace
from edgetune.directions.subspace import SubspaceKind
from edgetune.federation.load import space_of

KEY = pool_key(7)
CPU = torch.device("cpu")
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
kinds = pytest.mark.parametrize("kind", [Lozo(), SubZero()], ids=lambda kind: kind.name)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
SHAPES = [(0,), (3, 0), (1,), (700,), (1, 1), (37, 53), (64, 33), (2, 3, 40), ()]
TOP = 9 << 32
EXACT = {Lozo: streams.lozo, SubZero: streams.subzero}
RANK = {Lozo: 2, SubZero: 16}


def draw(kind: SubspaceKind, shape: tuple[int, ...], seed: int = TOP + 5, name: str = "w") -> torch.Tensor:
    return kind.whole(Source(KEY), name, seed, shape, CPU)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@kinds
@pytest.mark.parametrize("seed", [2**63 - 5, TOP, 3])
def test_matrices_equal_the_defining_formula_bit_for_bit_and_vectors_are_gaussian(
    kind: SubspaceKind, seed: int
) -> None:
    rows, columns, name = 37, 21, "läyer.w"
    exact = [EXACT[type(kind)](KEY, name, seed, i, j, rows) for i in range(rows) for j in range(columns)]
    assert draw(kind, (rows, columns), seed, name).flatten().tolist() == exact
    assert torch.equal(draw(kind, (100,), seed), Gaussian().values(Source(KEY), "w", seed, 0, 100, CPU))
    assert torch.equal(draw(kind, (4, 6, 10), seed), draw(kind, (24, 10), seed).view(4, 6, 10))


@pytest.mark.parametrize("case", GOLDEN["subspace"], ids=lambda case: f"{case['kind']}-{case['shape']}")
def test_published_vectors_are_reproduced(case: dict[str, object]) -> None:
    kind = {"lozo": Lozo, "subzero": SubZero}[str(case["kind"])]()
    z = kind.whole(Source(pool_key(case["master_seed"])), case["name"], case["seed"], case["shape"], CPU)
    assert hashlib.sha256(z.numpy().astype("<f4").tobytes()).hexdigest() == case["sha256"]
    assert z.flatten()[:4].tolist() == case["first"]


@kinds
def test_directions_of_an_interval_share_a_row_space_of_their_rank_and_those_of_two_do_not(
    kind: SubspaceKind,
) -> None:
    rank = RANK[type(kind)]
    several = [draw(kind, (90, 70), TOP + query).double() for query in range(20)]
    other = draw(kind, (90, 70), TOP + (1 << 32)).double()
    assert [int(torch.linalg.matrix_rank(z, rtol=1e-5)) for z in several[:2]] == [rank, rank]
    assert int(torch.linalg.matrix_rank(torch.cat(several), rtol=1e-5)) == rank
    assert int(torch.linalg.matrix_rank(torch.cat([several[0], other]), rtol=1e-5)) == 2 * rank
    columns = int(torch.linalg.matrix_rank(torch.cat(several, 1), rtol=1e-5))
    assert columns == (16 if isinstance(kind, SubZero) else 40)


def test_subzero_s_directions_are_a_rotation_of_their_core() -> None:
    """U and V written out as signed Hadamard columns: orthogonal exactly, and norms are those of Z."""
    kind, rows, columns = SubZero(), 48, 80
    d, e = kind.common(Source(KEY), "w", TOP + 5, rows, columns, CPU)
    h = torch.tensor([[(-1.0) ** bin(i & k).count("1") for k in range(16)] for i in range(16)])
    u, v = d.unsqueeze(1) * h.repeat(3, 1), e.unsqueeze(1) * h.repeat(5, 1)
    assert torch.equal(u.T @ u, rows * torch.eye(16))
    assert torch.equal(v.T @ v, columns * torch.eye(16))
    core = Gaussian().values(Source(KEY), "w", TOP + 5, 0, 256, CPU).view(16, 16)
    z = draw(kind, (rows, columns))
    torch.testing.assert_close(z, u @ core @ v.T / 16, rtol=1e-5, atol=1e-5)
    assert float(z.double().norm() ** 2) == pytest.approx(
        rows * columns / 256 * float(core.double().norm() ** 2), rel=1e-5
    )


@kinds
def test_entries_have_no_mean_and_unit_variance(kind: SubspaceKind) -> None:
    """Over 200 intervals: means of independent directions, whose deviations are measured from the same draws."""
    drawn = torch.stack([draw(kind, (32, 48), seed << 32 | seed) for seed in range(200)]).double()
    for values, expected in ((drawn.mean((1, 2)), 0.0), (drawn.square().mean((1, 2)), 1.0)):
        assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / math.sqrt(200)
    inner = (drawn[:-1] * drawn[1:]).mean((1, 2))
    assert abs(float(inner.mean())) < 5 * float(inner.std()) / math.sqrt(199)


def test_the_two_factors_share_no_element_where_their_streams_are_one() -> None:
    for rows, columns in ((16, 16), (17, 40), (300, 7)):
        (v,) = Lozo().common(Source(KEY), "w", TOP, rows, columns, CPU)
        every = Gaussian().values(Source(KEY), "w", TOP, 0, 2 * (rows + columns) + 32, CPU)
        above = (2 * rows + 31) // 32 * 32
        assert torch.equal(v.flatten(), every[above : above + 2 * columns])
    d, _ = SubZero().common(Source(KEY), "w", TOP, 5, 9, CPU)
    assert d.tolist() == [streams.rademacher(KEY, "w", TOP, 256 * 16 + i) for i in range(5)]


@kinds
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_replay_is_the_additions_of_the_steps_rounded_once(
    kind: SubspaceKind, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    base = random(*shape, seed=2).to(dtype)
    terms = [(TOP + 3, 0.1), (TOP + 2**32, -0.3), (TOP + 4, 1e-3)]
    total = base.float()
    for seed, value in terms:
        total = total + torch.tensor(value) * draw(kind, shape, seed)
    update = Projected(np.array([seed for seed, _ in terms]), np.array([c for _, c in terms], np.float32))
    for out in (torch.empty_like(base), base.clone()):
        BoundSpace(kind, KEY).replay(out, base, update, "w")
        assert torch.equal(out, total.to(dtype))
    once = torch.empty_like(base)
    BoundSpace(kind, KEY).axpy(once, base, 0.1, "w", TOP + 3)
    assert torch.equal(once, (base.float() + torch.tensor(0.1) * draw(kind, shape, TOP + 3)).to(dtype))


@kinds
def test_sixteen_bit_weights_follow_each_step_with_what_their_rounding_left(kind: SubspaceKind) -> None:
    base, update = (
        random(40, 30).bfloat16(),
        Projected(np.array([TOP, TOP + 1]), np.array([0.1, 0.2], np.float32)),
    )
    weight, remainder = base.clone(), torch.zeros(40, 30, dtype=torch.int16)
    BoundSpace(kind, KEY).follow(weight, remainder, update, "w")
    exact = held(base.float(), torch.bfloat16)
    for seed, value in zip(update.keys.tolist(), update.coefficients.tolist(), strict=True):
        exact = held(exact + torch.tensor(value) * draw(kind, (40, 30), seed), torch.bfloat16)
    assert torch.equal(join(weight, remainder), exact)


@kinds
def test_a_replay_in_groups_of_rows_is_that_of_the_whole(
    kind: SubspaceKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, update = random(70, 6), Projected(np.array([TOP, TOP + 1]), np.array([1, -0.5], np.float32))
    whole, parts = torch.empty_like(base), torch.empty_like(base)
    BoundSpace(kind, KEY).replay(whole, base, update, "w")
    monkeypatch.setattr("edgetune.directions.subspace.CHUNK", 50)
    BoundSpace(kind, KEY).replay(parts, base, update, "w")
    assert torch.equal(whole, parts)


@pytest.mark.skipif(library() is None, reason="the compiled kernel is not built here")
def test_words_read_off_signs_in_c_are_the_reference_s() -> None:
    drawn, reference = CompiledSource(KEY, best_level()), Source(KEY)
    for seed, first, count in [(0, 0, 1), (2**63 - 1, 0, 40), (9, 5, 3), (9, 16, 17), (9, 47, 2), (3, 0, 0)]:
        assert torch.equal(
            drawn.words("läyer", seed, first, count, CPU), reference.words("läyer", seed, first, count, CPU)
        )


def test_an_interval_s_seeds_share_their_upper_bits_and_no_two_steps_a_direction() -> None:
    directions = Intervals(Lozo(), interval=50)
    seeds = [seed for round in (1, 2, 3) for seed in directions.draw(5, round, 4, 40, 3)]
    assert len(set(seeds)) == 360
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    tops = [seed >> 32 for seed in seeds]
    # 120 steps from the 40th on: intervals end before steps 50, 100 and 150
    lengths = [tops.count(top) for top in dict.fromkeys(tops)]
    assert lengths == [30, 150, 150, 30]
    assert tops == [top for top in dict.fromkeys(tops) for _ in range(tops.count(top))]
    assert directions.draw(5, 2, 4, 40, 3) == seeds[120:240]


def test_devices_have_subspaces_of_their_own_or_one_together() -> None:
    for shared in (False, True):
        directions = Intervals(SubZero(), shared, 50)
        first, second = (directions.draw(5, 1, device, 10) for device in (1, 2))
        assert (first == second) is shared
        assert ({seed >> 32 for seed in first} == {seed >> 32 for seed in second}) is shared


@pytest.mark.parametrize("top", [0, (1 << 63) - 1])
def test_the_lower_bits_wrap_within_a_subspace(top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.directions.intervals.fresh_seed", lambda *_: top)
    seeds = Intervals(Lozo()).draw(0, 0, 0, 3)
    assert {seed >> 32 for seed in seeds} == {top >> 32}
    assert [seed & 0xFFFFFFFF for seed in seeds] == [(top + step) % 2**32 for step in range(3)]


@kinds
def test_a_ledger_says_all_that_a_reader_needs(kind: SubspaceKind) -> None:
    spec = describe(Intervals(kind), 7)
    assert spec == DirectionsSpec(kind.name, 0, spec.key_id, 7)
    assert space_of(spec, None).kind == kind


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Intervals(Rademacher()), "no subspace"),
        (lambda: Intervals(RankOne()), "no subspace"),
        (lambda: Intervals(Lozo(), interval=0), "1 to 1,048,576 steps"),
        (lambda: Intervals(Lozo(), interval=(1 << 20) + 1), "1 to 1,048,576 steps"),
    ],
)
def test_impossible_intervals_are_refused(make: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_drawn_fresh_every_step_has_a_subspace_of_its_own() -> None:
    seeds = Fresh(Lozo()).draw(1, 1, 1, 20)
    assert len({seed >> 32 for seed in seeds}) == 20
