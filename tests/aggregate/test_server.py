"""Steps of the server: by an independent library, on both kinds of update, and plain averaging as the special case."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgetune.aggregate import SERVER_STEPS, ServerAdam, ServerMomentum, Take
from edgetune.core.update import Dense, Projected

SIZE, ROUNDS = 8, 5


def changes() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SIZE, generator=generator) for _ in range(ROUNDS)]


def dense_path(rule: Any) -> list[torch.Tensor]:
    """Return the weights after every round."""
    weight, state = torch.zeros(SIZE), Dense({"w": torch.zeros(SIZE)})
    memory, path = rule.start(state, 0), []
    for change in changes():
        weight = weight + rule.step(Dense({"w": change}), memory, 0).tensors["w"]
        path.append(weight)
    return path


def pool_path(rule: Any) -> list[torch.Tensor]:
    weight, memory, path = np.zeros(SIZE, np.float32), rule.start(Projected.none(), SIZE), []
    for change in changes():
        step = rule.step(Projected(np.arange(SIZE), change.numpy()), memory, SIZE)
        np.add.at(weight, step.keys, step.coefficients)
        path.append(torch.from_numpy(weight.copy()))
    return path


def test_momentum_is_torchs_with_the_change_for_the_negative_gradient() -> None:
    weight = torch.zeros(SIZE, requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=0.3, momentum=0.8)
    for change, found in zip(changes(), dense_path(ServerMomentum(0.3, 0.8)), strict=True):
        weight.grad = -change
        optimiser.step()
        assert torch.allclose(weight.detach(), found, atol=1e-6)


def test_adam_is_the_published_recursion() -> None:
    weight = m = np.zeros(SIZE)
    v = np.full(SIZE, 0.2**2)
    for change, found in zip(changes(), dense_path(ServerAdam(0.3, 0.8, 0.2)), strict=True):
        d = change.double().numpy()
        m, v = 0.8 * m + 0.2 * d, 0.99 * v + 0.01 * d**2
        weight = weight + 0.3 * m / (np.sqrt(v) + 0.2)
        assert np.allclose(found.numpy(), weight, atol=1e-5)


@pytest.mark.parametrize("rule", [Take(), ServerMomentum(0.3, 0.8), ServerAdam(0.3, 0.8, 0.2)])
def test_a_pool_is_a_vector_of_its_coefficients(rule: Any) -> None:
    for one, other in zip(dense_path(rule), pool_path(rule), strict=True):
        assert torch.equal(one, other)


def test_momentum_moves_directions_that_nobody_took_this_round() -> None:
    rule = ServerMomentum()
    memory = rule.start(Projected.none(), SIZE)
    rule.step(Projected.of(3, 1.0), memory, SIZE)
    found = rule.step(Projected.of(5, 1.0), memory, SIZE)
    assert dict(zip(found.keys.tolist(), found.coefficients.tolist(), strict=True)) == pytest.approx(
        {3: 0.9, 5: 1.0}
    )


def test_no_momentum_and_a_rate_of_one_is_plain_averaging() -> None:
    for one, other in zip(dense_path(ServerMomentum(1.0, 0.0)), dense_path(Take()), strict=True):
        assert torch.equal(one, other)


def test_memory_keeps_its_names_types_and_shapes() -> None:
    state = Dense({"w": torch.zeros(SIZE)})
    for kind in SERVER_STEPS.values():
        rule: Any = kind()
        memory = rule.start(state, 0)
        before = {name: (one.shape, one.dtype) for name, one in memory.items()}
        rule.step(Dense({"w": torch.ones(SIZE)}), memory, 0)
        assert {name: (one.shape, one.dtype) for name, one in memory.items()} == before
