"""Grids of plain integers as compressed-tensors and GPTQ checkpoints store them: by groups or whole rows."""

from __future__ import annotations

import torch

from edgetune.core.numbers import Positive, Whole
from edgetune.core.quantised import GRIDS, BlockGrid, Field

BITS = (2, 3, 4, 8)
GROUPS = {"g32": 32, "g64": 64, "g128": 128, "row": 0}
"""Name to weights that share a scale; 0 for all of a row."""
SCALES = {"": torch.float16, "-bf16": torch.bfloat16}
"""End of a grid's name to the type its scales are stored in."""


def integer_grid(bits: int, group: int, name: str, *, zero: bool, scales: torch.dtype) -> BlockGrid:
    """Return the grid of integers of so many bits.

        weight = s code,  or with a zero point  s (code - z);   s above 0,  code and z in [-2^(bits-1), 2^(bits-1) - 1]

    Without a zero point the 8-bit codes are symmetric, as those of Q8_0.

    Args:
        bits: of a code, 2 to 8.
        group: weights that share a scale; 0 for a whole row, whose length `whole_row` fills in.
        name: of the grid.
        zero: whether a group has an integer zero point.
        scales: float16 or bfloat16.

    Source: `QuantizationArgs` of compressed-tensors; bytes of a block are rounded up where zero points do not fill one.
    """
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    size = -(-(group * bits + 16 + (bits if zero else 0)) // 8)
    return BlockGrid(
        name,
        low + 1 if bits == 8 and not zero else low,
        high,
        size,
        group,
        scale=(Field("scale", group, Positive(scales)),),
        offset=(Field("zero", group, Whole(low, high)),) if zero else (),
        sign=-1 if zero else 1,
        tied=zero,
    )


def _all() -> list[BlockGrid]:
    return [
        integer_grid(bits, size, f"{kind}{bits}-{group}{end}", zero=kind == "uint", scales=scales)
        for kind in ("int", "uint")
        for bits in BITS
        for group, size in GROUPS.items()
        for end, scales in SCALES.items()
    ]


INTEGERS = {grid.name: grid for grid in _all()}
"""By name: int4-g128 is 4 bits in groups of 128, uint4-g128 has a zero point too; -bf16 is the type of the scales."""
SMALLER_GROUP = {
    name: INTEGERS[name.replace(wide, narrow)]
    for name in INTEGERS
    for wide, narrow in (("g128", "g64"), ("g64", "g32"))
    if wide in name
}
"""Grid to the one of half its group, for rows that its groups do not divide."""


def grid_named(name: str) -> BlockGrid | None:
    """Return the grid of a name, of GGUF or of integers; None if there is none."""
    return GRIDS.get(name) or INTEGERS.get(name)


def whole_row(grid: BlockGrid, columns: int) -> BlockGrid:
    """Return a grid of whole rows for rows of so many weights, at least 1.

    Raises:
        KeyError: if it is no grid of `INTEGERS`.
    """
    named = INTEGERS[grid.name]
    bits = (named.high - named.low).bit_length()
    return integer_grid(bits, columns, grid.name, zero=named.tied, scales=named.scale[0].number.dtype)
