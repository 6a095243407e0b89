"""Calibration tokens, and the markov model where it is present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture
def calibration() -> list[torch.Tensor]:
    """Four batches of token ids."""
    return list(torch.randint(2, 50, (8, 24), generator=torch.Generator().manual_seed(1)).split(2))


@pytest.fixture(scope="session")
def markov() -> Path:
    """Folder of the trained 3.7M model."""
    root = Path(os.environ.get("EDGETUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    folder = root / "models" / "markov-3.7M"
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"no model at {folder}: set EDGETUNE_DATA to the folder of the shared data")
    return folder
