"""Layers that read perturbed weights part by part compute as with the whole perturbed tensor."""

from __future__ import annotations

import pytest
import torch

from edgetune.core.keys import pool_key
from edgetune.directions import Gaussian, Hadamard, Kind, Rademacher, native
from edgetune.directions.kernel import compiled_level
from edgetune.directions.space import BoundSpace
from edgetune.measure.allocator import allocator_peak
from edgetune.tune.parts import Form, gathered_rows, perturbed_linear, perturbed_rows, reads_in_parts

KINDS = [Rademacher(), Gaussian(), Hadamard(64), Hadamard(16_384)]
pytestmark = pytest.mark.skipif(
    compiled_level() is None, reason="the compiled kernel is not built, or EDGETUNE_KERNEL asks for another"
)


def space(kind: Kind) -> BoundSpace:
    return BoundSpace(kind, pool_key(1))


def forms(kind: Kind, weight: torch.Tensor) -> Form:
    def form(out: torch.Tensor, start: int) -> None:
        base = weight.view(-1)[start : start + out.numel()].view(out.shape)
        space(kind).axpy(out, base, 0.25, "w", 5, start)

    return form


def whole(kind: Kind, weight: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(weight)
    space(kind).axpy(out, weight, 0.25, "w", 5)
    return out


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_is_that_slice_of_the_whole(kind: Kind, dtype: torch.dtype) -> None:
    weight = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    formed = torch.empty_like(weight[16_384:40_001])
    forms(kind, weight)(formed, 16_384)
    assert torch.equal(formed, whole(kind, weight)[16_384:40_001])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("inputs", [96, 256, 8192])
def test_a_matrix_in_parts(kind: Kind, inputs: int) -> None:
    weight = torch.randn(700, inputs, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, inputs, generator=torch.Generator().manual_seed(2))
    got = perturbed_linear(x, weight, forms(kind, weight), native.ALIGNMENT, 1 << 14)
    expected = torch.nn.functional.linear(x, whole(kind, weight))
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * inputs**0.5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_of_an_embedding(kind: Kind) -> None:
    weight = torch.randn(3000, 96, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0, 2999, 7], [7, 85, 86]])
    got = perturbed_rows(ids, weight, forms(kind, weight), native.ALIGNMENT)
    assert got is not None
    assert torch.equal(got, whole(kind, weight)[ids])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("alignment", [0, native.ALIGNMENT])
def test_rows_gathered_from_a_table_formed_in_parts(kind: Kind, alignment: int) -> None:
    weight = torch.randn(3000, 96, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0, 2999, 7, 255, 256, 257], [7, 85, 86, 511, 512, 1500]])
    got = gathered_rows(ids, weight, forms(kind, weight), alignment, 1 << 14)
    assert torch.equal(got, whole(kind, weight)[ids])


def test_many_rows_are_left_to_the_whole_table() -> None:
    weight = torch.zeros(300, 64)
    assert perturbed_rows(torch.arange(300), weight, forms(Rademacher(), weight), native.ALIGNMENT) is None


def test_scratch_is_bounded_by_the_part_not_by_the_matrix() -> None:
    weight, x = torch.zeros(20_000, 128), torch.zeros(1, 128)
    peak = allocator_peak(
        lambda: perturbed_linear(x, weight, forms(Rademacher(), weight), native.ALIGNMENT, 1 << 16)
    )
    assert peak < 4 * (1 << 16) + 3 * 4 * 20_000
    assert 4 * weight.numel() > 20 * peak


def test_only_plain_layers_read_in_parts() -> None:
    class Own(torch.nn.Linear):
        pass

    assert reads_in_parts(torch.nn.Linear(3, 4))
    assert reads_in_parts(torch.nn.Embedding(3, 4))
    assert not reads_in_parts(Own(3, 4))
    assert not reads_in_parts(torch.nn.LayerNorm(4))
    assert not reads_in_parts(torch.nn.Embedding(3, 4, max_norm=1.0))
