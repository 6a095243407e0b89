"""Make toy federations, each as if in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from federations import METHODS, MakeToy, Toy


@pytest.fixture
def toy(save_tiny: Any, tmp_path: Path) -> MakeToy:
    def make(name: str = "fedkseed", *, run: str = "a", family: str = "llama", **more: Any) -> Toy:
        folder = tmp_path / f"{family}-0"
        if not folder.exists():
            save_tiny(family)
        return Toy(folder, METHODS[name], tmp_path / run / "tuned.ledger", **more)

    return make
