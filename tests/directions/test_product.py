"""Products with perturbed matrices equal those with the matrix that `axpy` forms, on every instruction set."""

from __future__ import annotations

import pytest
import torch

from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import Gaussian, Hadamard, Kind, Rademacher, native
from edgetune.directions.native import product
from edgetune.directions.space import BoundSpace

KEY = pool_key(5)
KINDS = [Rademacher(), *map(Hadamard, (1, 3, 64, 4096, 10_000))]
SHAPES = [(1, 1, 1), (16, 48, 768), (3, 50, 37), (33, 97, 300), (130, 25, 2049), (17, 700, 8)]
"""Rows, outputs, inputs."""
LEVELS = range(native.best_level() + 1)
pytestmark = pytest.mark.skipif(
    native.library() is None, reason="no compiled kernel: no C compiler at install"
)


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


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_product_with_the_formed_matrix(
    kind: Kind, shape: tuple[int, int, int], level: int
) -> None:
    for scales in [(0.25, -0.25), (0.5, 0.0), (-0.125,)]:
        x, weight = operands(*shape, len(scales))
        untouched = weight.clone()
        seed = kind.size - 1 if isinstance(kind, Hadamard) else 10**12
        got = product.multiply(kind, KEY, "w", x, weight, seed, scales, level=level, threads=2)
        formed = expected(kind, seed, x, weight, scales)
        error = (got.double() - formed).abs().max() / formed.abs().max()
        assert error < 1e-6 + 1e-7 * shape[2] ** 0.5, (scales, error)
        assert torch.equal(weight, untouched)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_pending_step_is_taken_with_the_bits_of_axpy(kind: Kind) -> None:
    last = kind.size - 1 if isinstance(kind, Hadamard) else 10**12
    for shape in SHAPES:
        x, weight = operands(*shape)
        later = torch.empty_like(weight)
        BoundSpace(kind, KEY).axpy(later, weight, 0.01, "w", last)
        at_once = product.multiply(kind, KEY, "w", x, later, 0, (0.25, -0.25))
        for threads in (1, 3):
            taken = weight.clone()
            riding = product.multiply(
                kind, KEY, "w", x, taken, 0, (0.25, -0.25), pending=(last, 0.01), threads=threads
            )
            assert torch.equal(taken, later)
            assert torch.equal(riding, at_once)


@pytest.mark.skipif(native.best_level() < 2, reason="needs a processor with AVX-512, to compare it with AVX2")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_instruction_sets_with_fused_sums_agree_bit_for_bit(shape: tuple[int, int, int]) -> None:
    x, weight = operands(*shape)
    first, second = (
        product.multiply(Rademacher(), KEY, "w", x, weight, 2, (0.5, -0.5), level=level) for level in (1, 2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("width", [1, 37, 96, 9000])
def test_rows_have_the_bits_of_the_formed_matrix(kind: Kind, width: int, level: int) -> None:
    last = kind.size - 1 if isinstance(kind, Hadamard) else 10**12
    weight = torch.randn(300, width, generator=torch.Generator().manual_seed(width))
    rows, formed = torch.tensor([0, 299, 7, 7, 150]), weight.clone()
    for seed, coefficient in ((last, 0.01), (0, -0.25)):
        BoundSpace(kind, KEY).axpy(formed, formed, coefficient, "w", seed)
    got = product.gather(kind, KEY, "w", rows, weight, [(last, 0.01), (0, -0.25)], level=level)
    assert torch.equal(got, formed[rows])
    one = product.gather(kind, KEY, "w", rows, weight, [(last, 0.5)], level=level)
    BoundSpace(kind, KEY).axpy(formed, weight, 0.5, "w", last)
    assert torch.equal(one, formed[rows])
    for outside in (-1, 300):
        with pytest.raises(IndexError, match="of a matrix of 300"):
            product.gather(kind, KEY, "w", torch.tensor([0, outside]), weight, [(0, 0.5)])


def test_what_it_serves() -> None:
    x, weight = operands(16, 8, 8)
    assert product.multiplies(Rademacher(), x, weight)
    assert not product.multiplies(Gaussian(), x, weight)
    assert not product.multiplies(Rademacher(), x, weight.bfloat16())
    assert not product.multiplies(Rademacher(), x, weight.t())
    with pytest.raises(RuntimeError, match="refused"):
        product.multiply(Gaussian(), KEY, "w", x, weight, 2, (0.5, -0.5))


@pytest.mark.parametrize("size", [64, 4096, 10_000])
def test_a_replay_may_start_within_a_tensor(size: int) -> None:
    kind, base = Hadamard(size), torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    update = Projected.of(5, 0.1) + Projected.of(63, -0.2)
    whole, start = torch.empty_like(base), max(native.ALIGNMENT, kind.padded) * 2
    native.run(kind, KEY, "w", whole, base, update, replay=True)
    part = torch.empty_like(base[start:])
    native.run(kind, KEY, "w", part, base[start:], update, replay=True, start=start)
    assert torch.equal(part, whole[start:])
