"""Named tensors on the wire, as safetensors bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from edgetune.core.errors import DataError, DigestError
from edgetune.core.update import FLOATS, Dense, Update


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

    def decode(self, body: bytes, like: Update | None = None) -> Dense:
        """Return the update.

        Args:
            body: safetensors bytes.
            like: where given, names, shapes and types must be its own: a message cannot change what is tuned.

        Raises:
            DigestError: if the bytes are not safetensors, hold anything but floats, or do not fit `like`.
        """
        try:
            found = load(body)
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise DigestError(f"not named tensors: {str(error)[:200]}") from error
        for name, tensor in found.items():
            if tensor.dtype not in FLOATS:
                raise DigestError(f"a tensor of type {tensor.dtype}", where=name[:200])
        if like is not None and _described(like) != _described(Dense(found)):
            raise DigestError("the tensors are not the tuned ones, by name, shape and type")
        return Dense(found)


def _described(update: Update) -> dict[str, tuple[torch.Size, torch.dtype]] | None:
    if not isinstance(update, Dense):
        return None
    return {name: (tensor.shape, tensor.dtype) for name, tensor in update.tensors.items()}
