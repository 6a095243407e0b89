"""FedAvgM: its published settings, and two rounds of it by hand."""

from __future__ import annotations

import torch

from edgetune.aggregate import ServerMomentum
from edgetune.core.update import Dense
from edgetune.methods.catalogue import tuning_method

METHOD = tuning_method("fedavgm")


def test_the_published_settings() -> None:
    assert METHOD.server == ServerMomentum(1.0, 0.9)


def test_two_rounds_of_changes_2_and_minus_1() -> None:
    state = Dense({"w": torch.zeros(1)})
    memory = METHOD.server.start(state, 0)
    steps = [METHOD.server.step(Dense({"w": torch.tensor([change])}), memory, 0) for change in (2.0, -1.0)]
    golden = [2.0, 0.8]  # m = 2, then 0.9 * 2 - 1
    for step, expected in zip(steps, golden, strict=True):
        assert isinstance(step, Dense)
        assert torch.allclose(step.tensors["w"], torch.tensor([expected]))
