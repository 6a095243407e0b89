"""Files that anyone may have made: read as the reference reader reads them, or refused in one line."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import byte_level, quantise, tiny_llama

from edgetune.core.errors import ModelError
from edgetune.core.gguf_read import read_gguf, read_metadata, read_tensors
from edgetune.core.quantised import Q4_0
from edgetune.export.gguf_file import write_gguf


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_llama(num_hidden_layers=1, vocab_size=384)
    file = tmp_path_factory.mktemp("read") / "good.gguf"
    return write_gguf(file, model, byte_level(), quantised=quantise(model, Q4_0))


def text(value: bytes | str, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: bytes | str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    *parts: bytes,
    pairs: int | None = None,
    tensors: int = 0,
    version: int = 3,
    magic: bytes = b"GGUF",
    data: int = 64,
) -> bytes:
    count = len(parts) - tensors if pairs is None else pairs
    return magic + struct.pack("<IQQ", version, tensors, count) + b"".join(parts) + b"\0" * data


NAME = pair("general.name", 8, text("x"))
REFUSED: dict[str, bytes] = {
    "empty": b"",
    "another format": gguf(magic=b"GGML"),
    "version 1": gguf(version=1),
    "big-endian": gguf(version=3 << 24),
    "2^63 pairs": gguf(pairs=2**63),
    "2^63 tensors": gguf(tensors=2**63, pairs=0),
    "more pairs than bytes": gguf(NAME, pairs=40),
    "a pair cut short": gguf(NAME, pairs=2, data=0),
    "a key of 2^62 bytes": gguf(text("k", 2**62), pairs=1),
    "a key of 70 kB": gguf(pair("k" * 70_000, 4, b"\0" * 4)),
    "a text of 2^62 bytes": gguf(pair("k", 8, text("", 2**62))),
    "a key twice": gguf(NAME, NAME),
    "a key twice, once an array": gguf(NAME, pair("general.name", 9, struct.pack("<IQ", 4, 0))),
    "a text that is not UTF-8": gguf(pair("general.name", 8, text(b"\xff\xfe"))),
    "a key that is not UTF-8": gguf(pair(b"\xff", 8, text("x"))),
    "a value of type 13": gguf(pair("k", 13, b"\0" * 8)),
    "an array of 2^40 numbers": gguf(pair("k", 9, struct.pack("<IQ", 4, 2**40))),
    "an array of 2^61 numbers of 8 bytes": gguf(pair("k", 9, struct.pack("<IQ", 10, 2**61))),
    "an array of 2^40 texts": gguf(pair("k", 9, struct.pack("<IQ", 8, 2**40))),
    "an array of arrays": gguf(pair("k", 9, struct.pack("<IQIQ", 9, 1, 4, 1) + b"\0" * 4)),
    "an array of type 99": gguf(pair("k", 9, struct.pack("<IQ", 99, 1))),
    "alignment 0": gguf(pair("general.alignment", 4, struct.pack("<I", 0))),
    "alignment 33": gguf(pair("general.alignment", 4, struct.pack("<I", 33))),
    "alignment in words": gguf(pair("general.alignment", 8, text("32"))),
    "two tensors of one name": gguf(info("t"), info("t"), tensors=2),
    "a tensor without dimensions": gguf(info("t", ()), tensors=1),
    "a tensor of five dimensions": gguf(info("t", (1,) * 5), tensors=1),
    "an empty tensor": gguf(info("t", (0, 4)), tensors=1),
    "a tensor of 2^62 weights": gguf(info("t", (2**62,)), tensors=1),
    "a tensor whose size overflows": gguf(info("t", (2**63, 2**63)), tensors=1),
    "a tensor behind the end": gguf(info("t", offset=1 << 40), tensors=1),
    "a tensor off its place": gguf(info("t", offset=1), tensors=1),
    "a row that is no whole block": gguf(info("t", (31,), kind=2), tensors=1),
    "a tensor name of 100 bytes": gguf(info("t" * 100), tensors=1),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_damaged_file_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(REFUSED[kind])
    with pytest.raises(ModelError, match=r"bad\.gguf: ") as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_small_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(gguf(NAME, pair("n", 12, struct.pack("<d", 0.5)), info("t", (2, 3)), tensors=1))
    file = read_gguf(path)
    assert file.metadata == {"general.name": "x", "n": 0.5}
    assert [(tensor.name, tensor.shape, tensor.size) for tensor in file.tensors] == [("t", (3, 2), 24)]


def test_it_reads_what_the_reference_reader_reads(good: Path) -> None:
    reference, file = GGUFReader(good), read_gguf(good)
    expected: dict[str, Any] = {
        key: value.contents() for key, value in reference.fields.items() if not key.startswith("GGUF.")
    }
    assert {**file.metadata, **{key: file.array(key) for key in file.arrays}} == expected
    assert file.array("no such key") == []
    assert [
        (tensor.name, tensor.kind, tensor.shape, tensor.offset, tensor.size) for tensor in file.tensors
    ] == [
        (
            one.name,
            int(one.tensor_type),
            tuple(int(size) for size in reversed(one.shape)),
            int(one.data_offset),
            int(one.n_bytes),
        )
        for one in reference.tensors
    ]


def test_tensors_are_dequantised_as_the_reference_does(good: Path) -> None:
    from gguf.quants import dequantize

    found = dict(read_tensors(good))
    for one in GGUFReader(good).tensors:
        expected = dequantize(one.data, one.tensor_type).reshape(found[one.name].shape)
        np.testing.assert_array_equal(found[one.name], expected.astype(np.float32))


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_are_read_or_refused(
    good: Path, tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(good.read_bytes())
    for place, value in changes:
        data[place] = value
    path = tmp_path / "changed.gguf"
    path.write_bytes(data)
    try:
        file = read_gguf(path)
    except ModelError:
        return
    for key in file.arrays:
        assert len(file.array(key)) == file.arrays[key].count
    with contextlib.suppress(ModelError):  # a type that cannot be dequantised
        assert sum(1 for _ in read_tensors(path)) == len(file.tensors)


@pytest.mark.parametrize("length", [3, 4, 11, 23, 24, 100, 4000, 9000])
def test_a_file_cut_short_is_refused(good: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(good.read_bytes()[:length])
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        read_gguf(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (
        tmp_path,
        tmp_path / "pipe.gguf",
        tmp_path / "none.gguf",
        tmp_path / "n\0l",
        tmp_path / ("n" * 300),
    ):
        with pytest.raises(ModelError):
            read_metadata(path)
