"""FedProx and FedAdam: what they are without their term, and the term itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from edgetune.aggregate import ServerAdam, ServerMomentum
from edgetune.core.update import Dense, Projected
from edgetune.data.encode import Example
from edgetune.federation.device import Device
from edgetune.federation.server import Server
from edgetune.federation.worker import Worker
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options
from edgetune.models.backbone import load_backbone
from edgetune.tune import Lora
from edgetune.updates import AdamW, Sgd
from edgetune.updates.proximal import pulled

SMALL = {"local_steps": 3, "batch_size": 2, "micro_batch": 0, "learning_rate": 1e-3}
FEDAVG = with_options(tuning_method("fedavg"), SMALL)


def state_after(method: TuningMethod, save_tiny: Any, rounds: int = 2) -> Dense:
    worker = Worker(load_backbone(save_tiny()), method, 3)
    devices = {
        id: Device(id, [Example((10 + id, 20 + at, 7, 8, 0), 2) for at in range(3)], worker, pad_id=0)
        for id in range(2)
    }
    server = Server(method, worker.identity, [0, 1], participation=1.0, seed=3, state=worker.tuned.state())
    for _ in range(rounds):
        server.close_round({id: devices[id].answer(payload) for id, payload in server.open_round().items()})
    assert isinstance(server.state, Dense)
    return server.state


def distance(one: Dense, other: Dense) -> float:
    return sum(float((one.tensors[name] - other.tensors[name]).square().sum()) for name in one.tensors) ** 0.5


def test_the_published_variants_are_one_part_away_from_fedavg() -> None:
    fedavg = tuning_method("fedavg")
    assert (
        replace(tuning_method("fedprox"), local=fedavg.local).digest != fedavg.digest
    )  # its name is its own
    assert tuning_method("fedprox").local == AdamW(5e-5, proximal=0.01)
    assert tuning_method("fedadam").server == ServerAdam(rate=1e-3)


def test_without_its_term_it_is_fedavg_bit_by_bit(save_tiny: Any) -> None:
    plain = state_after(FEDAVG, save_tiny)
    for same in (
        with_options(FEDAVG, {"proximal": 0.0}),
        with_options(FEDAVG, {"server": "none"}),
        replace(FEDAVG, server=ServerMomentum(1.0, 0.0)),
    ):
        assert distance(state_after(same, save_tiny), plain) == 0
    for other in (with_options(FEDAVG, {"proximal": 10.0}), with_options(FEDAVG, {"server": "adam"})):
        assert distance(state_after(other, save_tiny), plain) > 0


def test_a_larger_mu_keeps_devices_nearer(save_tiny: Any) -> None:
    sgd = replace(FEDAVG, local=Sgd(0.1), local_steps=10)
    start = Worker(load_backbone(save_tiny()), sgd, 3).tuned.state()
    moved = [
        distance(state_after(replace(sgd, local=Sgd(0.1, proximal=mu)), save_tiny, 1), start)
        for mu in (0.0, 1.0, 5.0)
    ]
    assert moved[0] > moved[1] > moved[2] > 0


def test_the_term_is_the_gradient_of_half_mu_times_the_squared_distance(tiny_model: Any) -> None:
    tuned = Lora(2, 4.0).open(tiny_model(), None, 0)
    tuned.reset(None)
    before = {name: weight.detach().clone() for name, weight in tuned.named_weights()}
    tuned.apply(Dense({name: 0.1 * torch.ones_like(one) for name, one in before.items()}))
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in tuned.named_weights()}
    penalty = sum(0.7 / 2 * (weights[name] - before[name]).square().sum() for name in before)
    expected = torch.autograd.grad(penalty, list(weights.values()))
    zero = Dense({name: torch.zeros_like(one) for name, one in before.items()})
    found = pulled(tuned, zero, 0.7)
    assert isinstance(found, Dense)
    for one, other in zip(expected, found.tensors.values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_along_directions_the_term_is_a_part_of_the_slopes() -> None:
    class Moved:
        """A handle that has moved along two directions."""

        def delta(self) -> Projected:
            return Projected.of(3, 0.5) + Projected.of(4, -1.0)

    moved: Any = Moved()
    found = pulled(moved, Projected.of(4, 2.0), 0.1)
    assert isinstance(found, Projected)
    said = dict(zip(found.keys.tolist(), found.coefficients.tolist(), strict=True))
    assert said == pytest.approx({4: 1.9, 3: 0.05})
