"""Bytes of a file before its first tensor."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgetune.export.gguf_file import gguf_writer, write_header
from edgetune.export.plan import ALIGNMENT, ExportPlan

A_TENSOR = 4 + 2 * 8 + 4 + 8 + 8
"""Bytes that announce a matrix, without its name: number of dimensions, these, type, place; length of the name."""
PROVENANCE = 1024
"""For digests and names, generously."""


def header_bytes(plan: ExportPlan) -> int:
    """Return the bytes of a planned file's header, at most some hundred too many.

    Raises:
        MissingExtraError: if `gguf` is not installed.
        OutputError: if there is no room for a temporary file.
    Cost: writes the vocabulary once.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        with gguf_writer(path, plan.architecture) as writer:
            write_header(writer, plan, {})
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
        size = path.stat().st_size
    infos = sum(A_TENSOR + len(tensor.name.encode()) for tensor in plan.tensors)
    return size + infos + PROVENANCE + ALIGNMENT
