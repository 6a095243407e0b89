"""Every family that is let through predicts in ONNX Runtime what it predicts in PyTorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from onnx_toys import far, far_in_a_padded_batch, some_ids, stored, toy, written

from edgetune.export.onnx_graph import FAMILIES, LIBRARIES
from edgetune.export.onnx_runtime import OnnxDecoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(one) is None for one in LIBRARIES), reason="install edgetune[onnx]"
    ),
]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_predicts_the_same_whole_in_steps_and_in_a_padded_batch(family: str, tmp_path: Path) -> None:
    model = toy(family)
    quantised = written(model, tmp_path / "model.onnx")
    dense = {f"model.{name}" for name in quantised}
    assert not dense & set(stored(tmp_path / "model.onnx"))  # nothing is there a second time
    decoder = OnnxDecoder(tmp_path / "model.onnx")
    assert far(model, decoder, some_ids(23)) < 1e-4  # beyond every window, the second half from the cache
    assert far_in_a_padded_batch(model, decoder, some_ids(9, 1), some_ids(4, 2)) < 1e-4
