from __future__ import annotations

import tracemalloc
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core import packing
from edgetune.core.errors import ModelError
from edgetune.core.numbers import HALF, POWER_OF_TWO, UNSIGNED_E4M3, Whole
from edgetune.core.packing import LIMITS, pack, unpack
from edgetune.core.quantised import (
    GRIDS,
    IQ4_NL,
    MXFP4,
    NVFP4,
    Q3_K,
    Q4_0,
    Q4_K,
    BlockGrid,
    Field,
    QuantisedMatrix,
)

HALVES = (0.0, -0.0, 2.0**-24, -(2.0**-24), 2.0**-14, 1e-3, -0.02, 1.0, 65504.0, -65504.0)
"""Zeros, subnormals, ordinary numbers and the largest of fp16."""


def numbers(field: Field, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Any numbers that a field can store, the outermost among them."""
    if field.number is HALF:
        ordinary = (torch.randn(shape, generator=generator) * 0.05).half()
        odd = torch.tensor(HALVES).half()[torch.randint(len(HALVES), shape, generator=generator)]
        return torch.where(torch.rand(shape, generator=generator) < 0.5, ordinary, odd)
    number = field.number
    low, high = (number.low, number.high) if isinstance(number, Whole) else LIMITS[number]
    drawn = torch.randint(low, high + 1, shape, generator=generator)
    pick = torch.rand(shape, generator=generator)
    drawn[pick < 0.2], drawn[pick > 0.8] = low, high
    return drawn.to(number.dtype)


def random_matrix(grid: BlockGrid, rows: int, blocks: int, seed: int) -> QuantisedMatrix:
    generator = torch.Generator().manual_seed(seed)
    columns = blocks * grid.block
    codes = torch.randint(grid.low, grid.high + 1, (rows, columns), generator=generator).to(torch.int8)
    own = (numbers(field, (rows, columns // field.span), generator) for field in grid.fields)
    return QuantisedMatrix(grid, codes, tuple(own))


def bits(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values: the two zeros differ, and a NaN would be equal to itself."""
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


@given(st.sampled_from(sorted(GRIDS)), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_packed_codes_decode_bit_for_bit_and_come_back(name: str, rows: int, blocks: int, seed: int) -> None:
    matrix = random_matrix(GRIDS[name], rows, blocks, seed)
    packed = pack(matrix)
    assert packed.nbytes == matrix.stored_bytes
    decoded = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(bits(decoded), bits(matrix.dequantise().numpy()))
    again = unpack(matrix.grid, packed)
    assert torch.equal(again.codes, matrix.codes)
    assert again.codes.dtype == matrix.codes.dtype
    for ours, theirs in zip(again.numbers, matrix.numbers, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_any_bytes_decode_as_the_library_decodes_them(name: str) -> None:
    grid = GRIDS[name]
    raw = np.random.default_rng(3).integers(0, 256, (40, 2 * grid.block_bytes), dtype=np.uint8)
    if grid is NVFP4:  # a sign bit of a scale means nothing there, and the largest is no number
        scales = raw.reshape(-1, 36)[:, :4]
        scales &= 127
        scales[scales == 127] = 0
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    found = unpack(grid, raw).dequantise().numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_every_code_and_every_place_of_a_block_survives(name: str) -> None:
    grid = GRIDS[name]
    span = grid.high - grid.low + 1
    codes = (torch.arange(grid.block)[None] + torch.arange(span)[:, None]) % span + grid.low
    blank = tuple(torch.ones(span, grid.block // field.span).to(field.number.dtype) for field in grid.fields)
    matrix = QuantisedMatrix(grid, codes.to(torch.int8), blank)
    assert torch.equal(unpack(grid, pack(matrix)).codes, matrix.codes)


@pytest.mark.parametrize("grid", [MXFP4, NVFP4], ids=lambda grid: grid.name)
def test_a_negative_zero_is_never_written_and_is_read_as_zero(grid: BlockGrid) -> None:
    matrix = random_matrix(grid, 4, 8, 0)
    head = grid.block // grid.group
    nibbles = pack(matrix).reshape(-1, grid.block_bytes)[:, head:]
    assert not ((nibbles & 15 == 8) | (nibbles >> 4 == 8)).any()
    raw = np.full((1, grid.block_bytes), 0x88, np.uint8)
    raw[:, :head] = 100
    assert (unpack(grid, raw).dequantise() == 0).all()


def test_codes_outside_the_grid_are_refused() -> None:
    for grid in GRIDS.values():
        matrix = random_matrix(grid, 2, 1, 0)
        for outside in (grid.low - 1, grid.high + 1):
            if -129 < outside < 128:
                codes = matrix.codes.clone()
                codes[1, 3] = outside
                with pytest.raises(ModelError, match="outside the grid"):
                    pack(replace(matrix, codes=codes))


@pytest.mark.parametrize(
    ("grid", "field", "value"),
    [
        (Q4_0, 0, torch.inf),
        (Q4_0, 0, torch.nan),
        (Q4_K, 2, -torch.inf),
        (Q4_K, 1, 64),
        (Q4_K, 3, -1),
        (Q3_K, 1, 32),
        (MXFP4, 0, 253),
        (NVFP4, 0, 127),
        (NVFP4, 0, 128),
    ],
)
def test_numbers_that_no_file_can_hold_are_refused(grid: BlockGrid, field: int, value: float) -> None:
    matrix = random_matrix(grid, 2, 2, 0)
    own = [stored.clone() for stored in matrix.numbers]
    own[field][1, 1] = value
    with pytest.raises(ModelError, match="out of range or not finite"):
        pack(replace(matrix, numbers=tuple(own)))


def test_the_limits_are_the_last_numbers_whose_weights_are_finite() -> None:
    most = torch.tensor([LIMITS[POWER_OF_TWO][1], LIMITS[POWER_OF_TWO][1] + 1], dtype=torch.uint8)
    assert torch.isfinite(POWER_OF_TWO.value(most) * 12).tolist() == [True, False]
    most = torch.tensor([LIMITS[UNSIGNED_E4M3][1], LIMITS[UNSIGNED_E4M3][1] + 1], dtype=torch.uint8)
    assert torch.isfinite(UNSIGNED_E4M3.value(most)).tolist() == [True, False]


def test_shapes_types_and_grids_that_form_no_blocks_are_refused() -> None:
    matrix = random_matrix(Q4_K, 2, 2, 0)
    with pytest.raises(ModelError, match="do not form blocks of 256"):
        pack(replace(matrix, codes=matrix.codes[:, :300]))
    with pytest.raises(ModelError, match="do not form blocks of 256"):
        pack(replace(matrix, numbers=matrix.numbers[:2]))
    with pytest.raises(ModelError, match=r"float32, torch\.float16 is stored"):
        pack(replace(matrix, numbers=(matrix.numbers[0].float(), *matrix.numbers[1:])))
    with pytest.raises(ModelError, match="no packer for Q9"):
        pack(replace(matrix, grid=replace(Q4_K, name="Q9")))
    with pytest.raises(ModelError, match="do not form IQ4_NL blocks of 18 bytes"):
        unpack(IQ4_NL, np.zeros((2, 19), np.uint8))


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_packing_holds_some_rows_at_a_time_and_the_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = random_matrix(GRIDS[name], 300, 4096 // GRIDS[name].block, 0)
    at_once = pack(matrix)
    monkeypatch.setattr(packing, "WEIGHTS_AT_ONCE", 7 * 4096 + 5)
    tracemalloc.start()
    try:
        found = pack(matrix)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, at_once)
    assert peak < matrix.stored_bytes + 8 * packing.WEIGHTS_AT_ONCE
