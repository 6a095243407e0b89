"""Safetensors bytes that are the same for the same contents."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from safetensors.torch import save

LENGTH = 8
"""Bytes of the header's length, and what the tensors behind the header are aligned to."""
METADATA = "__metadata__"


def saved(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with the metadata first and in sorted order.

    The library orders tensors by type and name, but metadata as its hash map falls: two equal files would differ.

    Args:
        tensors: contiguous, on the CPU, of any type that safetensors holds.
        metadata: texts by name.

    Returns:
        What `safetensors.torch.load` reads; tensors in the library's order, the header padded with spaces to 8 bytes.

    Cost: a copy of the tensors.
    Source: the format in safetensors' README.
    """
    data = save(dict(tensors), metadata=dict(metadata))
    begin = LENGTH + int.from_bytes(data[:LENGTH], "little")
    header = json.loads(data[LENGTH:begin])
    described = {METADATA: dict(sorted(header.pop(METADATA, {}).items())), **header}
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH)
    return len(text).to_bytes(LENGTH, "little") + text + data[begin:]
