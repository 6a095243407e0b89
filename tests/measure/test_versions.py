from __future__ import annotations

import importlib.metadata
import json
import platform

import pytest
import torch

from edgetune.measure.versions import versions


def test_names_everything_a_figure_depends_on() -> None:
    found = versions()
    assert {"python", "platform", "edgetune", "torch", "transformers", "numpy", "rouge"} <= set(found)
    assert found["python"] == platform.python_version()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert json.loads(json.dumps(found)) == found


def test_leaves_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert set(versions()) == {"python", "platform"}
