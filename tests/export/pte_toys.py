"""Tiny random decoders, compressed and written as ExecuTorch programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune.compress.sequential import compress_model
from edgetune.core.integers import INTEGERS, grid_named
from edgetune.core.quantised import QuantisedMatrix
from edgetune.export.pte_layers import EXACT, ROUNDED, Arithmetic
from edgetune.export.pte_program import Said, write_pte
from edgetune.methods.compression.rtn import METHOD
from edgetune.models.quiet import quiet

CONTEXT = 48
SAID = Said(CONTEXT, 1, (0, 2))
USUAL = {ROUNDED: "int4-g32-bf16", EXACT: "Q4_0"}


def written(
    model: Any, file: Path, arithmetic: Arithmetic, grid: str | None = None
) -> Mapping[str, QuantisedMatrix]:
    """Compress a model in place by rounding and write it."""
    method = replace(METHOD, grid=grid_named(grid or USUAL[arithmetic]))
    if arithmetic.rounds:
        method = replace(method, embeddings=INTEGERS["int8-row"])
    quantised = compress_model(model, [], method, lambda event: None)
    with quiet():
        write_pte(model, quantised, file, SAID, arithmetic)
    return quantised
