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
from edgetune.wire import DOWN, UP, Codec, Coefficients, Float16, Float32, Frame, Known, Log, Table, Tensors
from edgetune.wire.frame import OVERHEAD
from edgetune.wire.values import Values
from edgetune.wire.varint import read_steps, write_steps

examples = settings(derandomize=True, deadline=None, max_examples=60)
floats = st.floats(width=32, allow_nan=False, allow_infinity=True)
KINDS = [Float32(), Float16()]
METHOD, BASE = b"m" * 8, b"b" * 8
FRAME = Frame(UP, METHOD, BASE, 7, b"body of the message")
EXPECTED = {"kind": UP, "method": METHOD, "base": BASE}


def sums(update: Projected) -> dict[int, float]:
    merged = update.merged()
    pairs = zip(merged.keys.tolist(), merged.coefficients.tolist(), strict=True)
    return {key: value for key, value in pairs if value}


def made(keys: list[int], values: list[float]) -> Projected:
    return Projected(np.array(keys, np.int64), np.array(values, np.float32))


def known(size: int, held: Projected | None = None) -> Known:
    return Known(size=size, held=held, since=0 if held is None else 1, round=2)


@examples
@given(st.integers(1, 300) | st.sampled_from([1 << 16, (1 << 16) + 1]), st.sampled_from(KINDS), st.data())
def test_a_table_comes_back_in_the_shortest_form(size: int, kind: Values, data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.integers(0, size - 1), max_size=120, unique=True))
    codec = Table(kind)
    update = codec.settle(made(keys, [data.draw(floats) for _ in keys]))
    held = codec.settle(made(keys[::2], [data.draw(floats) for _ in keys[::2]]))
    for known_to in (known(size), known(size, held)):
        body = codec.encode(update, known_to)
        assert sums(codec.decode(body, known_to)) == sums(update)
        old = sums(held) if known_to.held else {}
        moved = sum(sums(update).get(key, 0.0) != old.get(key, 0.0) for key in range(size))
        width = kind.width
        assert len(body) <= 6 + min(size * width, moved * (width + 3), -(-size // 8) + moved * width)


def test_the_three_forms_are_those_of_the_page() -> None:
    codec = Table(Float32())
    numbers = np.arange(1, 33, dtype=np.float32)
    whole = codec.encode(made(list(range(32)), numbers.tolist()), known(32))
    assert whole == struct.pack("<BbI", 0, 0, 32) + numbers.tobytes()
    half = codec.encode(made(list(range(0, 32, 2)), numbers[::2].tolist()), known(32))
    assert half == struct.pack("<BbI", 1, 0, 16) + b"\x55" * 4 + numbers[::2].tobytes()
    few = codec.encode(made([3, 200, 201], [1.0, 2.0, 3.0]), known(4096))
    assert few == struct.pack("<BbI4B3f", 2, 0, 3, 3, 0x80 | 0x44, 1, 0, 1.0, 2.0, 3.0)
    assert 0x44 + (1 << 7) == 200 - 3 - 1


@examples
@given(st.lists(st.integers(0, (1 << 20) - 1), max_size=60, unique=True))
def test_steps_between_places_come_back(places: list[int]) -> None:
    ascending = np.array(sorted(places), np.int64)
    said = write_steps(ascending)
    found = read_steps(said, len(places))
    assert found is not None
    assert found.tolist() == ascending.tolist()
    assert read_steps(said, len(places) + 1) is None


@examples
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50))
def test_half_precision_has_its_stated_error_and_settles_once(numbers: list[float]) -> None:
    given = np.array(numbers, np.float32)
    found = Float16().settle(given)
    again = Float16().settle(found)
    assert np.array_equal(found, again)
    assert Float16().scale(found) == Float16().scale(again)
    wide = np.abs(given).astype(np.float64)
    error = np.abs(found.astype(np.float64) - given)
    assert (error <= np.maximum(wide * 2.0**-11, wide.max() * 2.0**-39 + 2.0**-149)).all()
    assert np.array_equal(Float32().settle(given), given)


def test_tiny_coefficients_are_not_rounded_to_nothing() -> None:
    tiny = np.array([1e-12, -3e-12, 2.5e-15], np.float32)
    assert np.allclose(Float16().settle(tiny), tiny, rtol=2**-11, atol=0)
    assert not tiny.astype(np.float16).any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_devices_coefficients_travel_without_their_directions(kind: Values) -> None:
    codec, mine = Coefficients(kind), Known(keys=[30, 10, 30, 20, 10, 5])
    update = made([10, 20, 30, 10], [1, 2, 4, 0.5])
    body = codec.encode(update, mine)
    assert len(body) == 1 + kind.width * 4
    found = codec.decode(body, mine)
    assert found.keys.tolist() == [30, 10, 20]
    assert found.coefficients.tolist() == [4, 1.5, 2]
    with pytest.raises(DataError, match="none of this device's"):
        codec.encode(made([7], [1.0]), mine)
    with pytest.raises(DigestError, match="4 directions"):
        codec.decode(body + b"\0", mine)


def test_a_reply_that_is_no_number_arrives_and_is_seen() -> None:
    for kind in KINDS:
        codec, mine = Coefficients(kind), Known(keys=[1, 2])
        for bad in (float("nan"), float("inf")):
            assert not codec.decode(codec.encode(made([1], [bad]), mine), mine).is_finite


