"""The name of a set of weights: a SHA-256 over their values, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open

from edgetune.core.in_parts import InParts

CHUNK = 1 << 20
"""Weights converted to float32 at a time (4 MiB)."""


def tensor_digest(tensors: Iterable[tuple[str, torch.Tensor | InParts]]) -> str:
    """SHA-256 over named tensors in sorted name order, as hexadecimal digits.

        digest = sha256( header_1 values_1 header_2 values_2 ... )
        header = JSON [name, shape] + newline,   values = float32, little-endian, row-major

    Weights of 32 bits and fewer convert exactly, so that a model and a copy of it in a wider type have one digest.

    Args:
        tensors: (name, tensor of any shape, type and device); names must be distinct. One in parts is never whole.

    Raises:
        ValueError: two tensors of one name.
    Cost: hashes 4 bytes a weight (about 1 GB/s a core); 4 MiB of scratch memory.
    Source: the state digest of `reference/federated-systems.md`, section 0.1.
    """
    digest, previous = hashlib.sha256(), None
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        if name == previous:
            raise ValueError(f"two tensors are named {name!r}")
        previous = name
        add_tensor(digest, name, tensor)
    return digest.hexdigest()


def files_digest(files: Iterable[Path]) -> str:
    """`tensor_digest` of everything stored in safetensors files, in the stored type and one tensor at a time.

    Args:
        files: the shards of one model; every tensor name occurs once.

    Raises:
        ValueError: two tensors of one name.
    Cost: reads the files once, through the page cache; one stored tensor and 4 MiB in memory.
    """
    digest = hashlib.sha256()
    with ExitStack() as stack:
        owners = {}
        for file in files:
            handle = stack.enter_context(safe_open(file, framework="pt"))
            for name in handle.keys():  # noqa: SIM118  (the handle is not a mapping)
                if name in owners:
                    raise ValueError(f"two tensors are named {name!r}")
                owners[name] = handle
        for name in sorted(owners):
            add_tensor(digest, name, owners[name].get_tensor(name))
    return digest.hexdigest()


def add_tensor(digest: hashlib._Hash, name: str, tensor: torch.Tensor | InParts) -> None:
    """Add a tensor to a digest of the form of `tensor_digest`; names come in sorted order."""
    digest.update(json.dumps([name, list(tensor.shape)], separators=(",", ":")).encode("utf-8") + b"\n")
    for part in tensor.parts() if isinstance(tensor, InParts) else (tensor,):
        flat = part.detach().reshape(-1)
        for start in range(0, flat.numel(), CHUNK):
            values = flat[start : start + CHUNK].to(device="cpu", dtype=torch.float32).numpy()
            digest.update(values.astype("<f4", copy=False).tobytes())
