"""Integer grids by groups and rows: the best scale and zero point, the sweep, and the descent after it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgetune.compress.descent import descend
from edgetune.compress.rounding import round_to_nearest
from edgetune.compress.search import LeastError
from edgetune.compress.solve import Moments, solve_stage
from edgetune.compress.store import BlockStore, SolvedBlock
from edgetune.compress.zero import best_zero
from edgetune.core.events import ignore
from edgetune.core.fitting import fitting
from edgetune.core.integers import INTEGERS, integer_grid
from edgetune.core.quantised import BlockGrid
from edgetune.methods.compression import gptaq, optq

from .problems import problem, relative_error

HALVES = [name for name in INTEGERS if not name.endswith("bf16")]


def fitted(name: str, columns: int) -> BlockGrid:
    grid = fitting(INTEGERS[name], columns)
    assert grid is not None
    return grid


def luck(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shift", [0.0, 0.6, 3.0, -3.0])
def test_no_scale_and_no_zero_point_near_it_are_better_than_the_search(shift: float) -> None:
    grid = integer_grid(3, 8, "uint3-g8", zero=True, scales=torch.float16)
    x = torch.randn(30, 8, generator=luck(1)) * 0.1 + 0.1 * shift
    cost = torch.rand(8, generator=luck(2)) + 0.2
    scale, zero = best_zero(x, cost, grid)
    assert bool((scale > 0).all())
    found = loss(x, cost, scale.float(), zero.float(), grid)
    low, high = x.amin(-1).clamp(max=0), x.amax(-1).clamp(min=0)
    first = (-4 - low / ((high - low) / 7)).round()
    for z in range(grid.low, grid.high + 1):
        near = (first - z).abs() <= 1
        for s in torch.linspace(0.002, 0.2, 2000).half().float():
            other = loss(x, cost, s.expand(30), torch.full((30,), float(z)), grid)
            assert bool((other >= found * (1 - 2e-3))[near].all())


def loss(
    x: torch.Tensor, cost: torch.Tensor, s: torch.Tensor, z: torch.Tensor, grid: BlockGrid
) -> torch.Tensor:
    s, z = s.double()[:, None], z.double()[:, None]
    codes = (x.double() / s + z).round().clamp(grid.low, grid.high)
    return ((s * (codes - z) - x) ** 2 * cost).sum(-1)


@pytest.mark.parametrize("name", INTEGERS)
def test_every_weight_is_a_positive_scale_times_a_code_less_its_zero_point(name: str) -> None:
    grid = fitted(name, 256)
    x = torch.randn(6, 256, generator=luck(3)) * 0.05
    x[0] = 0
    x[1] = x[1].abs()
    matrix = round_to_nearest(x, grid, LeastError())
    scale = matrix.numbers[0].double().repeat_interleave(grid.group, 1)
    zero = matrix.numbers[1].double().repeat_interleave(grid.group, 1) if grid.tied else 0
    assert bool((scale > 0).all())
    assert torch.equal(matrix.dequantise().double(), scale * (matrix.codes.double() - zero))
    assert bool((matrix.dequantise()[0] == 0).all())
    assert matrix.numbers[0].dtype == (torch.bfloat16 if name.endswith("bf16") else torch.float16)


@pytest.mark.parametrize("name", HALVES)
def test_compensation_and_descent_work_as_on_any_grid(name: str) -> None:
    weights, hessian = problem(24, 256)
    grid = fitted(name, 256)
    plain = round_to_nearest(weights, grid, LeastError()).dequantise()
    solved = {}
    for method in (optq.METHOD, gptaq.METHOD):
        drift = torch.zeros_like(hessian) if method.aim_dense else None
        one = solve_stage({"w": weights}, Moments(hessian, drift), method, ignore, grid)["w"]
        assert one.stored is not None
        assert torch.equal(one.weights, one.stored.dequantise())
        solved[method.name] = relative_error(weights, one.weights, hessian)
    assert solved["gptaq"] < solved["optq"] < 0.75 * relative_error(weights, plain, hessian)


def test_where_the_descent_ends_no_code_zero_point_or_scale_is_better() -> None:
    grid = integer_grid(3, 16, "uint3-g16", zero=True, scales=torch.float16)
    weights, hessian = problem(4, 32, seed=5)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    start = round_to_nearest(weights + 0.5, grid, LeastError())
    target = (weights + 0.5).T.contiguous()
    codes = start.codes.T.contiguous()
    scale, zero = (number.T.contiguous() for number in start.numbers)

    def far(c: torch.Tensor, s: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        q = s.double().repeat_interleave(16, 0) * (c.double() - z.double().repeat_interleave(16, 0))
        return ((q - target) * (hessian.double() @ (q - target))).sum(0)

    before = far(codes, scale, zero)
    descend(target, hessian, codes, [scale, zero], grid, 60)
    least = far(codes, scale, zero)
    assert bool((least <= before * (1 + 1e-6)).all())
    assert bool((least < 0.9 * before).any())
    for group in range(2):
        for z in range(grid.low, grid.high + 1):
            other = zero.clone()
            other[group] = z
            assert bool((far(codes, scale, other) >= least * (1 - 1e-5)).all())
        for factor in (0.98, 0.999, 1.001, 1.02):
            wide = scale.float()
            wide[group] *= factor
            assert bool((far(codes, wide.half(), zero) >= least * (1 - 1e-4)).all())
    for column in range(32):
        for code in range(grid.low, grid.high + 1):
            moved = codes.clone()
            moved[column] = code
            assert bool((far(moved, scale, zero) >= least * (1 - 1e-5)).all())


@pytest.mark.parametrize(
    ("name", "columns", "meant", "block"),
    [
        ("int4-g128", 384, "int4-g128", 128), ("int4-g128", 192, "int4-g64", 64), 
        ("uint3-g128-bf16", 96, "uint3-g32-bf16", 32),        ("int8-row", 172, "int8-row", 172),
    ],
)  # fmt: skip
def test_rows_that_a_group_does_not_divide_get_a_smaller_one(
    name: str, columns: int, meant: str, block: int
) -> None:
    grid = fitted(name, columns)
    assert (grid.name, grid.block, grid.group) == (meant, block, block)
    assert fitting(INTEGERS["int4-g128"], 172) is None


@pytest.mark.parametrize("name", ["uint4-g32-bf16", "int4-row"])
def test_a_solved_block_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    matrix = round_to_nearest(torch.randn(3, 96, generator=luck(4)), fitted(name, 96), LeastError())
    store = BlockStore(tmp_path, "job")
    store.write(0, SolvedBlock({"w": matrix}, {}, []))
    found = store.read(0)
    assert found is not None
    assert found.stored["w"].grid == matrix.grid
    assert torch.equal(found.stored["w"].dequantise(), matrix.dequantise())
