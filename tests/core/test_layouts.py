"""Integers in words and the layouts of GPTQ and compressed-tensors, both ways."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.errors import ModelError
from edgetune.core.fitting import fitting
from edgetune.core.gptq import Gptq, gptq_tensors
from edgetune.core.integers import INTEGERS
from edgetune.core.pack_quantized import PackQuantized, pack_quantized_tensors
from edgetune.core.quantised import Q4_0, QuantisedMatrix
from edgetune.core.words import from_words, to_words


def drawn(name: str, rows: int, columns: int, seed: int = 0) -> QuantisedMatrix:
    """A matrix on an integer grid with codes and numbers at random, the extremes among them."""
    luck = torch.Generator().manual_seed(seed)
    grid = fitting(INTEGERS[name], columns)
    assert grid is not None
    codes = torch.randint(grid.low, grid.high + 1, (rows, columns), generator=luck).to(torch.int8)
    codes[0, :2] = torch.tensor([grid.low, grid.high])
    scales = torch.rand(rows, columns // grid.group, generator=luck).to(grid.scale[0].number.dtype) + 0.01
    zeros = torch.randint(grid.low, grid.high + 1, scales.shape, generator=luck).to(torch.int8)
    return QuantisedMatrix(grid, codes, (scales, zeros) if grid.tied else (scales,))


def bits_of(matrix: QuantisedMatrix) -> int:
    return (matrix.grid.high - matrix.grid.low).bit_length()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(bits=st.integers(1, 8), rows=st.integers(1, 4), count=st.integers(1, 70), seed=st.integers(0, 999))
def test_words_are_one_stream_of_bits_a_row(bits: int, rows: int, count: int, seed: int) -> None:
    values = torch.randint(0, 1 << bits, (rows, count), generator=torch.Generator().manual_seed(seed))
    words = to_words(values, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, -(-count * bits // 32))
    for row, found in zip(values.tolist(), words.tolist(), strict=True):
        number = sum((word & 0xFFFFFFFF) << 32 * place for place, word in enumerate(found))
        assert number == sum(value << bits * place for place, value in enumerate(row))
    assert torch.equal(from_words(words, bits, count).long(), values)


@pytest.mark.parametrize("columns", [256, 384])
@pytest.mark.parametrize("name", INTEGERS)
def test_what_is_packed_is_read_back_bit_for_bit(name: str, columns: int) -> None:
    matrix = drawn(name, 64, columns)
    reader = PackQuantized(bits_of(matrix), not matrix.grid.tied)
    assert torch.equal(reader.matrix(pack_quantized_tensors(matrix), "w").dequantise(), matrix.dequantise())
    if matrix.grid.tied:
        with pytest.raises(ModelError, match="no place in a GPTQ"):
            gptq_tensors(matrix)
    else:
        reader_of_gptq = Gptq(bits_of(matrix), ordered=True, lift=1)
        assert torch.equal(reader_of_gptq.matrix(gptq_tensors(matrix), "w").dequantise(), matrix.dequantise())


def test_a_grid_of_gguf_has_no_place_in_either() -> None:
    matrix = QuantisedMatrix(Q4_0, torch.zeros(32, 32, dtype=torch.int8), (torch.ones(32, 1).half(),))
    for write in (gptq_tensors, pack_quantized_tensors):
        with pytest.raises(ModelError, match="Q4_0"):
            write(matrix)


@pytest.mark.parametrize("name", [one for one in INTEGERS if not one.endswith("bf16")])
def test_the_library_of_compressed_tensors_reads_the_same_weights(name: str) -> None:
    compressors = pytest.importorskip(
        "compressed_tensors.compressors", reason="install edgetune[compressed-tensors]"
    )
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    matrix = drawn(name, 40, 256, seed=1)
    group = None if "row" in name else matrix.grid.group
    args = QuantizationArgs(
        num_bits=bits_of(matrix), type="int", symmetric=not matrix.grid.tied,
        strategy="channel" if group is None else "group", group_size=group,
    )  # fmt: skip
    tensors = pack_quantized_tensors(matrix)
    # In float32, as transformers loads a model that is asked for in float32: then nothing is rounded.
    wide = tensors | {"weight_scale": tensors["weight_scale"].float()}
    read = compressors.PackedQuantizationCompressor.decompress(
        wide, QuantizationScheme(targets=["Linear"], weights=args)
    )
    assert torch.equal(read["weight"], matrix.dequantise())
    again = compressors.pack_quantized.pack_to_int32(matrix.codes, bits_of(matrix))
    assert torch.equal(again, tensors["weight_packed"])
