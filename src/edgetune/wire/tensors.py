"""Named tensors on the wire, as safetensors bytes."""

from __future__ import annotations

from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load, save

from edgetune.core.errors import DataError, DigestError
from edgetune.core.update import Dense, Update


@dataclass(frozen=True, slots=True)
class Tensors:
    """A codec for dense updates: safetensors, never pickle.

    Cost: the tensors' bytes and a JSON header of about 100 bytes a tensor.
    """

    def encode(self, update: Update) -> bytes:
        """Return the safetensors bytes.

        Raises:
            DataError: if the update is projected.
        """
        if not isinstance(update, Dense):
            raise DataError("this codec carries dense updates only")
        return save({name: tensor.detach().contiguous().cpu() for name, tensor in update.tensors.items()})

    def decode(self, body: bytes) -> Dense:
        """Return the update.

        Raises:
            DigestError: if the bytes are not safetensors.
        """
        try:
            return Dense(load(body))
        except (SafetensorError, KeyError) as error:
            raise DigestError(f"not named tensors: {error}") from error
