"""Messages of the layers that changed: the sender's bits arrive, and nothing but what is written is read."""

from __future__ import annotations

import pytest
import torch

from edgetune.core.errors import DigestError
from edgetune.core.pieces import Piece
from edgetune.core.update import Dense
from edgetune.wire import Changed, Known

LAYERS = ((Piece("a"),), (Piece("p", 0, 2),), (Piece("p", 2, 4),))
HELD = Dense({"a": torch.tensor([-0.0, 1.0]), "p": torch.tensor([[1.0, 2.0, 3.0, -0.0]])})
KNOWN = Known(held=HELD, layers=LAYERS)


def bits(state: Dense) -> dict[str, bytes]:
    return {name: one.numpy().tobytes() for name, one in state.tensors.items()}


@pytest.mark.parametrize("name", ["a", "p"])
def test_a_change_of_nothing_but_the_sign_of_zero_arrives(name: str) -> None:
    """Adding 0 to -0 gives 0, and states are named by their bits."""
    state = Dense({**HELD.tensors, name: HELD.tensors[name] + 0.0})
    assert bits(state) != bits(HELD)
    assert bits(Changed().decode(Changed().encode(state, KNOWN), KNOWN)) == bits(state)


def test_layers_that_are_not_there_or_did_not_change_are_refused() -> None:
    state = Dense({**HELD.tensors, "a": torch.tensor([5.0, 6.0])})
    body = Changed().encode(state, KNOWN)
    assert body[0] == 0b10000000
    for first in (0b10010000, 0b00000000, 0b11000000, 0b01000000):
        with pytest.raises(DigestError):
            Changed().decode(bytes([first]) + body[1:], KNOWN)
    with pytest.raises(DigestError):
        Changed().decode(b"", KNOWN)
    moved = Dense({name: one + 9 for name, one in HELD.tensors.items()})
    with pytest.raises(DigestError, match="is the one"):
        Changed().decode(Changed().encode(moved, KNOWN), Known(held=moved, layers=LAYERS))