def keys_of(round: int, device: int) -> list[int]:
    return [1000 * round + 10 * device + step for step in (3, 1, 2, 1)]


@examples
@given(st.integers(0, 4), st.integers(0, 4), st.data())
def test_a_log_says_the_missed_rounds_alone(since: int, missed: int, data: st.DataObject) -> None:
    asked = {round: sorted(data.draw(st.sets(st.integers(0, 9), max_size=3))) for round in range(1, 9)}
    terms: dict[int, list[Projected]] = {}
    for round in range(1, since + missed + 1):
        terms[round] = []
        for device in asked[round]:
            taken = [key for key in dict.fromkeys(keys_of(round, device)) if data.draw(st.booleans())]
            terms[round].append(made(taken, [float(key) for key in taken]))
    held = Projected.chain([one for round in range(1, since + 1) for one in terms[round]])
    whole = Projected.chain([one for said in terms.values() for one in said])
    there = Known(round=since + missed, since=since, held=held, asked=asked.__getitem__, keys_of=keys_of)
    body = Log().encode(whole, there)
    reader = Known(round=since + missed, since=since, held=held, keys_of=keys_of)
    assert Log().decode(body, reader).equals(whole)
    counted = sum(len(one.keys) > 0 for round in range(since + 1, since + missed + 1) for one in terms[round])
    assert len(body) == 4 * missed + counted * (4 + 3 * 4)


def test_a_log_of_other_steps_is_refused() -> None:
    there = Known(round=1, asked=lambda round: [2, 5], keys_of=keys_of)
    body = Log().encode(made([1023, 1052], [1.0, 2.0]), there)
    reader = Known(round=1, keys_of=keys_of)
    with pytest.raises(DataError, match="none of rounds 1 to 1"):
        Log().encode(made([1052, 1023], [1.0, 2.0]), there)
    swapped = body[:4] + body[20:] + body[4:20]
    empty = struct.pack("<II3f", 1, 2, *[float("nan")] * 3)
    for wrong in (b"", body[:-1], body + b"\0", struct.pack("<I", 9) + body[4:], swapped, empty):
        with pytest.raises(DigestError):
            Log().decode(wrong, reader)


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
    for size in (8, 4096):
        for codec in (Table(Float32()), Table(Float16())):
            assert sums(codec.decode(codec.encode(update, known(size)), known(size))) == {3: 5, 1: 2}


@pytest.mark.parametrize("codec", [Table(), Log(), Coefficients()], ids=str)
def test_codecs_of_coefficients_refuse_tensors_and_tensors_refuse_them(codec: Codec) -> None:
    with pytest.raises(DataError):
        codec.encode(Dense({}), known(8))
    with pytest.raises(DataError):
        Tensors().encode(made([], []))


@pytest.mark.parametrize("key", [-1, 8])
def test_a_key_outside_the_pool_is_refused(key: int) -> None:
    with pytest.raises(DataError, match="outside"):
        Table().encode(made([key], [1.0]), known(8))


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        (Table(), b""),
        (Table(), b"\0" * 32),
        (Table(), struct.pack("<BbI", 3, 0, 0)),
        (Table(), struct.pack("<BbI", 1, 0, 2) + b"\0" * 6),
        (Table(), struct.pack("<BbIBf", 2, 0, 1, 8, 1.0)),
        (Table(), struct.pack("<BbIBBff", 2, 0, 2, 3, 5, 1.0, 1.0)),
        (Table(), struct.pack("<BbIBf", 2, 0, 1, 3, 1.0)),
        (Table(), struct.pack("<BbIBf", 1, 0, 1, 8, 0.0)),
        (Table(), struct.pack("<BbIBf", 1, 1, 1, 8, 1.0)),
        (Table(), struct.pack("<BbIBBBBf", 2, 0, 1, 0x80, 0x80, 0x80, 1, 1.0)),
        (Table(), struct.pack("<BbI8f", 0, 0, 8, 1, 0, 0, 0, 0, 0, 0, 0)),
        (Table(), struct.pack("<BbI7f", 0, 0, 7, 1, 2, 3, 4, 5, 6, 7)),
        (Table(), struct.pack("<BbI", 1, 0, 2**32 - 1)),
        (Table(Float16()), struct.pack("<BbI8e", 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8)),
        (Log(), b"\0" * 13),
        (Log(), struct.pack("<Iqf", 1, -1, 1.0)),
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
def test_impossible_bodies_are_refused(codec: Codec, body: bytes) -> None:
    with pytest.raises(DigestError):
        codec.decode(body, known(8))


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
    assert (
        Tensors().decode(Tensors().encode(Dense({"a": torch.ones(2)})), Known(like=like)).tensors["a"].sum()
        == 2
    )
    with pytest.raises(DigestError, match="not the tuned ones"):
        Tensors().decode(Tensors().encode(Dense(other)), Known(like=like))


def test_a_reserved_byte_is_zero() -> None:
    head = struct.pack("<4sBB8s8sII", b"ETN1", UP, 9, METHOD, BASE, 7, 0)
    with pytest.raises(DigestError, match="later format"):
        Frame.decode(head + struct.pack("<I", zlib.crc32(head)), **EXPECTED)  # type: ignore[arg-type]
