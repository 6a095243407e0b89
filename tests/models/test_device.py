"""A device is what this machine has, by the name that a person gives it."""

from __future__ import annotations

import pytest
import torch

from edgetune.core.errors import ConfigError
from edgetune.models import device as module
from edgetune.models.device import devices_here, find_device


def pretend(monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool = False) -> None:
    monkeypatch.delenv(module.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_a_variable_says_what_auto_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2)
    monkeypatch.setenv(module.VARIABLE, "cuda:1")
    assert find_device("auto") == torch.device("cuda:1")
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setenv(module.VARIABLE, "gpu!")
    with pytest.raises(ConfigError, match="gpu!"):
        find_device("auto")


def test_auto_takes_the_first_gpu_and_never_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2, mps=True)
    assert find_device("auto") == torch.device("cuda:0")
    pretend(monkeypatch, 0, mps=True)
    assert find_device("auto") == torch.device("cpu")
    assert find_device("mps").type == "mps"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pretend(monkeypatch, 0)
    with pytest.raises(ConfigError, match=name) as caught:
        find_device(name)
    assert "auto, cpu" in str(caught.value)


def test_the_number_of_a_gpu_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2)
    assert devices_here() == ["cpu", "cuda:1", "cuda:0"]
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="cuda:2"):
        find_device("cuda:2")
