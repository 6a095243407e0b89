"""Folders with packed layers, written bit by bit by a loop that shares nothing with the reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Layer = tuple[dict[str, torch.Tensor], torch.Tensor]
"""Tensors by the last part of their names, and the float64 [out, in] weights that they mean."""


def bit_stream(rows: list[list[int]], bits: int) -> torch.Tensor:
    """int32 words of rows of integers, one bit after another."""
    found = []
    for row in rows:
        stream = [(value >> k) & 1 for value in row for k in range(bits)]
        stream += [0] * (-len(stream) % 32)
        words = [sum(bit << k for k, bit in enumerate(stream[i : i + 32])) for i in range(0, len(stream), 32)]
        found.append([word - (1 << 32) if word >> 31 else word for word in words])
    return torch.tensor(found, dtype=torch.int32)


def zero_words(rows: list[list[int]], bits: int, less: int) -> torch.Tensor:
    """Zero points in words, less `less`: as GPTQModel does it, field by field for 3 bits, else from whole words."""
    if bits == 3:
        return bit_stream([[(value - less) % 8 for value in row] for row in rows], bits)
    each = less * sum(1 << place for place in range(0, 32, bits))
    found = [[(word - each) % (1 << 32) for word in row] for row in bit_stream(rows, bits).tolist()]
    return torch.tensor(
        [[word - (1 << 32) * (word >> 31) for word in row] for row in found], dtype=torch.int32
    )


def meaning(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group: torch.Tensor
) -> torch.Tensor:
    """Weights one by one, from codes [out, in], zeros and scales [out, groups]."""
    found = torch.empty(codes.shape, dtype=torch.float64)
    for o in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            g = int(group[i])
            found[o, i] = float(scales[o, g]) * (int(codes[o, i]) - int(zeros[o, g]))
    return found


def drawn(
    shape: tuple[int, int], bits: int, groups: int, seed: int, *, symmetric: bool
) -> tuple[torch.Tensor, ...]:
    """Codes [out, in], zeros and fp16 scales [out, groups], at random."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, shape, generator=generator)
    zeros = torch.randint(0, 1 << bits, (shape[0], groups), generator=generator)
    zeros = torch.full_like(zeros, 1 << bits - 1) if symmetric else zeros
    scales = (torch.rand(shape[0], groups, generator=generator) * 0.02 + 1e-4).half()
    return codes, zeros, scales


def gptq_layer(
    shape: tuple[int, int],
    *,
    bits: int = 4,
    size: int = 32,
    seed: int = 0,
    symmetric: bool = True,
    scattered: bool = False,
    stored_less: int = 1,
) -> Layer:
    """A layer as AutoGPTQ writes it; `stored_less` is 0 for the format gptq_v2."""
    groups = shape[1] // size
    codes, zeros, scales = drawn(shape, bits, groups, seed, symmetric=symmetric)
    group = torch.arange(shape[1]) // size
    if scattered:
        group = group[torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))]
    stored = {
        "qweight": bit_stream(codes.tolist(), bits).T.contiguous(),
        "qzeros": zero_words(zeros.T.tolist(), bits, stored_less),
        "scales": scales.T.contiguous(),
        "g_idx": group.int(),
    }
    return stored, meaning(codes, zeros, scales, group)


def compressed_layer(
    shape: tuple[int, int], *, bits: int = 4, size: int = 32, seed: int = 0, symmetric: bool = True
) -> Layer:
    """A layer of compressed-tensors, pack-quantized."""
    groups = shape[1] // size
    codes, zeros, scales = drawn(shape, bits, groups, seed, symmetric=symmetric)
    group = torch.arange(shape[1]) // size
    stored = {
        "weight_packed": bit_stream(codes.tolist(), bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(shape),
    }
    if not symmetric:
        stored["weight_zero_point"] = bit_stream(zeros.T.tolist(), bits).T.contiguous()
    return stored, meaning(codes, zeros, scales, group)


def gptq_said(**more: object) -> dict[str, Any]:
    said = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
    return {**said, **more}


def compressed_said(**weights: object) -> dict[str, Any]:
    own = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, **weights}
    group = {"targets": ["Linear"], "weights": own, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def pack_folder(
    folder: Path, said: Mapping[str, Any], layer: Callable[[str, tuple[int, int]], Layer]
) -> dict[str, torch.Tensor]:
    """Give every projection of a folder packed weights of its shape; return what they mean, by parameter name."""
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name in [one for one in tensors if one.endswith("proj.weight")]:
        shape = tensors.pop(name).shape
        parts, meant[name] = layer(name, (shape[0], shape[1]))
        tensors |= {f"{name.removesuffix('.weight')}.{part}": values for part, values in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": dict(said)}))
    return meant
