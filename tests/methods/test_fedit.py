"""FedIT: published defaults, bytes by formula, and the equivalences that LoRA averaged across devices must show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from edgetune.core.events import RoundFinished
from edgetune.core.residual import residuals, trained
from edgetune.core.update import Contribution, Dense
from edgetune.data.encode import Example
from edgetune.federation.device import Device
from edgetune.federation.federate import federate
from edgetune.federation.plan import Plan
from edgetune.federation.reply import Reply
from edgetune.federation.server import Server
from edgetune.federation.state import Checkpoint
from edgetune.federation.steps import draw_batches, take_steps
from edgetune.federation.worker import Worker
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.models.backbone import load_backbone
from edgetune.models.digest import tensor_digest
from edgetune.tune import Lora, release
from edgetune.updates import AdamW
from edgetune.wire import UP, Frame

SEED, STEPS = 3, 2
PUBLISHED = tuning_method("fedit")
SMALL = with_options(
    PUBLISHED, {"rank": 2, "learning_rate": 5e-3, "local_steps": STEPS, "batch_size": 2, "micro_batch": 0}
)
rules = pytest.mark.parametrize("rule", ["mean", "ffa", "flora", "fedex"])


def records(device: int) -> list[Example]:
    return [Example((10 + device, 20 + index, 30, 7, 8, 0), 3) for index in range(3 + device)]


def worker_of(save_tiny: Any, rule: str = "mean") -> Worker:
    return Worker(load_backbone(save_tiny()), with_options(SMALL, {"aggregate": rule}), SEED)


def devices_of(worker: Worker, count: int = 3) -> dict[int, Device]:
    return {id: Device(id, records(id), worker, pad_id=0) for id in range(count)}


def server_of(worker: Worker, devices: dict[int, Device]) -> Server:
    return Server(
        worker.method,
        worker.identity,
        list(devices),
        participation=1.0,
        seed=SEED,
        state=worker.tuned.state(),
    )


def rounds_of(server: Server, devices: dict[int, Device], rounds: int) -> list[dict[int, bytes]]:
    replies = []
    for _ in range(rounds):
        replies.append({id: devices[id].answer(payload) for id, payload in server.open_round().items()})
        server.close_round(replies[-1])
    return replies


def same(one: Dense, other: Dense) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )


def test_the_published_defaults() -> None:
    assert (PUBLISHED.target, PUBLISHED.local) == (Lora(16, 16.0), AdamW(3e-4))
    assert (PUBLISHED.batch_size, PUBLISHED.micro_batch) == (64, 8)


def test_one_device_is_centralised_lora_bit_by_bit(save_tiny: Any) -> None:
    worker = worker_of(save_tiny)
    devices = devices_of(worker, 1)
    server = server_of(worker, devices)
    rounds_of(server, devices, 3)
    alone = worker_of(save_tiny)
    batches = draw_batches(records(0), 2, 0, seed=SEED, device=0)
    for _ in range(3):  # a fresh optimiser every round, batches that go on
        alone.tuned.reset(alone.tuned.state())
        start = alone.tuned.state().tensors
        take_steps(alone.method, alone.tuned, batches, [0] * STEPS, alone.method.local.start(alone.tuned))
        change = alone.tuned.delta().tensors
        alone.tuned.reset(Dense({name: start[name] + change[name] for name in start}))
    assert same(server.state, alone.tuned.state())
    assert not same(server.state, worker_of(save_tiny).tuned.state())


@rules
def test_permuting_devices_and_replies_changes_no_bit(rule: str, save_tiny: Any) -> None:
    worker = worker_of(save_tiny, rule)
    devices = devices_of(worker)
    first, second = server_of(worker, devices), server_of(worker, dict(reversed(devices.items())))
    replies = rounds_of(first, devices, 1)[0]
    worker.tuned.reset(None)
    second.close_round(dict(reversed(replies.items())))
    assert same(first.state, second.state)


@rules
def test_the_frozen_base_is_the_base_again(rule: str, save_tiny: Any) -> None:
    worker = worker_of(save_tiny, rule)
    before = tensor_digest(load_backbone(worker.backbone.folder).model.named_parameters())
    devices = devices_of(worker)
    server = server_of(worker, devices)
    rounds_of(server, devices, 2)
    worker.tuned.reset(server.state)
    assert bool(residuals(server.state)) == (rule in {"flora", "fedex"})
    release(worker.tuned)
    assert tensor_digest(worker.backbone.model.named_parameters()) == before


@rules
def test_a_payload_holds_the_tuned_tensors_and_nothing_else(rule: str, save_tiny: Any) -> None:
    worker = worker_of(save_tiny, rule)
    devices = devices_of(worker)
    server = server_of(worker, devices)
    layers = [one for one in worker.tuned.model.modules() if hasattr(one, "lora_A")]
    sizes = [(one.in_features, one.out_features) for one in layers]
    numbers = 2 * sum(outputs if rule == "ffa" else inputs + outputs for inputs, outputs in sizes)
    messages = worker.messages
    for id, payload in server.open_round().items():
        reply = devices[id].answer(payload)
        body = Frame.decode(reply, kind=UP, method=messages.binds[0], base=messages.binds[1]).body
        found = Reply.decode(body, worker.method.up, messages.reply_known(1, id, server.state)).content.update
        assert sum(one.numel() for one in found.tensors.values()) == numbers
        assert 4 * numbers < len(reply) < 4 * numbers + 200 * len(found.tensors) + 100


@rules
def test_the_weights_after_a_round_are_the_mean_of_the_devices_for_exact_rules(
    rule: str, save_tiny: Any
) -> None:
    worker = worker_of(save_tiny, rule)
    devices = devices_of(worker)
    server = server_of(worker, devices)
    rounds_of(server, devices, 2)
    start = server.state

    def effective(state: Dense) -> dict[str, torch.Tensor]:
        worker.tuned.reset(state)
        layers = {name: one for name, one in worker.tuned.model.named_modules() if hasattr(one, "lora_A")}
        return {
            name: (one.base_layer.weight + one.get_delta_weight("default")).detach().double()
            for name, one in layers.items()
        }

    messages = worker.messages
    replies = {id: devices[id].answer(payload) for id, payload in server.open_round().items()}
    total, mean = sum(one.examples for one in devices.values()), dict[str, torch.Tensor]()
    for id, reply in replies.items():
        body = Frame.decode(reply, kind=UP, method=messages.binds[0], base=messages.binds[1]).body
        one: Contribution = Reply.decode(body, worker.method.up, messages.reply_known(3, id, start)).content
        own = {name: tensor + one.update.tensors.get(name, 0) for name, tensor in start.tensors.items()}
        for name, weight in effective(Dense(own)).items():
            mean[name] = mean.get(name, torch.zeros_like(weight)) + one.examples / total * weight
    closed = server.close_round(replies)
    found = effective(server.state)
    distance = sum(float((found[name] - mean[name]).square().sum()) for name in mean) ** 0.5
    norm = sum(float(one.square().sum()) for one in mean.values()) ** 0.5
    assert closed.residual is not None
    if rule == "mean":
        assert closed.residual == pytest.approx(distance, rel=1e-3)
        assert distance > 1e-5 * norm
    else:
        assert distance < 1e-6 * norm
        assert closed.residual < 1e-6 * norm


def test_a_round_tells_its_residual(save_tiny: Any, tmp_path: Any) -> None:
    worker, events = worker_of(save_tiny), []
    checkpoint = Checkpoint(tmp_path / "run" / "tuned.ledger", worker, "f")
    federate(
        worker, devices_of(worker), Plan(2, 1.0, SEED), checkpoint, lambda _: 1.0, listener=events.append
    )
    told = [one.aggregation_residual for one in events if isinstance(one, RoundFinished)]
    assert len(told) == 2
    assert all(one is not None and one > 0 for one in told)


def test_a_device_cannot_add_to_the_base(save_tiny: Any) -> None:
    worker = worker_of(save_tiny, "fedex")
    devices = devices_of(worker)
    server = server_of(worker, devices)
    replies = rounds_of(server, devices, 1)[0]
    messages = worker.messages
    like = trained(server.state)
    body = Reply(messages.ticket(2, server.state), Contribution(0, 3, 1.0, 0, server.state))
    payload = body.encode(worker.method.up, messages.reply_known(2, 0, server.state))
    frame = Frame(UP, *messages.binds, 2, payload).encode()
    assert "not the tuned ones" in server.close_round({0: frame}).refused[0]
    assert like.tensors.keys() < server.state.tensors.keys()
    assert replies


def test_a_variant_is_one_option() -> None:
    assert with_options(PUBLISHED, {"aggregate": "ffa"}).target == replace(PUBLISHED.target, freeze_a=True)
