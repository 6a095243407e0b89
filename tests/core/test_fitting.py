from __future__ import annotations

import pytest

from edgetune.core.fitting import fitting
from edgetune.core.quantised import GRIDS

INSTEAD = {
    "Q2_K": "IQ4_NL", "Q3_K": "Q4_0", "IQ4_XS": "IQ4_NL", "NVFP4": "MXFP4", "Q4_K": "Q5_0", "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_rows_of_whole_blocks_get_the_grid_itself_and_others_one_that_fits(name: str) -> None:
    grid = GRIDS[name]
    assert fitting(grid, 3 * grid.block) is grid
    other = fitting(grid, grid.block + 32)
    assert other is not None
    assert other.name == INSTEAD.get(name, name)
    assert (grid.block + 32) % other.block == 0
    assert other.has_zero or not grid.has_zero, "a pruned weight must stay pruned"
    assert other.bits >= grid.bits or other.levels == grid.levels


@pytest.mark.parametrize("name", sorted(GRIDS))
@pytest.mark.parametrize("columns", [1, 31, 100, 264])
def test_rows_that_no_block_divides_stay_in_float(name: str, columns: int) -> None:
    assert fitting(GRIDS[name], columns) is None
