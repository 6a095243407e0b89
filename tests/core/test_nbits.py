"""The layout of ONNX Runtime's kernels, read back by a loop that shares nothing with the writer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgetune.core.errors import ConfigError
from edgetune.core.fitting import fitting
from edgetune.core.integers import grid_named
from edgetune.core.nbits import NBits, is_held, refuse_for_nbits, to_nbits
from edgetune.core.quantised import GRIDS, BlockGrid, QuantisedMatrix

HELD = [
    "Q4_0",
    "Q8_0",
    "int2-g64",
    "int4-g32",
    "uint2-g32",
    "uint4-g32",
    "uint4-g128-bf16",
    "uint8-g64",
    "int8-g128",
]


def grid_of(name: str) -> BlockGrid:
    found = grid_named(name)
    assert found is not None
    return found


def drawn(name: str, rows: int = 3, columns: int = 384) -> QuantisedMatrix:
    grid = grid_of(name)
    made = torch.Generator().manual_seed(len(name))
    codes = torch.randint(grid.low, grid.high + 1, (rows, columns), generator=made).to(torch.int8)
    scales = (torch.randn(rows, columns // grid.group, generator=made) / 8).to(grid.scale[0].number.dtype)
    numbers = [scales]
    if grid.tied:
        numbers.append(torch.randint(grid.low, grid.high + 1, scales.shape, generator=made).to(torch.int8))
    return QuantisedMatrix(grid, codes, tuple(numbers))


def meaning(held: NBits) -> torch.Tensor:
    """Weights one by one: ONNX Runtime's formula on bits counted by hand."""

    def integer(row: list[int], number: int) -> int:
        first = number * held.bits
        return (row[first // 8] >> first % 8) & ((1 << held.bits) - 1)

    rows, columns = held.shape
    found = torch.empty(rows, columns, dtype=torch.float64)
    for n in range(rows):
        codes = held.codes[n].reshape(-1).tolist()
        zeros = None if held.zeros is None else held.zeros[n].tolist()
        for k in range(columns):
            zero = 1 << held.bits - 1 if zeros is None else integer(zeros, k // held.block)
            found[n, k] = float(held.scales[n, k // held.block]) * (integer(codes, k) - zero)
    return found


@pytest.mark.parametrize("name", HELD)
def test_bytes_mean_the_weights_that_were_solved(name: str) -> None:
    matrix = drawn(name)
    held = to_nbits(matrix)
    assert held.shape == matrix.codes.shape
    assert held.codes.numel() * 8 == matrix.codes.numel() * held.bits
    assert torch.equal(meaning(held), matrix.dequantise().double())


def test_zero_points_of_a_row_end_at_a_byte() -> None:
    held = to_nbits(drawn("uint4-g128", columns=384))
    assert held.zeros is not None
    assert held.zeros.shape == (3, 2)  # three of 4 bits


@pytest.mark.parametrize("name", ["Q4_0", "uint2-g32", "uint4-g128-bf16", "Q8_0", "uint8-g64"])
def test_one_changed_bit_is_another_matrix(name: str) -> None:
    matrix = drawn(name)
    held = to_nbits(matrix)
    assert is_held(matrix, held.codes, held.scales, held.zeros)
    codes, scales = held.codes.clone(), held.scales.clone()
    codes.view(-1)[-1] ^= 128
    scales.view(torch.int16).view(-1)[0] ^= 1
    assert not is_held(matrix, codes, held.scales, held.zeros)
    assert not is_held(matrix, held.codes, scales, held.zeros)
    assert not is_held(matrix, held.codes, held.scales.float(), held.zeros)
    assert not is_held(matrix, held.codes[:-1], held.scales, held.zeros)
    if held.zeros is None:
        assert not is_held(matrix, held.codes, held.scales, torch.zeros(3, 6, dtype=torch.uint8))
        return
    zeros = held.zeros.clone()
    zeros[0, 0] ^= 1
    assert not is_held(matrix, held.codes, held.scales, zeros)
    assert not is_held(matrix, held.codes, held.scales, None)
    assert not is_held(matrix, held.codes, held.scales, held.zeros[:, :1])


@pytest.mark.parametrize("name", sorted({*GRIDS, "int3-g32", "uint3-g128"} - {"Q4_0", "Q8_0"}))
def test_a_grid_without_a_kernel_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"blk: ONNX Runtime has no kernel for the grid {name}"):
        refuse_for_nbits(grid_of(name), "blk")


@pytest.mark.parametrize("name", HELD)
def test_a_grid_with_a_kernel_is_let_through(name: str) -> None:
    refuse_for_nbits(grid_of(name), "blk")


def test_whole_rows_are_let_through_where_they_are_a_power_of_two() -> None:
    rows = {columns: fitting(grid_of("int4-row"), columns) for columns in (256, 96)}
    assert rows[256] is not None
    assert rows[96] is not None
    refuse_for_nbits(rows[256], "blk")
    with pytest.raises(ConfigError, match="groups of 96 weights"):
        refuse_for_nbits(rows[96], "blk")
    with pytest.raises(ConfigError, match="groups of 8 weights"):
        refuse_for_nbits(replace(rows[256], scale=(replace(rows[256].scale[0], span=8),)), "blk")
