"""The importance matrix of llama.cpp: what its own quantisers weigh errors with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetune.export.architectures import architecture_of
from edgetune.export.gguf_file import gguf_writer, write_small


def write_imatrix(
    path: Path,
    config: Any,
    sums: Mapping[str, tuple[torch.Tensor, int]],
    *,
    sources: Sequence[str],
    sequences: int,
    length: int,
) -> Path:
    """Write E[x_j^2] of every matrix's inputs as `llama-quantize --imatrix FILE` reads it.

    Two tensors a matrix: `<name>.in_sum2` float32 [1, inputs], sums of x_j^2, and `<name>.counts` float32 [1, 1].

    Args:
        path: the file; the caller gives it its final name.
        config: of the model, for llama.cpp's names.
        sums: parameter name to sum of squares, float32 [inputs], and number of tokens.
        sources: names of the text, for whoever reads the file.
        sequences: how many sequences there were.
        length: tokens of one.

    Returns:
        `path`.

    Raises:
        OutputError: if it cannot be written.
        MissingExtraError: if `gguf` is not installed.
    Cost: 4 bytes an input of every matrix.
    Source: llama.cpp, tools/imatrix (format of 2025, `general.type = imatrix`); none of its
        quantisers was at hand to read such a file.
    """
    architecture, tensors = architecture_of(config), {}
    for name, (energy, tokens) in sorted(sums.items()):
        place = architecture.gguf_name(name)
        tensors[f"{place}.in_sum2"] = energy.cpu().float().numpy()[None]
        tensors[f"{place}.counts"] = np.full((1, 1), tokens, dtype=np.float32)
    with gguf_writer(path, "imatrix") as writer:
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", list(sources))
        writer.add_uint32("imatrix.chunk_count", sequences)
        writer.add_uint32("imatrix.chunk_size", length)
        write_small(writer, tensors)
    return path
