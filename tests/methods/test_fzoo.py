"""FZOO: the published step, by hand; the same of a loss of any scale; what travels is what MeZO sends; golden."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from served import SEED, reply_of, server_of, state_of
from torch import nn

from edgetune.core.batch import Batch
from edgetune.core.keys import pool_key
from edgetune.directions import Rademacher, Source
from edgetune.directions.space import BoundSpace
from edgetune.federation.steps import take_steps
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import defaults, with_options
from edgetune.tune import ProjectedTuned

METHOD = with_options(tuning_method("fzoo"), {"local_steps": 3, "learning_rate": 0.05, "eps": 0.1})
BATCH = Batch(*(torch.ones(1, 1, dtype=torch.int64),) * 3)
KEY, SIZE = pool_key(2), 40


class Well(nn.Module):
    """L(w) = |w|^4 / (4 SIZE), far from quadratic."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 2, SIZE), requires_grad=False)

    def forward(self) -> torch.Tensor:
        return (self.w.double() ** 4).sum() / (4 * SIZE)


def loss_of(w: np.ndarray[Any, Any]) -> float:
    return float((w**4).sum() / (4 * SIZE))


def walked(scale: float = 1.0, steps: int = 3) -> tuple[ProjectedTuned, Any]:
    """Return the handle after some steps, and what they gave."""
    tuned = ProjectedTuned(Well(), BoundSpace(Rademacher(), KEY))
    keys = METHOD.keys(SEED, 1, 0)[: 8 * steps]
    taken = take_steps(
        METHOD, tuned, iter([BATCH] * steps), keys, {}, objective=lambda model, _: scale * model()
    )
    return tuned, taken


def test_the_published_defaults() -> None:
    published = {"eps": 1e-3, "learning_rate": 1e-5, "directions_per_step": 8, "batch_size": 16}
    found = defaults(tuning_method("fzoo"))
    assert published.items() <= found.items()
    assert (found["estimate"], found["directions"], found["optimiser"]) == (
        "standardised",
        "rademacher",
        "sgd",
    )
    assert tuning_method("fzoo").estimate.passes == 9


def test_three_steps_are_the_published_ones_done_by_hand() -> None:
    w, keys = np.linspace(-1, 2, SIZE), METHOD.keys(SEED, 1, 0)
    for step in range(3):
        lines = [
            Rademacher().values(Source(KEY), "w", key, 0, SIZE, torch.device("cpu")).double().numpy()
            for key in keys[8 * step : 8 * step + 8]
        ]
        here, ahead = loss_of(w), [loss_of(w + 0.1 * z) for z in lines]
        deviation = (sum((one - sum(ahead) / 8) ** 2 for one in ahead) / 8) ** 0.5
        w = w - sum(0.05 * (one - here) / (8 * deviation) * z for one, z in zip(ahead, lines, strict=True))
    tuned, taken = walked()
    assert tuned.model.w.numpy() == pytest.approx(w, abs=1e-5)
    assert taken.dropped == 0
    assert loss_of(w) < 0.9 * loss_of(np.linspace(-1, 2, SIZE))


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_a_scaled_loss_takes_the_same_steps(scale: float) -> None:
    plain, scaled = walked()[0].state(), walked(scale)[0].state()
    assert scaled.keys.tolist() == plain.keys.tolist()
    assert scaled.coefficients == pytest.approx(plain.coefficients, rel=1e-4, abs=1e-7)


def test_a_device_sends_what_one_of_mezo_sends_and_no_spread() -> None:
    plain = with_options(tuning_method("mezo"), {"local_steps": 3, "directions_per_step": 8})
    replies = []
    for method in (METHOD, plain):
        server = server_of(method)
        replies.append({id: reply_of(server, id, [0.5] * 24) for id in server.sample()})
        server.close_round(replies[-1])
        assert len(state_of(server).keys) == 3 * 24
    assert {len(one) for one in replies[0].values()} == {len(one) for one in replies[1].values()}


def test_golden_slopes() -> None:
    """Printed by this code where the tests above passed."""
    _, taken = walked(steps=1)
    expected = [-0.221323, -0.073329, 0.071454, -0.065641, 0.081181, -0.055617, -0.066503, 0.220481]
    np.testing.assert_allclose(taken.slopes.coefficients, expected, atol=2e-6)
