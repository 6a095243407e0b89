"""A byte or a bit a number: every code is used, the error is the stated one, and a message has one form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.errors import DataError, DigestError
from edgetune.core.update import Projected
from edgetune.wire import Float16, Known, Log, Log8, Sign, Slopes
from edgetune.wire.values import Values

examples = settings(derandomize=True, deadline=None, max_examples=80)
NAN = float("nan")


def numbers(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_all_256_codes_of_a_byte_are_different_numbers_that_come_back() -> None:
    found = Log8().decode(bytes(range(256)), 0, 256)
    assert len({*found[~np.isnan(found)].tolist()}) == 255
    assert np.isnan(found).sum() == 1
    assert Log8().encode(found, 0) == bytes(range(256))


def test_levels_are_the_powers_of_the_sixth_root_of_two() -> None:
    levels = Log8().decode(bytes(range(1, 128)), 0, 127)
    exact = [2.0 ** ((code - 64) / 6) for code in range(1, 128)]
    assert levels == pytest.approx(exact, rel=2**-24)
    assert levels[63] == 1.0
    assert Log8().decode(bytes([127]), 0, 1)[0] == np.float32(2**10.5)
    assert [Log8().decode(bytes([code]), 0, 1).tobytes().hex() for code in (67,)] == ["f304b53f"]


@examples
@given(st.lists(st.floats(2.0**-30, 2.0**40, width=32), min_size=1, max_size=40), st.data())
def test_a_byte_has_its_stated_error_and_settles_at_once(given: list[float], data: st.DataObject) -> None:
    signs = [data.draw(st.sampled_from([-1, 1])) for _ in given]
    exact = numbers(*given) * np.array(signs, np.float32)
    found = Log8().settle(exact)
    assert np.array_equal(Log8().settle(found), found)
    great = np.abs(exact) >= np.abs(exact).max() * 2.0**-21
    root = 2 ** (1 / 6)
    error = np.abs(found.astype(np.float64) / exact - 1)[great]
    assert error.max() <= (root - 1) / (root + 1) + 1e-6 < 0.0578
    assert (np.sign(found) * np.sign(exact) >= 0).all()


def test_the_nearest_level_is_taken() -> None:
    levels = Log8().decode(bytes(range(128)), 0, 128).astype(np.float64)
    for value in np.exp(np.random.default_rng(0).uniform(math.log(7e-4), math.log(1400), 300)).tolist():
        found = float(Log8().decode(Log8().encode(numbers(value), 0), 0, 1)[0])
        assert abs(found - value) == pytest.approx(np.abs(levels - value).min(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("kind", [Log8(), Sign(), Float16()], ids=str)
@examples
@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=False), max_size=30))
def test_what_is_written_is_read_and_nothing_else_is(kind: Values, given: list[float]) -> None:
    body = kind.write(numbers(*given))
    found, end = kind.read(b"before" + body + b"after", len(given), 6)
    assert (
        end == 6 + len(body) == 7 + kind.length(len(given), int.from_bytes(body[:1], "little", signed=True))
    )
    assert np.array_equal(found, kind.settle(numbers(*given)), equal_nan=True)
    assert np.array_equal(np.isnan(found), np.isnan(numbers(*given)))
    for other in range(256):
        changed = bytes([other]) + body[1:]
        if changed != body and given and any(value for value in found.tolist()):
            try:
                again, end = kind.read(changed, len(given))
            except ValueError:
                continue
            assert kind.write(again) == changed[:end]


def test_tiny_numbers_are_nothing_and_absurd_ones_stay_absurd() -> None:
    assert Log8().settle(numbers(1e-20, -1e-30)).tolist() == [0, 0]
    assert np.abs(Log8().settle(numbers(1e30, -3e38))).min() > 1e18


def test_bits_are_packed_eight_a_byte_and_a_step_without_a_slope_takes_a_second_row() -> None:
    signs = numbers(3, -1, 0, -0.0, -2, 1, 1, -1, 5)
    assert Sign().write(signs) == bytes([0, 0b01101101, 0b1])
    assert Sign().settle(signs).tolist() == [1, -1, 1, 1, -1, 1, 1, -1, 1]
    assert Sign().write(numbers(1, NAN, -1)) == bytes([1, 0b001, 0b101])
    for wrong in (b"\x00\xff\xff", b"\x02\x00\x00", b"\x01\x00\xff\xff\x01", b"\x00\x6d"):
        with pytest.raises(ValueError, match=r"written otherwise|too few"):
            Sign().read(wrong, 9)


KEYS = [11, 12, 13, 14]


@pytest.mark.parametrize(("kind", "size"), [(Log8(), 5), (Sign(), 3)], ids=str)
def test_slopes_travel_without_directions_and_a_missing_one_stays_missing(kind: Values, size: int) -> None:
    codec, known = Slopes(kind), Known(KEYS)
    update = Projected(np.array([11, 12, 14]), numbers(1, 0, -2))
    body = codec.encode(update, known)
    assert len(body) == size
    found = codec.decode(body, known)
    assert found.keys.tolist() == [11, 12, 14]
    assert found.coefficients.tolist() == ([1, 0, -2] if kind == Log8() else [1, 1, -1])
    for wrong in (body[:-1], body + b"\0", b""):
        with pytest.raises(DigestError):
            codec.decode(wrong, known)


def test_a_log_of_bytes_says_slopes_and_the_reader_multiplies() -> None:
    factor = np.float32(-0.1 / math.sqrt(5))
    slopes = Log8().settle(numbers(1, 0, -2.3, 40, 0.02))
    state = Projected(np.array([11, 12, 14, 21, 22]), (slopes * factor).astype(np.float32))

    def keys_of(round: int, device: int) -> list[int]:
        return [10 * device + step for step in (1, 2, 3, 4)]

    known = Known(
        round=1, asked=lambda round: [1, 2], keys_of=keys_of, factor=lambda count: -0.1 / math.sqrt(count)
    )
    codec = Log(Log8())
    body = codec.encode(state, known)
    assert len(body) == 4 + 2 * (4 + 1 + 4)
    assert codec.decode(body, known).coefficients.tobytes() == state.coefficients.tobytes()
    with pytest.raises(DataError, match="are not log8 slopes times"):
        codec.encode(Projected(state.keys, state.coefficients * np.float32(1.01)), known)
    with pytest.raises(DigestError):
        codec.decode(body[:4] + body[13:] + body[4:13], known)
