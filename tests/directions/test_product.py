"""Products with perturbed matrices equal those with the matrix that `axpy` forms, on every instruction set."""

from __future__ import annotations

import pytest
import torch

from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import Gaussian, Hadamard, Kind, Rademacher, native
from edgetune.directions.native.product import Matrix, multiplies
from edgetune.directions.space import BoundSpace

KEY = pool_key(5)
KINDS = [Rademacher(), *map(Hadamard, (1, 3, 64, 4096, 10_000))]
SHAPES = [(1, 1, 1), (16, 48, 768), (3, 50, 37), (33, 97, 300), (130, 25, 2049), (17, 700, 8)]
"""Rows, outputs, inputs."""
LEVELS = range(native.best_level() + 1)
pytestmark = pytest.mark.skipif(
    native.library() is None, reason="no compiled kernel: no C compiler at install"
)


def matrix(kind: Kind) -> Matrix:
    return Matrix(kind, KEY, "w")


def operands(rows: int, outputs: int, inputs: int, points: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(points * rows, inputs, generator=generator)
    return x, torch.randn(outputs, inputs, generator=generator) * 0.1


def expected(
    kind: Kind, seed: int, x: torch.Tensor, weight: torch.Tensor, scales: tuple[float, ...]
) -> torch.Tensor:
    formed = torch.empty_like(weight)
    found = []
    for scale, part in zip(scales, x.chunk(len(scales)), strict=True):
        BoundSpace(kind, KEY).axpy(formed, weight, scale, "w", seed)
        found.append(part.double() @ formed.double().T)
    return torch.cat(found)


@pytest.mark.parametrize("level", LEVELS, ids=native.LEVELS.__getitem__)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_product_with_the_formed_matrix(
    kind: Kind, shape: tuple[int, int, int], level: int
) -> None:
    for scales in [(0.25, -0.25), (0.5, 0.0), (-0.125,)]:
        x, weight = operands(*shape, len(scales))
        untouched = weight.clone()
        seed = kind.size - 1 if isinstance(kind, Hadamard) else 10**12
        got = matrix(kind).multiply(x, weight, seed, scales, level=level, threads=2)
        formed = expected(kind, seed, x, weight, scales)
        error = (got.double() - formed).abs().max() / formed.abs().max()
        assert error < 1e-6 + 1e-7 * shape[2] ** 0.5, (scales, error)
        assert torch.equal(weight, untouched)


@pytest.mark.parametrize("level", LEVELS, ids=native.LEVELS.__getitem__)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_pending_step_is_taken_with_the_bits_of_axpy(kind: Kind, level: int) -> None:
    last = kind.size - 1 if isinstance(kind, Hadamard) else 10**12
    for shape in SHAPES:
        for scales in [(0.25, -0.25), (0.5,)]:
            x, weight = operands(*shape, len(scales))
            later = torch.empty_like(weight)
            BoundSpace(kind, KEY).axpy(later, weight, 0.01, "w", last)
            at_once = matrix(kind).multiply(x, later, 0, scales, level=level)
            for threads in (1, 3):
                taken = weight.clone()
                riding = matrix(kind).multiply(
                    x, taken, 0, scales, pending=(last, 0.01), level=level, threads=threads
                )
                assert torch.equal(taken, later)
                assert torch.equal(riding, at_once)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 17, 24, 40])
def test_rows_are_independent_whatever_fills_the_last_vectors(rows: int) -> None:
    """Lanes beyond the last row are filled up; each row has the bits that it has alone."""
    for level in LEVELS:
        x, weight = operands(rows, 53, 270)
        together = matrix(Rademacher()).multiply(x, weight, 3, (0.5, -0.5), level=level)
        halves = x.view(2, rows, -1)
        for row in range(rows):
            alone = matrix(Rademacher()).multiply(
                halves[:, row].contiguous(), weight, 3, (0.5, -0.5), level=level
            )
            assert torch.equal(together.view(2, rows, -1)[:, row], alone)


