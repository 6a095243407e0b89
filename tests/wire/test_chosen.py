"""Slopes of directions that a device chose, and states that say what their last step was."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.errors import DigestError
from edgetune.core.update import Projected, Stepped
from edgetune.wire import Float16, Known, Slopes, Terms
from edgetune.wire.log8 import Log8
from edgetune.wire.values import Values

KEYS = [900 - 7 * index for index in range(40)]
CHOSEN = Known(keys=KEYS, chosen=6)


def of(places: list[int]) -> Projected:
    numbers = np.array([index / 8 - 1 for index in range(len(places))], np.float32)
    return Projected(np.array([KEYS[place] for place in places], np.int64), numbers)


@pytest.mark.parametrize("values", [Slopes().values, Float16(), Log8()], ids=str)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 39), max_size=6, unique=True))
def test_slopes_name_their_directions_by_place(values: Values, places: list[int]) -> None:
    codec, ascending = Slopes(values), sorted(places)
    body = codec.encode(of(ascending), CHOSEN)
    found = codec.decode(body, CHOSEN)
    assert found.keys.tolist() == [KEYS[place] for place in ascending]
    assert np.array_equal(found.coefficients, values.settle(of(ascending).coefficients))
    assert len(body) == 4 + len(places) + 1 + values.width * len(places)


def test_the_bytes_are_those_of_the_format() -> None:
    body = Slopes().encode(of([0, 3, 39]), CHOSEN)
    assert body == struct.pack("<I3Bb3f", 3, 0, 2, 35, 0, -1.0, -0.875, -0.75)
    far = Known(keys=list(range(300)), chosen=1)
    assert Slopes().encode(Projected.of(299, 1.0), far)[:6] == struct.pack("<I2B", 1, 0x80 | 0x2B, 2)
    assert 0x2B + (2 << 7) == 299


def test_what_no_device_writes_is_refused() -> None:
    codec, body = Slopes(), Slopes().encode(of([0, 3, 39]), CHOSEN)
    wrong = {
        "more than are taken": codec.encode(of(list(range(7))), Known(keys=KEYS, chosen=9)),
        "beyond the last": struct.pack("<I2Bb2f", 2, 0, 39, 0, 1.0, 2.0),
        "a longer difference": struct.pack("<I3Bb2f", 2, 0x80, 0, 2, 0, 1.0, 2.0),
        "no number": struct.pack("<IBbf", 1, 0, 0, float("nan")),
        "cut": body[:-1],
        "longer": body + b"\0",
        "nothing": b"",
        "no end": struct.pack("<I", 2) + b"\xff" * 9,
        "a count of all": struct.pack("<I", 0xFFFFFFFF) + b"\0" * 20,
    }
    for damaged in wrong.values():
        with pytest.raises(DigestError, match="at most 6 of 40"):
            codec.decode(damaged, CHOSEN)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_slopes_or_refused(body: bytes) -> None:
    try:
        found = Slopes().decode(body, CHOSEN)
    except DigestError:
        return
    assert Slopes().encode(found, CHOSEN) == body


def test_a_state_says_what_its_last_step_was() -> None:
    codec, held = Terms(), Projected(np.arange(3), np.ones(3, np.float32))
    state = held + Projected(np.arange(10, 14), np.full(4, 0.5, np.float32))
    marked = Stepped(state.keys, state.coefficients, 4)
    for known in (Known(), Known(held=held, since=1, round=2)):
        plain, more = codec.encode(state, known), codec.encode(marked, known)
        assert more == plain + struct.pack("<I", 4)
        found = codec.decode(more, known)
        assert isinstance(found, Stepped)
        assert (found.last, found.equals(state)) == (4, True)
        assert found.step.keys.tolist() == [10, 11, 12, 13]
        assert not isinstance(codec.decode(plain, known), Stepped)
        for last in (0, 8, 2**32 - 1):
            with pytest.raises(DigestError, match="a step of"):
                codec.decode(plain + struct.pack("<I", last), known)
