"""Low-rank factors as a file that llama.cpp puts on a model while it loads it: `general.type = adapter`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgetune.core.errors import ModelError
from edgetune.core.gguf_read import gguf_library
from edgetune.export.architectures import architecture_of
from edgetune.export.gguf_file import PREFIX, gguf_writer, write_small

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def write_adapter(
    path: Path,
    config: Any,
    factors: Factors,
    scale: float,
    metadata: Mapping[str, str] | None = None,
    tables: Factors | None = None,
) -> Path:
    """Write LoRA factors as llama.cpp reads them (`--lora`); the base may be stored in any type.

        y = W x + (alpha / r) B (A x),   alpha = scale r

    Args:
        path: the file; it is neither checked nor renamed afterwards.
        config: the base's `transformers` configuration.
        factors: layer to B [outputs, r] and A [r, inputs].
        scale: of every product B A, > 0; where layers differ in rank it is multiplied into B.
        metadata: provenance, stored as `edgetune.<key>`.
        tables: embedding layer to B [rows, r] and A [r, width]; llama.cpp looks up rows of B.

    Returns:
        `path`.

    Raises:
        ModelError: if the family cannot be written as GGUF, or llama.cpp has no place for a layer.
        OutputError: if the file cannot be written.
        MissingExtraError: if `gguf` is not installed.
    Cost: the factors in float32.
    Source: llama.cpp `convert_lora_to_gguf.py` and `llama-adapter.cpp`.
    """
    library = gguf_library()
    architecture = architecture_of(config)
    tables = tables or {}
    ranks = {right.shape[0] for _, right in [*factors.values(), *tables.values()]}
    alpha = scale * ranks.pop() if len(ranks) == 1 else 0.0
    named = {}
    for layer, (left, right) in sorted(factors.items()):
        parameter = f"{layer}.weight"
        rule = architecture.rows.get(architecture.local_name(parameter)[1])
        left = left if rule is None else left[rule(config, len(left))]
        stored = architecture.gguf_name(parameter)
        named[f"{stored}.lora_a"] = right
        # llama.cpp multiplies by alpha / r, and by nothing where alpha is 0.
        named[f"{stored}.lora_b"] = left if alpha else left * scale
    for layer, (left, right) in sorted(tables.items()):
        stored = architecture.gguf_name(f"{layer}.weight")
        named[f"{stored}.lora_a"] = left
        named[f"{stored}.lora_b"] = right.T if alpha else right.T * scale
    if not all(bool(torch.isfinite(one).all()) for one in named.values()):
        raise ModelError("the factors hold NaN or infinite numbers", where=path)
    with gguf_writer(path, architecture.name) as writer:
        writer.add_type(library.GGUFType.ADAPTER)
        writer.add_string(library.Keys.Adapter.TYPE, "lora")
        writer.add_float32(library.Keys.Adapter.LORA_ALPHA, alpha)
        for key, text in (metadata or {}).items():
            writer.add_string(PREFIX + key, text)
        write_small(writer, {name: one.float().contiguous().numpy() for name, one in named.items()})
    return path