@pytest.mark.skipif(native.best_level() < 2, reason="needs a processor with AVX-512, to compare it with AVX2")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_instruction_sets_with_fused_sums_agree_bit_for_bit(shape: tuple[int, int, int]) -> None:
    x, weight = operands(*shape)
    first, second = (
        matrix(Rademacher()).multiply(x, weight, 2, (0.5, -0.5), level=level) for level in (1, 2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("level", LEVELS, ids=native.LEVELS.__getitem__)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("width", [1, 37, 96, 9000])
def test_rows_have_the_bits_of_the_formed_matrix(kind: Kind, width: int, level: int) -> None:
    last = kind.size - 1 if isinstance(kind, Hadamard) else 10**12
    weight = torch.randn(300, width, generator=torch.Generator().manual_seed(width))
    before, rows, space = weight.clone(), torch.tensor([0, 299, 7, 7, 150]), BoundSpace(kind, KEY)
    for pending in (None, (last, 0.01)):
        formed = torch.empty(2, *weight.shape)
        for point, scale in enumerate((-0.25, 0.5)):
            stepped = weight.clone()
            if pending:
                space.axpy(stepped, stepped, pending[1], "w", pending[0])
            space.axpy(formed[point], stepped, scale, "w", 0)
        both = matrix(kind).gather(rows, weight, 0, (-0.25, 0.5), pending=pending, level=level)
        assert torch.equal(both.view(2, 5, width), formed[:, rows])
        one = matrix(kind).gather(rows, weight, 0, (0.5,), pending=pending, level=level)
        assert torch.equal(one, formed[1, rows])
        assert torch.equal(
            one, matrix(kind).gather(rows.int(), weight, 0, (0.5,), pending=pending, level=level)
        )
    assert torch.equal(weight, before)
    assert matrix(kind).gather(rows[:0], weight, 0, (0.5, 0.25), level=level).shape == (0, width)


@pytest.mark.parametrize("level", LEVELS, ids=native.LEVELS.__getitem__)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", [1, 33, 128, 8192, 20_000])
def test_a_vector_at_every_point_has_the_bits_of_axpy(kind: Kind, size: int, level: int) -> None:
    last = kind.size - 1 if isinstance(kind, Hadamard) else 10**12
    weight, space = torch.randn(size, generator=torch.Generator().manual_seed(size)), BoundSpace(kind, KEY)
    before, expected = weight.clone(), torch.empty(2, size)
    for point, scale in enumerate((0.25, -0.5)):
        space.axpy(expected[point], weight, scale, "w", last)
    assert torch.equal(matrix(kind).points(weight, last, (0.25, -0.5), level=level), expected)
    assert torch.equal(matrix(kind).points(weight, last, (-0.5,), level=level), expected[1:])
    assert torch.equal(weight, before)


def test_vectors_of_any_kind_and_type_are_read_at_every_point() -> None:
    for kind in (Gaussian(), Rademacher()):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            weight, space = torch.linspace(-1, 1, 50, dtype=dtype), BoundSpace(kind, KEY)
            expected = torch.empty(2, 50, dtype=dtype)
            for point, scale in enumerate((0.5, -0.5)):
                space.axpy(expected[point], weight, scale, "w", 3)
            assert torch.equal(space.points(weight, "w", 3, (0.5, -0.5)), expected)


def test_what_it_serves() -> None:
    x, weight = operands(16, 8, 8)
    assert multiplies(Rademacher(), x, weight)
    assert not multiplies(Gaussian(), x, weight)
    assert not multiplies(Rademacher(), x, weight.bfloat16())
    assert not multiplies(Rademacher(), x, weight.t())
    with pytest.raises(RuntimeError, match="refused"):
        matrix(Gaussian()).multiply(x, weight, 2, (0.5, -0.5))


@pytest.mark.parametrize("size", [64, 4096, 10_000])
def test_a_replay_may_start_within_a_tensor(size: int) -> None:
    kind, base = Hadamard(size), torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    update = Projected.of(5, 0.1) + Projected.of(63, -0.2)
    whole, start = torch.empty_like(base), max(native.ALIGNMENT, kind.padded) * 2
    kernel, terms = native.TensorDirections(kind, KEY, "w"), native.Terms(kind, update)
    kernel.replay(whole, base, terms)
    part = torch.empty_like(base[start:])
    kernel.replay(part, base[start:], terms, start=start)
    assert torch.equal(part, whole[start:])
