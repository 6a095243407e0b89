"""Named tensors on the wire, as safetensors bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from edgetune.core.errors import DataError, DigestError
from edgetune.core.part import GRADIENTS
from edgetune.core.residual import folded, misfit, residuals, trained
from edgetune.core.update import FLOATS, Dense, Update
from edgetune.wire.codec import Codec, U
from edgetune.wire.known import Known


@dataclass(frozen=True, slots=True)
class Tensors(Codec):
    """A codec for dense updates: safetensors, never pickle.

    Cost: the tensors' bytes and a JSON header of about 100 bytes a tensor.
    """

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "named tensors"

    @property
    def needs(self) -> frozenset[str]:
        """Gradients: along directions a coefficient says it all."""
        return frozenset({GRADIENTS})

    def encode(self, update: Update, known: Known | None = None) -> bytes:
        """Return the safetensors bytes; what is known plays no part.

        Raises:
            DataError: if the update is projected.
        """
        if not isinstance(update, Dense):
            raise DataError("this codec carries dense updates only")
        return save({name: tensor.detach().contiguous().cpu() for name, tensor in update.tensors.items()})

    def decode(self, body: bytes, known: Known | None = None) -> Dense:
        """Return the update.

        Args:
            body: safetensors bytes.
            known: names, shapes and types must be those of its `like`: a message cannot change what is tuned. A state
                may bring residuals of the base beneath those tensors.

        Raises:
            DigestError: if the bytes are not safetensors, hold anything but floats, or do not fit.
        """
        try:
            found = load(body)
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise DigestError(f"not named tensors: {str(error)[:200]}") from error
        for name, tensor in found.items():
            if tensor.dtype not in FLOATS:
                raise DigestError(f"a tensor of type {tensor.dtype}", where=name[:200])
        like = known.like if known is not None else None
        if isinstance(like, Dense):
            own, added = trained(like), residuals(Dense(found))
            allowed = added if known is not None and known.is_state else {}
            rest = Dense({name: one for name, one in found.items() if name not in allowed})
            if _described(own) != _described(rest):
                raise DigestError("the tensors are not the tuned ones, by name, shape and type")
            if wrong := misfit(allowed, own.tensors):
                raise DigestError("a residual of no tuned layer", where=wrong[:200])
        return Dense(found)

    def settle(self, update: U) -> U:
        """Return the update with residuals in the smaller of their two forms."""
        return cast(U, folded(update)) if isinstance(update, Dense) and residuals(update) else update


def _described(update: Update) -> dict[str, tuple[torch.Size, torch.dtype]] | None:
    if not isinstance(update, Dense):
        return None
    return {name: (tensor.shape, tensor.dtype) for name, tensor in update.tensors.items()}


def half_length(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the bytes that `Tensors` takes for tensors in float16, without any.

    Args:
        shapes: of the tensors, by name.
    Source: the format of safetensors: a length of 8 bytes, JSON filled up to a multiple of 8, the numbers.
    """
    head, end = dict[str, Any](), 0
    for name, shape in sorted(shapes.items()):
        start, end = end, end + 2 * prod(shape)
        head[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    said = len(json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-said // 8) * 8 + end
