"""The importance matrix of llama.cpp: what its own quantisers weigh errors with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetune.core.files import unwritable
from edgetune.core.gguf_read import gguf_library
from edgetune.export.architectures import architecture_of


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
    Source: llama.cpp, tools/imatrix (format of 2025, `general.type = imatrix`).
    """
    architecture = architecture_of(config)
    try:
        writer = gguf_library().GGUFWriter(path, "imatrix")
        try:
            writer.add_type("imatrix")
            writer.add_array("imatrix.datasets", list(sources))
            writer.add_uint32("imatrix.chunk_count", sequences)
            writer.add_uint32("imatrix.chunk_size", length)
            for name, (energy, tokens) in sorted(sums.items()):
                place = architecture.gguf_name(name)
                writer.add_tensor(f"{place}.in_sum2", energy.cpu().float().numpy()[None])
                writer.add_tensor(f"{place}.counts", np.full((1, 1), tokens, dtype=np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    except OSError as error:
        raise unwritable(error, path) from error
    return path
