"""LOZO and SubZero: steps by hand along factors written out, which stay for an interval; what travels; golden."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from served import SEED, reply_of, server_of, state_of
from torch import nn

from edgetune.core.batch import Batch
from edgetune.core.keys import pool_key
from edgetune.directions import Gaussian, Lozo, Source, SubZero
from edgetune.directions.space import BoundSpace
from edgetune.directions.subspace import SubspaceKind
from edgetune.federation.steps import take_steps
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import defaults, with_options
from edgetune.tune import ProjectedTuned

KEY, CPU = pool_key(2), torch.device("cpu")
BATCH = Batch(*(torch.ones(1, 1, dtype=torch.int64),) * 3)
ROWS, COLUMNS = 32, 48
CHANGES = {"local_steps": 3, "learning_rate": 0.02, "eps": 1e-3, "interval": 2}
METHODS = {name: with_options(tuning_method(name), CHANGES) for name in ("lozo", "subzero")}
KINDS: dict[str, SubspaceKind] = {"lozo": Lozo(), "subzero": SubZero()}
names = pytest.mark.parametrize("name", list(METHODS))


class Bowl(nn.Module):
    """L(w) = |w|^2 / 2 + |w|^3 / 100 over all elements."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.linspace(-1, 2, ROWS * COLUMNS).view(ROWS, COLUMNS) / 10
        self.w = nn.Parameter(start, requires_grad=False)

    def forward(self) -> torch.Tensor:
        wide = self.w.double()
        return (wide**2).sum() / 2 + (wide.abs() ** 3).sum() / 100


def loss_of(w: np.ndarray[Any, Any]) -> float:
    return float((w**2).sum() / 2 + (np.abs(w) ** 3).sum() / 100)


def direction(name: str, seed: int) -> np.ndarray[Any, Any]:
    """Return z from dense factors in float64."""
    source, top = Source(KEY), seed - seed % 2**32
    if name == "lozo":
        u = Gaussian().values(source, "w", seed, 0, 2 * ROWS, CPU).double().view(ROWS, 2)
        v = Gaussian().values(source, "w", top, 2 * ROWS, 2 * COLUMNS, CPU).double().view(COLUMNS, 2)
        return np.asarray(u @ v.T) / 2**0.5
    d = source.signs("w", top, 4096, ROWS, CPU).double()
    e = source.signs("w", top, 4096 + 512, COLUMNS, CPU).double()
    h = torch.tensor([[(-1.0) ** bin(i & k).count("1") for k in range(16)] for i in range(16)]).double()
    z = Gaussian().values(source, "w", seed, 0, 256, CPU).double().view(16, 16)
    u, v = d.unsqueeze(1) * h.repeat(ROWS // 16, 1), e.unsqueeze(1) * h.repeat(COLUMNS // 16, 1)
    return np.asarray(u @ z @ v.T) / 16


def walked(name: str, interval: int = 2) -> tuple[ProjectedTuned, Any]:
    """Return the handle after three steps, the fourth to the sixth of all, and what they gave."""
    method = with_options(METHODS[name], {"interval": interval})
    tuned = ProjectedTuned(Bowl(), BoundSpace(KINDS[name], KEY))
    taken = take_steps(
        method, tuned, iter([BATCH] * 3), method.keys(SEED, 1, 0), {}, objective=lambda model, _: model()
    )
    return tuned, taken


def test_the_published_defaults() -> None:
    lozo, subzero = (defaults(tuning_method(name)) for name in METHODS)
    assert {
        "eps": 1e-3,
        "interval": 50,
        "directions": "lozo",
        "estimate": "two_point",
    }.items() <= lozo.items()
    assert {
        "eps": 1e-3,
        "interval": 50,
        "directions": "subzero",
        "estimate": "one_sided",
    }.items() <= subzero.items()
    assert (tuning_method("lozo").estimate.passes, tuning_method("subzero").estimate.passes) == (2, 9)


@names
def test_three_steps_are_those_done_by_hand(name: str) -> None:
    w, eps, rate = np.asarray(Bowl().w.double()), 1e-3, 0.02
    keys, each = METHODS[name].keys(SEED, 1, 0), len(METHODS[name].keys(SEED, 1, 0)) // 3
    for step in range(3):
        lines = [direction(name, key) for key in keys[each * step : each * step + each]]
        back = [loss_of(w - eps * z) if name == "lozo" else loss_of(w) for z in lines]
        width = 2 * eps if name == "lozo" else eps
        slopes = [(loss_of(w + eps * z) - low) / width for z, low in zip(lines, back, strict=True)]
        w = w - sum(rate / each * slope * z for slope, z in zip(slopes, lines, strict=True))
    tuned, taken = walked(name)
    assert tuned.model.w.numpy() == pytest.approx(w, abs=1e-4)
    assert np.abs(w - np.asarray(Bowl().w)).max() > 0.01
    assert taken.dropped == 0


@names
def test_the_steps_of_an_interval_move_within_one_subspace(name: str) -> None:
    """The second three steps of an interval of three, or those of an interval each, whose ranks add up."""
    ranks = []
    for interval in (3, 1):
        tuned, _ = walked(name, interval)
        moved = tuned.model.w.double() - Bowl().w.double()
        ranks.append(int(torch.linalg.matrix_rank(moved, rtol=1e-4)))
    assert ranks[0] == {"lozo": 2, "subzero": 16}[name]
    assert ranks[1] > ranks[0]


@names
def test_a_device_sends_what_one_of_mezo_sends(name: str) -> None:
    plain = with_options(tuning_method("mezo"), {"local_steps": 24})
    method = with_options(METHODS[name], {"local_steps": 24 // METHODS[name].estimate.directions})
    replies = []
    for one in (method, plain):
        server = server_of(one)
        replies.append({id: reply_of(server, id, [0.5] * 24) for id in server.sample()})
        server.close_round(replies[-1])
        assert len(state_of(server).keys) == 3 * 24
    assert {len(one) for one in replies[0].values()} == {len(one) for one in replies[1].values()}


@names
def test_golden_slopes(name: str) -> None:
    """Printed by this code where the tests above passed."""
    _, taken = walked(name)
    expected = {"lozo": [1.509363, 6.010538, 9.480740], "subzero": [-0.242572, 0.065132, 0.339909]}
    np.testing.assert_allclose(taken.slopes.coefficients[:3], expected[name], atol=2e-3)
