"""A computed start: the server's alone, kept beside the ledger, part of what devices and ledgers are bound to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from federations import SEED, MakeToy, Toy, evaluate, examples

from edgetune.core.errors import DigestError, ModelError
from edgetune.core.events import RoundFinished
from edgetune.core.residual import formed, pairs, residuals
from edgetune.core.update import Dense
from edgetune.federation.device import Device
from edgetune.federation.server import Server
from edgetune.federation.start import FILE, Start
from edgetune.federation.worker import Worker
from edgetune.methods.options import with_options
from edgetune.models.backbone import load_backbone
from edgetune.tune.initialisers import Initialiser, OfWeights

begun = pytest.mark.parametrize("name", ["gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga"])


def server_of(run: Toy) -> Server:
    state = run.worker.tuned.state()
    return Server(run.method, run.worker.identity, [0], participation=1.0, seed=SEED, state=state)


def refuse(*_: Any) -> None:
    raise AssertionError("a device computed the start")


@begun
def test_a_device_elsewhere_computes_no_start_and_sends_the_same_bytes(
    name: str, toy: MakeToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toy(name)
    server = server_of(run)
    payload = server.open_round()[0]
    monkeypatch.setattr(type(run.method.target), "start", refuse)
    there = Worker(load_backbone(run.folder), run.method, SEED, start=Start(awaited=True))
    with pytest.raises(DigestError):
        Device(0, examples(0, 4), there, pad_id=0).answer(payload)  # it was not told which start
    there.start = run.worker.start
    assert there.identity == run.worker.identity
    device = Device(0, examples(0, 4), there, pad_id=0)
    _, state, _ = device.receive(payload)
    there.tuned.reset(state)
    for (key, one), (other, two) in zip(
        there.tuned.named_weights(), run.worker.tuned.named_weights(), strict=True
    ):
        assert key == other
        assert torch.equal(one, two)
    assert device.answer(payload) == run.devices[0].answer(payload)


@begun
def test_a_run_begins_at_the_loss_of_the_base_and_learns(name: str, toy: MakeToy) -> None:
    base = evaluate(toy("lora", run="base").worker.tuned)
    run = toy(name)
    assert abs(evaluate(run.worker.tuned) - base) < 1e-5
    run.federate(4, 1.0)
    losses = [event.loss for event in run.events if isinstance(event, RoundFinished)]
    assert losses[-1] < losses[0] < base


def test_a_start_that_differs_by_one_bit_is_another_run(
    toy: MakeToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toy("pissa")
    run.federate(1)
    payload = server_of(run).open_round()[0]
    factors = OfWeights.factors

    def changed(self: Initialiser, *given: Any) -> Any:
        found = factors(self, *given)  # type: ignore[arg-type]
        right = next(iter(found.values()))[1]
        right.view(torch.int32)[0, 0] ^= 1
        return found

    monkeypatch.setattr(OfWeights, "factors", changed)
    other = toy("pissa", run="b")
    assert other.worker.identity != run.worker.identity
    with pytest.raises(DigestError, match="base"):
        other.devices[0].answer(payload)
    assert toy("pissa").worker.identity == run.worker.identity  # read, not computed again
    (run.ledger.parent / FILE).unlink()
    with pytest.raises(DigestError, match="began at other factors") as error:
        toy("pissa").federate(2)
    assert FILE in str(error.value.hint)


def test_a_damaged_start_is_an_error_of_ours_and_that_of_another_run_is_not_taken(toy: MakeToy) -> None:
    run = toy("pissa")
    file = run.ledger.parent / FILE
    data = bytearray(file.read_bytes())
    assert toy("pissa", fingerprint="g").worker.start == run.worker.start  # computed again: nothing ran yet
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        toy("pissa")
    file.write_bytes(b"short")
    with pytest.raises(ModelError, match="damaged"):
        toy("pissa")


def weights_of(state: Dense, scale: float) -> dict[str, torch.Tensor]:
    """Return what the state adds to the base, by layer, in float64."""
    beneath = formed(residuals(state))
    return {
        stem: scale * (beneath[stem].double() + state.tensors[b].double() @ state.tensors[a].double())
        for stem, (b, a) in pairs(state.tensors).items()
    }


@pytest.mark.parametrize(("rule", "exact"), [("flora", True), ("fedex", True), ("mean", False)])
def test_exact_rules_stay_exact_above_a_changed_base(rule: str, exact: bool, toy: MakeToy) -> None:
    run = toy("pissa_flora")
    run.method = with_options(run.method, {"aggregate": rule})
    worker = Worker(load_backbone(run.folder), run.method, SEED)
    devices = {id: Device(id, examples(id, 4 + id), worker, pad_id=0) for id in range(4)}
    server = Server(
        run.method, worker.identity, [*devices], participation=1.0, seed=SEED, state=worker.tuned.state()
    )
    scale, total = run.method.target.factor_scale, sum(device.examples for device in devices.values())
    for _ in range(2):
        mean, replies = dict[str, torch.Tensor](), dict[int, bytes]()
        for id, payload in server.open_round().items():
            replies[id] = devices[id].answer(payload)  # the handle stands where the device arrived
            for stem, one in weights_of(worker.tuned.state(), scale).items():
                mean[stem] = mean.get(stem, torch.zeros(())) + devices[id].examples / total * one
        closed = server.close_round(replies)
        assert isinstance(server.state, Dense)
        after = weights_of(server.state, scale)
        gap = sum(float((after[stem] - mean[stem]).square().sum()) for stem in after) ** 0.5
        assert closed.residual == pytest.approx(gap, rel=1e-2, abs=2e-5)
        assert (gap < 1e-5) == exact
