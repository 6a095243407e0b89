"""Every family that is let through predicts in ExecuTorch what it predicts in PyTorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from onnx_toys import some_ids, toy
from pte_toys import CONTEXT, written

from edgetune.export.pte_layers import EXACT, ROUNDED, Arithmetic
from edgetune.export.pte_program import FAMILIES
from edgetune.run.pte_folder import compare_in_executorch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("executorch") is None,
        reason="install edgetune[executorch] (make test-executorch)",
    ),
]


@pytest.mark.parametrize("arithmetic", [EXACT, ROUNDED], ids=lambda one: one.name)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_predicts_the_same_at_once_in_steps_and_beyond_its_window(
    family: str, arithmetic: Arithmetic, tmp_path: Path
) -> None:
    model = toy(family)
    quantised = written(model, tmp_path / "model.pte", arithmetic)
    texts = [
        some_ids(40),
        some_ids(9, 1),
    ]  # the toys' windows are of 8; the second half is read token by token
    compared = compare_in_executorch(tmp_path / "model.pte", model, quantised, texts, arithmetic, CONTEXT)
    assert compared.gap < (0.1 if arithmetic.rounds else 3e-4)
