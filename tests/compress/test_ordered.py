"""Static order against the method written out column by column in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgetune.compress.fitting import fit_all
from edgetune.compress.ordered import solve_in_order
from edgetune.compress.rounding import round_to_nearest
from edgetune.compress.search import LeastError
from edgetune.compress.solve import Moments, solve_stage
from edgetune.core.errors import ConfigError
from edgetune.core.events import LayerCompressed, ignore
from edgetune.core.fitting import fitting
from edgetune.core.integers import grid_named
from edgetune.core.quantised import BlockGrid
from edgetune.methods.compression import gptaq, joint, optq, rtn

from .problems import problem, relative_error

GRIDS = ["Q4_0", "Q4_1", "Q3_K", "int4-g64", "uint3-row"]


def fitted(name: str, columns: int) -> BlockGrid:
    known = grid_named(name)
    assert known is not None
    grid = fitting(known, columns)
    assert grid is not None
    return grid


def uneven(columns: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """A problem whose inputs differ much in size, the heaviest somewhere inside."""
    weights, hessian = problem(7, columns)
    size = torch.exp(torch.randn(columns, generator=torch.Generator().manual_seed(8)))
    return weights, hessian * size[:, None] * size[None, :]


def written_out(weights: torch.Tensor, hessian: torch.Tensor, grid: BlockGrid) -> torch.Tensor:
    """Quantise the column of the largest diag H, then give its error to those that are left, until none is."""
    h = hessian.double() + 0.01 * hessian.diagonal().double().mean() * torch.eye(len(hessian)).double()
    step, shift = grid.steps(fit_all(weights, hessian.diagonal().clone(), grid, LeastError()))
    scale = step.double().repeat_interleave(grid.group, 1)
    offset = torch.zeros_like(scale) if shift is None else shift.double().repeat_interleave(grid.group, 1)
    w, left = weights.double().clone(), torch.ones(len(h), dtype=torch.bool)
    for j in hessian.diagonal().argsort(descending=True, stable=True):
        code = ((w[:, j] - offset[:, j]) / scale[:, j]).round().clamp(grid.low, grid.high)
        chosen = code * scale[:, j] + offset[:, j]
        inverse = torch.zeros_like(h)
        some = left.nonzero()[:, 0]
        inverse[some[:, None], some] = torch.linalg.inv(h[some][:, some])
        w -= ((w[:, j] - chosen) / inverse[j, j])[:, None] * inverse[j] * left
        w[:, j], left[j] = chosen, False
    return w


@pytest.mark.parametrize("name", GRIDS)
def test_it_is_the_method_written_out(name: str) -> None:
    weights, hessian = uneven()
    grid = fitted(name, 256)
    found = solve_in_order({"w": weights}, Moments(hessian), optq.METHOD, ignore, grid)["w"]
    assert found.stored is not None
    assert torch.equal(found.weights, found.stored.dequantise())
    same = torch.isclose(found.weights.double(), written_out(weights, hessian, grid), atol=1e-6)
    # A value in the middle of two codes may fall to either side, and takes the rest of its row with it.
    assert int((same.double().mean(1) > 0.99).sum()) > len(weights) // 2
    plain = solve_stage({"w": weights}, Moments(hessian), optq.METHOD, ignore, grid)["w"]
    assert not torch.equal(plain.weights, found.weights)


@pytest.mark.parametrize("name", GRIDS)
def test_passes_and_the_dense_aim_work_on_it(name: str) -> None:
    weights, hessian = uneven()
    events: list[LayerCompressed] = []

    def tell(event: object) -> None:
        assert isinstance(event, LayerCompressed)
        events.append(event)

    grid = fitted(name, 256)
    found = solve_in_order(
        {"w": weights}, Moments(hessian, torch.zeros_like(hessian)), gptaq.METHOD, tell, grid
    )["w"]
    error = relative_error(weights, found.weights, hessian)
    swept = solve_in_order({"w": weights}, Moments(hessian), optq.METHOD, ignore, grid)["w"]
    assert error < relative_error(weights, swept.weights, hessian)
    rounded = round_to_nearest(
        weights, grid, LeastError(), importance=hessian.diagonal().clone()
    ).dequantise()
    assert events[0].error == pytest.approx(error, rel=1e-3)
    assert events[0].rounding_error == pytest.approx(relative_error(weights, rounded, hessian), rel=1e-3)


def test_without_moments_it_is_rounding() -> None:
    weights, _ = uneven()
    grid = fitted("Q4_0", 256)
    found = solve_in_order({"w": weights}, None, optq.METHOD, ignore, grid)["w"]
    plain = solve_stage({"w": weights}, None, optq.METHOD, ignore, grid)["w"]
    assert torch.equal(found.weights, plain.weights)


@pytest.mark.parametrize("method", [rtn.METHOD, joint.METHOD], ids=lambda one: one.name)
def test_an_order_is_of_use_to_a_compensating_rounder_alone(method: object) -> None:
    with pytest.raises(ConfigError, match="order of columns"):
        replace(method, static_order=True)  # type: ignore[type-var]
