"""Codecs and the frame around them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.errors import DataError, DigestError
from edgetune.core.update import Dense, Projected
from edgetune.wire import DOWN, UP, Frame, SeedList, SeedTable, Tensors
from edgetune.wire.frame import OVERHEAD

examples = settings(derandomize=True, deadline=None, max_examples=60)
floats = st.floats(width=32, allow_nan=False, allow_infinity=True)
METHOD, BASE = b"m" * 8, b"b" * 8
FRAME = Frame(UP, METHOD, BASE, 7, b"body of the message")
EXPECTED = {"kind": UP, "method": METHOD, "base": BASE}


def sums(update: Projected) -> dict[int, float]:
    merged = update.merged()
    pairs = zip(merged.keys.tolist(), merged.coefficients.tolist(), strict=True)
    return {key: value for key, value in pairs if value}


def made(keys: list[int], values: list[float]) -> Projected:
    return Projected(np.array(keys, np.int64), np.array(values, np.float32))


@examples
@given(st.integers(1, 300) | st.sampled_from([1 << 16, (1 << 16) + 1]), st.data())
def test_a_seed_table_comes_back_in_the_shorter_form(size: int, data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.integers(0, size - 1), max_size=120, unique=True))
    update = made(keys, [data.draw(floats) for _ in keys])
    body = SeedTable(size).encode(update)
    assert sums(SeedTable(size).decode(body)) == sums(update)
    width = 6 if size <= 1 << 16 else 8
    moved = np.count_nonzero(update.coefficients)
    assert len(body) == min(1 + 4 * size, 5 + width * moved)


@examples
@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), floats), max_size=50, unique_by=lambda pair: pair[0]))
def test_a_seed_list_comes_back_in_order(terms: list[tuple[int, float]]) -> None:
    update = made([key for key, _ in terms], [value for _, value in terms])
    body = SeedList().encode(update)
    found = SeedList().decode(body)
    assert found.keys.tolist() == update.keys.tolist()
    assert np.array_equal(found.coefficients, update.coefficients)
    assert len(body) == 12 * len(terms)


@examples
@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=6), st.lists(st.integers(0, 4), max_size=3), max_size=4
    ),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_tensors_come_back_bit_for_bit(shapes: dict[str, list[int]], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    found = Tensors().decode(Tensors().encode(Dense(tensors))).tensors
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], one) and found[name].dtype == dtype for name, one in tensors.items())


def test_equal_keys_are_added_before_they_travel() -> None:
    update = made([3, 1, 3], [1, 2, 4])
    for codec in (SeedTable(8), SeedTable(4096)):
        assert sums(codec.decode(codec.encode(update))) == {3: 5, 1: 2}


def test_a_seed_list_keeps_the_order_of_the_steps_and_names_no_seed_twice() -> None:
    found = SeedList().decode(SeedList().encode(made([30, 10, 20], [1, 2, 4])))
    assert found.keys.tolist() == [30, 10, 20]
    assert found.coefficients.tolist() == [1, 2, 4]
    with pytest.raises(DigestError):
        SeedList().decode(SeedList().encode(made([30, 10, 30], [1, 2, 4])))


@pytest.mark.parametrize("codec", [SeedTable(8), SeedList()], ids=str)
def test_seed_codecs_refuse_tensors_and_tensors_refuse_seeds(codec: SeedTable | SeedList) -> None:
    with pytest.raises(DataError):
        codec.encode(Dense({}))
    with pytest.raises(DataError):
        Tensors().encode(made([], []))


@pytest.mark.parametrize("key", [-1, 8])
def test_a_key_outside_the_pool_is_refused(key: int) -> None:
    with pytest.raises(DataError, match="outside"):
        SeedTable(8).encode(made([key], [1.0]))


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        (SeedTable(8), b""),
        (SeedTable(8), b"\0" * 32),
        (SeedTable(8), b"\2" + b"\0" * 32),
        (SeedTable(8), struct.pack("<BI", 1, 2) + b"\0" * 6),
        (SeedTable(8), struct.pack("<BIHf", 1, 1, 8, 1.0)),
        (SeedTable(8), struct.pack("<BIHHff", 1, 2, 3, 3, 1.0, 1.0)),
        (SeedTable(8), struct.pack("<BIHHff", 1, 2, 3, 1, 1.0, 1.0)),
        (SeedTable(8), struct.pack("<BIHf", 1, 1, 3, 0.0)),
        (SeedTable(8), struct.pack("<BIHf", 1, 1, 3, -0.0)),
        (SeedTable(8), struct.pack("<B8f", 0, 1, 0, 0, 0, 0, 0, 0, 0)),
        (SeedTable(8), struct.pack("<B8f", 0, 1, 2, 3, 4, 5, 6, 7, -0.0)),
        (SeedList(), struct.pack("<qqff", 4, 4, 1.0, 1.0)),
        (SeedTable(8), struct.pack("<BI", 1, 2**32 - 1)),
        (SeedList(), b"\0" * 13),
        (SeedList(), struct.pack("<qf", -1, 1.0)),
        (Tensors(), b""),
        (Tensors(), b"\x80\x04pickled"),
        (Tensors(), Tensors().encode(Dense({"a": torch.ones(3)}))[:-1]),
        (Tensors(), Tensors().encode(Dense({"a": torch.ones(3).double()}))),
        (Tensors(), Tensors().encode(Dense({"a": torch.ones(3, dtype=torch.complex64)}))),
        (Tensors(), Tensors().encode(Dense({"a": torch.ones(3).to(torch.float8_e5m2)}))),
        (Tensors(), Tensors().encode(Dense({"a": torch.ones(3, dtype=torch.bool)}))),
        (Tensors(), struct.pack("<Q", 60000) + b"[" * 60000),
        (Tensors(), struct.pack("<Q", 2**62)),
    ],
)
def test_impossible_bodies_are_refused(codec: SeedTable | SeedList | Tensors, body: bytes) -> None:
    with pytest.raises(DigestError):
        codec.decode(body)


@examples
@given(st.binary(max_size=100), st.integers(0, 2**32 - 1))
def test_a_frame_comes_back_and_costs_34_bytes(body: bytes, round: int) -> None:
    frame = Frame(DOWN, METHOD, BASE, round, body)
    payload = frame.encode()
    assert len(payload) - len(body) == OVERHEAD == 34
    assert Frame.decode(payload, kind=DOWN, method=METHOD, base=BASE) == frame


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    payload = FRAME.encode()
    for bit in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DigestError):
            Frame.decode(bytes(damaged), **EXPECTED)
    for length in range(len(payload)):
        with pytest.raises(DigestError):
            Frame.decode(payload[:length], **EXPECTED)
    with pytest.raises(DigestError):
        Frame.decode(payload + b"\0", **EXPECTED)


@pytest.mark.parametrize(
    ("other", "message"),
    [({"kind": DOWN}, "direction"), ({"method": b"x" * 8}, "method"), ({"base": b"x" * 8}, "base model")],
)
def test_a_sound_frame_that_belongs_elsewhere_is_refused(other: dict[str, object], message: str) -> None:
    with pytest.raises(DigestError, match=message):
        Frame.decode(FRAME.encode(), **(EXPECTED | other))


def test_the_layout_is_as_published() -> None:
    head = struct.pack("<4sBB8s8sII", b"ETN1", 2, 0, METHOD, BASE, 7, len(FRAME.body))
    assert FRAME.encode() == head + FRAME.body + struct.pack("<I", zlib.crc32(head + FRAME.body))


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.ones(3)},
        {"b": torch.ones(2)},
        {"a": torch.ones(2), "b": torch.ones(2)},
        {"a": torch.ones(2).half()},
        {"a": torch.ones(1, 2)},
        {},
    ],
)
def test_tensors_must_be_those_of_the_state(other: dict[str, torch.Tensor]) -> None:
    like = Dense({"a": torch.zeros(2)})
    assert Tensors().decode(Tensors().encode(Dense({"a": torch.ones(2)})), like).tensors["a"].sum() == 2
    with pytest.raises(DigestError, match="not the tuned ones"):
        Tensors().decode(Tensors().encode(Dense(other)), like)


def test_a_reserved_byte_is_zero() -> None:
    head = struct.pack("<4sBB8s8sII", b"ETN1", UP, 9, METHOD, BASE, 7, 0)
    with pytest.raises(DigestError, match="later format"):
        Frame.decode(head + struct.pack("<I", zlib.crc32(head)), **EXPECTED)  # type: ignore[arg-type]
