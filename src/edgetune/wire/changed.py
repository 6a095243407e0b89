"""The tensors of the layers that changed since a state that the receiver holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from edgetune.core.errors import DataError, DigestError
from edgetune.core.part import CHOSEN_LAYERS, GRADIENTS, TAKEN_OFF
from edgetune.core.pieces import Layer, cut, put
from edgetune.core.update import Dense, Update
from edgetune.wire.codec import Codec
from edgetune.wire.known import Known
from edgetune.wire.tensors import Tensors


@dataclass(frozen=True, slots=True)
class Changed(Codec):
    """Which layers differ from the receiver's, one bit each, and their values as named tensors.

    A newcomer holds the base and the seed's values of its adapter, and gets the layers that ever moved, or all where
    the run begins at others (`Start`).

    Cost: the changed layers' bytes, about 100 a tensor, and ceil(L / 8).
    """

    relative: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "tensors of the layers that changed"

    @property
    def needs(self) -> frozenset[str]:
        """Gradients, and rounds in which some layers stay."""
        return frozenset({GRADIENTS, CHOSEN_LAYERS})

    @property
    def refuses(self) -> frozenset[str]:
        """What is no layer, and no newcomer can compute: it would have to travel, too."""
        return frozenset({TAKEN_OFF})

    def encode(self, update: Update, known: Known) -> bytes:
        """Return the bits, ascending by depth, and the safetensors bytes.

        Raises:
            DataError: if the update is projected, or nothing is known that it could differ from.
        """
        if not isinstance(update, Dense) or not isinstance(known.held, Dense):
            raise DataError("this codec carries changes of dense tensors only")
        moved = [_differs(layer, update, known.held) for layer in known.layers]
        chosen = [layer for layer, moves in zip(known.layers, moved, strict=True) if moves]
        return np.packbits(moved).tobytes() + Tensors().encode(cut(update, chosen))

    def decode(self, body: bytes, known: Known) -> Dense:
        """Return the state; layers that did not change are those that the reader holds.

        Raises:
            DigestError: if the bytes are none that `encode` writes.
        """
        held, size = known.held, -(-len(known.layers) // 8)
        if not isinstance(held, Dense) or len(body) < size:
            raise DigestError("the message is too short to say which layers changed")
        bits = np.unpackbits(np.frombuffer(body[:size], np.uint8))
        if bits[len(known.layers) :].any():
            raise DigestError("the message names layers that the model has not")
        chosen = [layer for layer, moves in zip(known.layers, bits, strict=False) if moves]
        found = Tensors().decode(body[size:], Known(like=cut(held, chosen)))
        state = put(found.tensors, chosen, held)
        if not all(_differs(layer, state, held) for layer in chosen):
            raise DigestError("a layer that is said to have changed is the one that this device holds")
        return state


def _differs(layer: Layer, one: Dense, other: Dense) -> bool:
    """Compare bits, by which states are named: -0 and 0 are equal numbers."""
    return any(
        not torch.equal(_bits(piece.of(one.tensors[piece.name])), _bits(piece.of(other.tensors[piece.name])))
        for piece in layer
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
