"""The federation on a toy task: learning, equal models, bytes, faults, resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federations import SEED, MakeToy, answers, evaluate, examples
from transformers import AutoModelForCausalLM

import edgetune
from edgetune.core.errors import DigestError, DivergenceError, EdgetuneError, ModelError
from edgetune.core.events import RoundFinished, RunResumed
from edgetune.core.ledger import read_ledger
from edgetune.core.update import Contribution, Projected, Update
from edgetune.federation.device import Device
from edgetune.federation.load import materialise
from edgetune.federation.messages import HEAD as STATE_HEAD
from edgetune.federation.reply import HEAD, REPORT, Reply
from edgetune.federation.server import Server
from edgetune.federation.steps import draw_batches, take_steps
from edgetune.federation.worker import Worker
from edgetune.methods.catalogue import tuning_method
from edgetune.models.backbone import load_backbone
from edgetune.models.digest import tensor_digest
from edgetune.run.deploy import refuse_unmerged
from edgetune.tune import plain_model
from edgetune.wire import UP, Frame

PRIVATE = ["dpzero", "dp_aggzo", "hidden_devices"]
both = pytest.mark.parametrize("name", ["fedkseed", "lora"])
DIRECTED = [
    "fedkseed",
    "tiled",
    "linear_pool",
    "signs",
    "mezo",
    "mezo_lora",
    "mezo_prefix",
    "decomfl",
    "decomfl_pool",
    "fzoo",
    "grzo",
    "lozo",
    "subzero",
    "fedskip",
    "fedskip_hadamard",
    "fedsubspace",
    "fedsubspace_lora",
]
SERVED = ["fedkseed_pro", "one_byte", "one_byte_pairs", "feedsign", "fwdllm", "discriminative"]
DENSE = [
    "skipgrad",
    "fedselft",
    "fedpeptao",
    "lora",
    "ffa",
    "flora",
    "fedex",
    "full",
    "linear",
    "adapter",
    "prefix",
    "bitfit",
]
BEGUN = [
    "gaussian",
    "orthogonal",
    "pissa",
    "olora",
    "eva",
    "lora_ga",
    "pissa_flora",
    "pissa_fedex",
    "pissa_adam",
]
every = pytest.mark.parametrize("name", [*DIRECTED, *SERVED, *PRIVATE, *DENSE, *BEGUN])


def server_of(toy: Any, participation: float = 1.0, **more: Any) -> Server:
    state = more.pop("state", toy.worker.tuned.state())
    worker = toy.worker
    return Server(
        toy.method, worker.identity, list(toy.devices), participation=participation, seed=SEED, state=state,
        layers=worker.layers, initial=worker.initial, **more,
    )  # fmt: skip


def digest_of(toy: Any) -> str:
    return tensor_digest(toy.worker.tuned.named_weights())


@both
def test_the_held_out_loss_falls(name: str, toy: MakeToy) -> None:
    run = toy(name)
    before = evaluate(run.worker.tuned)
    run.federate(14 if name == "fedkseed" else 5)
    losses = [event.loss for event in run.events if isinstance(event, RoundFinished)]
    assert losses[-1] < losses[0] < before
    assert losses[-1] < 0.95 * before


@every
def test_a_device_materialises_the_servers_model_every_round(
    name: str, toy: MakeToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toy(name)
    server, tuned = server_of(run), run.worker.tuned
    messages = run.worker.messages
    states: dict[int, Update] = {}
    like = tuned.state() if run.method.directions is None else None
    for round in range(3):
        there = dict.fromkeys(range(4), round)
        tuned.reset(server.state)
        expected = digest_of(run)
        whole, changed = server.open_round(), server.open_round(there)
        assert set(whole) == set(changed)
        for id in whole:
            for payload in (whole[id], changed[id]):
                _, state, _ = messages.read(payload, states, like)
                tuned.reset(state)
                assert digest_of(run) == expected
        assert len(changed[id]) <= len(whole[id])
        moved = (
            round > 0
            if run.method.survey
            else isinstance(server.state, Projected) and len(server.state.keys) > 0
        )
        assert (len(changed[id]) < len(whole[id])) == (moved and run.method.down.relative)
        states[round] = state
        server.close_round(answers(server, run.devices, whole))
        states[round + 1] = server.state


def test_a_fedkseed_round_costs_a_newcomer_9000_bytes_and_6000_who_was_there_before(save_tiny: Any) -> None:
    method = replace(tuning_method("fedkseed"), batch_size=1)
    worker = Worker(load_backbone(save_tiny()), method, SEED)
    numbers = np.random.default_rng(0).normal(0, 1e-6, 4096).astype(np.float32)
    server = Server(
        method, worker.identity, range(200), participation=0.05, seed=SEED,
        state=Projected(np.arange(4096), numbers), round=40,
    )  # fmt: skip
    asked = server.sample()
    down = server.open_round()
    up = {id: reply_of(server, id, worker) for id in asked}
    server.close_round(up)
    newcomer, there = (next(iter(server.open_round(held).values())) for held in ({}, everyone(server, 40)))
    sizes = {len(payload) for payload in up.values()}
    print(f"K=4096, 200 steps, 10 devices: down {len(newcomer)} or {len(there)}, up {sizes} bytes")
    assert len(down[asked[0]]) == len(newcomer) == 34 + STATE_HEAD.size + 6 + 2 * 4096
    assert max(sizes) <= 34 + HEAD.size + REPORT.size + 1 + 2 * 200
    assert len(newcomer) + max(sizes) <= 9_000
    assert len(there) + max(sizes) <= 6_000


def everyone(server: Server, round: int) -> dict[int, int]:
    return dict.fromkeys(server.sample(), round)


def reply_of(server: Server, device: int, worker: Worker) -> bytes:
    """Return what a device sends whose every step counted."""
    messages = worker.messages
    round = server.round + 1
    keys = np.array(sorted(set(worker.method.keys(SEED, round, device))), np.int64)
    update = Projected(keys, np.random.default_rng(device).normal(0, 1e-6, len(keys)).astype(np.float32))
    known = messages.reply_known(round, device, server.state)
    content = Contribution(device, 50, 1.0, 0, update)
    body = Reply(messages.ticket(round, server.state), content).encode(worker.method.up, known)
    return Frame(UP, *messages.binds, round, body).encode()


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("federate", "fedkseed"),
        ("tune", "averaged"),
        ("tune", "scaled"),
        ("tune", "scored"),
        ("federate", "scored"),
        ("tune", "decaying"),
        ("federate", "decaying"),
        ("tune", "mezo_lora"),
        ("federate", "mezo_prefix"),
        ("tune", "adam"),
        ("tune", "heavy"),
        ("federate", "adam"),
        ("federate", "signs"),
        ("federate", "decomfl"),
        ("federate", "decomfl_pool"),
        ("tune", "decomfl"),
        ("federate", "fzoo"),
        ("tune", "fzoo"),
        ("federate", "grzo"),
        ("tune", "grzo"),
        ("federate", "lozo"),
        ("tune", "lozo"),
        ("federate", "subzero"),
        ("tune", "subzero"),
        ("federate", "one_byte"),
        ("federate", "one_byte_pairs"),
        ("federate", "feedsign"),
        ("federate", "fedkseed_pro"),
        ("federate", "lora"),
        ("federate", "fwdllm"),
        ("federate", "discriminative"),
        ("federate", "ffa"),
        ("federate", "flora"),
        ("federate", "fedex"),
        ("federate", "full"),
        ("federate", "adapter"),
        ("tune", "adapter"),
        ("federate", "prefix"),
        ("federate", "bitfit"),
        ("federate", "tiled"),
        ("tune", "tiled"),
        ("federate", "linear_pool"),
        ("federate", "fedselft"),
        ("federate", "fedpeptao"),
        ("federate", "server_momentum"),
        ("federate", "server_adam"),
        ("federate", "pool_adam"),
        ("tune", "mezo"),
        ("tune", "lora"),
        ("tune", "pissa"),
        *(("federate", name) for name in BEGUN),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(driver: str, name: str, toy: MakeToy) -> None:
    whole = getattr(toy(name, run="whole"), driver)(4)
    getattr(toy(name, run="parts"), driver)(2)
    second = toy(name, run="parts")
    resumed = getattr(second, driver)(4)
    assert second.events[0] == RunResumed(2)
    assert resumed.digest == whole.digest
    assert resumed.weights_digest == whole.weights_digest != ""
    assert read_ledger(second.ledger).digest == whole.digest
    left = sorted(path.name for path in second.ledger.parent.iterdir())
    remembering = {
        "tune": {"lora", "adapter", "adam", "heavy", "pissa"},
        "federate": {
            "server_momentum",
            "server_adam",
            "pool_adam",
            "fwdllm",
            "discriminative",
            "fedkseed_pro",
            "fedpeptao",
            "pissa_adam",
        },
    }
    beside = ["tuned.optimiser-4.safetensors"] if name in remembering[driver] else []
    beside += ["start.safetensors"] if name in BEGUN else []
    assert left == sorted(["tuned.ledger", *beside])


def test_a_killed_round_leaves_the_last_complete_one(toy: MakeToy) -> None:
    run = toy(run="killed")
    run.federate(1)
    answer, calls = Device.answer, []

    def killed(self: Device, *given: Any) -> bytes:
        calls.append(self.id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "answer", killed)
        with pytest.raises(KeyboardInterrupt):
            toy(run="killed").federate(3)
    resumed = toy(run="killed").federate(3)
    assert resumed.digest == toy(run="whole").federate(3).digest


def test_a_folder_of_another_configuration_is_not_resumed(toy: MakeToy) -> None:
    toy().federate(1)
    with pytest.raises(DigestError, match="another configuration"):
        toy(fingerprint="g").federate(2)


@pytest.mark.parametrize("name", ["fedkseed", "signs", "mezo", "decomfl", "fzoo", "grzo", "lozo", "subzero"])
def test_one_device_alone_is_the_federation_of_one(name: str, toy: MakeToy) -> None:
    federated, alone = toy(name, run="f"), toy(name, run="s")
    federated.devices = {0: federated.devices[0]}
    first, second = federated.federate(3, 1.0), alone.tune(3)
    assert first.directions == second.directions
    table = [np.zeros(64, np.float64), np.zeros(64, np.float64)]
    if name in {"mezo", "decomfl", "fzoo", "grzo", "lozo", "subzero"}:
        assert first.digest == second.digest
        return
    for sums, ledger in zip(table, (first, second), strict=True):
        np.add.at(sums, ledger.update.keys, ledger.update.coefficients)
    assert np.abs(table[0]).max() > 0
    assert np.allclose(*table, rtol=1e-3, atol=1e-3 * np.abs(table[0]).max())


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("fedkseed", "gpt2"),
        ("signs", "llama"),
        ("mezo", "gpt2"),
        ("lora", "llama"),
        ("mezo_lora", "llama"),
        ("mezo_lora", "gpt2"),
        ("scaled", "llama"),
        ("scaled", "gpt2"),
        ("ffa", "llama"),
        ("flora", "llama"),
        ("flora", "gpt2"),
        ("fedex", "gpt2"),
        ("full", "llama"),
        ("full", "gpt2"),
        ("linear", "gpt2"),
        ("tiled", "llama"),
        ("tiled", "gpt2"),
        ("grzo", "gpt2"),
        ("linear_pool", "llama"),
        ("linear_pool", "gpt2"),
        ("bitfit", "llama"),
        ("bitfit", "gpt2"),
        ("pissa", "llama"),
        ("olora", "gpt2"),
        ("lora_ga", "llama"),
        ("pissa_flora", "gpt2"),
    ],
)
def test_a_loaded_ledger_is_the_drivers_model_and_survives_transformers(
    name: str, family: str, toy: MakeToy, tmp_path: Path
) -> None:
    run = toy(name, family=family)
    run.federate(2)
    model = plain_model(run.worker.tuned)
    loaded = edgetune.load(run.folder, run.ledger)
    ids = torch.arange(1, 21).view(2, 10)
    with torch.no_grad():
        expected = loaded(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, expected)
        loaded.save_pretrained(tmp_path / "saved")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        assert torch.equal(again(input_ids=ids).logits, expected)
        base = load_backbone(run.folder).model
        assert not torch.equal(base(input_ids=ids).logits, expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["mezo_prefix", "prefix", "adapter"])
def test_what_cannot_be_merged_loads_and_becomes_no_file(name: str, family: str, toy: MakeToy) -> None:
    run = toy(name, family=family)
    run.tune(2)
    model = plain_model(run.worker.tuned)
    loaded = edgetune.load(run.folder, run.ledger)
    ids = torch.arange(1, 21).view(2, 10)
    with torch.no_grad():
        mask = torch.ones_like(ids)
        expected = loaded(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, expected)
        assert not torch.equal(load_backbone(run.folder).model(input_ids=ids).logits, expected)
    with pytest.raises(ModelError, match="cannot be merged"):
        refuse_unmerged(loaded)


@pytest.mark.parametrize("name", ["mezo_lora", "mezo_prefix"])
def test_the_ledger_of_an_adapter_is_a_pair_a_step(name: str, toy: MakeToy) -> None:
    run = toy(name)
    run.tune(3)
    assert run.ledger.stat().st_size < 3000 + 12 * 3 * run.method.local_steps
    ledger = read_ledger(run.ledger)
    assert ledger.adapter is not None
    assert ledger.adapter["seed"] == SEED
    assert len(ledger.update.keys) == 3 * run.method.local_steps


def test_a_run_in_half_precision_loads_in_either_type(toy: MakeToy) -> None:
    run = toy(options={"dtype": torch.bfloat16})
    run.federate(2)
    half = edgetune.load(run.folder, run.ledger, dtype=torch.bfloat16)
    assert tensor_digest(half.named_parameters()) == digest_of(run)
    edgetune.load(run.folder, run.ledger)


def test_a_ledger_on_another_base_or_damaged_is_not_loaded(toy: MakeToy, save_tiny: Any) -> None:
    run = toy()
    run.federate(1)
    with pytest.raises(DigestError, match="belongs to base"):
        edgetune.load(save_tiny(seed=1), run.ledger)
    data = bytearray(run.ledger.read_bytes())
    data[-1] ^= 1
    run.ledger.write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        edgetune.load(run.folder, run.ledger)


def test_damaged_layer_scales_are_refused(toy: MakeToy) -> None:
    run = toy("scaled")
    ledger = run.tune(1)
    for text in ("[1]", "nonsense", '{"w": null}'):
        broken = replace(ledger, extra={"layer_scale": text})
        with pytest.raises(ModelError, match="layer scales"):
            materialise(load_backbone(run.folder), broken)


def test_a_ledger_is_not_loaded_with_another_key(toy: MakeToy) -> None:
    run = toy()
    run.federate(1)
    with pytest.raises(DigestError, match="the key has id"):
        edgetune.load(run.folder, run.ledger, key=bytes(32))


@both
def test_a_device_whose_losses_are_no_numbers_is_refused_and_counted(
    name: str, toy: MakeToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toy(name)
    server = server_of(run)
    replies = {id: run.devices[id].answer(payload) for id, payload in server.open_round().items()}
    monkeypatch.setattr(
        "edgetune.federation.steps.response_loss", lambda *_: torch.tensor(float("nan")).requires_grad_()
    )
    monkeypatch.setattr(
        "edgetune.estimators.backprop.torch.autograd.grad",
        lambda loss, weights: [torch.full_like(one, float("nan")) for one in weights],
    )
    broken = {id: run.devices[id].answer(payload) for id, payload in server.open_round().items()}
    state = server.state
    with pytest.raises(DivergenceError, match="no reply can be used"):
        server.close_round(broken)
    assert server.state is state
    assert server.round == 0
    closed = server.close_round(replies | {2: broken[2]})
    assert list(closed.refused) == [2]
    assert closed.dropped == run.method.local_steps
    assert server.state.is_finite


def test_steps_that_are_no_numbers_leave_the_weights(toy: MakeToy, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = toy(), []
    before = digest_of(run)

    def loss(*_: object) -> torch.Tensor:
        calls.append(1)
        return torch.tensor([float("inf"), 1.0, float("nan"), 2.0][len(calls) % 4])

    monkeypatch.setattr("edgetune.federation.steps.response_loss", loss)
    feed = draw_batches(examples(0), 2, 0, seed=0, device=0)
    steps = take_steps(run.method, run.worker.tuned, feed, [1, 2, 3], {})
    assert (steps.dropped, digest_of(run)) == (3, before)
    assert np.isnan(steps.loss)


def test_a_schedule_scales_the_coefficients_of_each_round(
    toy: MakeToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = toy("decaying"), []

    def loss(*_: object) -> torch.Tensor:
        calls.append(1)
        return torch.tensor([2.0, 1.0][(len(calls) - 1) % 2])

    monkeypatch.setattr("edgetune.federation.steps.response_loss", loss)
    full = run.method.local.lr / (2 * run.method.estimate.eps)
    for round in (1, 3, 5):
        run.worker.tuned.reset(None)
        feed = draw_batches(examples(0), 2, 0, seed=0, device=0, first=4 * (round - 1))
        take_steps(run.method, run.worker.tuned, feed, [1, 2, 3, 4], {}, round=round)
        table = dict(zip(run.worker.tuned.delta().keys, run.worker.tuned.delta().coefficients, strict=True))
        for step, key in enumerate((1, 2, 3, 4)):
            t = 4 * (round - 1) + step
            rate = t / 3 if t < 3 else (1 + np.cos(np.pi * min(1, (t - 3) / 13))) / 2
            assert -table.get(key, 0.0) / full == pytest.approx(rate, rel=1e-5, abs=1e-7)


def test_a_slope_that_is_no_number_leaves_its_step_and_is_counted(
    toy: MakeToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = toy("averaged"), []

    def loss(*_: object) -> torch.Tensor:
        calls.append(1)
        return torch.tensor([2.0, 1.0, float("nan"), 1.0, 1.0, 2.0][(len(calls) - 1) % 6])

    monkeypatch.setattr("edgetune.federation.steps.response_loss", loss)
    feed = draw_batches(examples(0), 2, 0, seed=0, device=0)
    steps = take_steps(run.method, run.worker.tuned, feed, [1, 2, 3, 4, 5, 6], {})
    assert (steps.dropped, steps.loss) == (2, 1.5)
    delta = run.worker.tuned.delta()
    lr, slope = run.method.local.lr, 1 / (2 * run.method.estimate.eps)
    assert delta.keys.tolist() == [1, 3, 4, 6]
    assert delta.coefficients.tolist() == pytest.approx([-lr * slope / 2, lr * slope / 2] * 2)


def test_absent_devices_do_not_stop_a_round_and_late_joiners_pay_the_same(toy: MakeToy) -> None:
    run = toy()
    server = server_of(run)
    down = server.open_round()
    server.close_round({1: run.devices[1].answer(down[1])})
    assert server.round == 1
    assert len(set(server.open_round().values())) == 1


def test_devices_are_sampled_without_replacement_and_by_seed_and_round(toy: MakeToy) -> None:
    run = toy()
    chosen = [server_of(run, 0.5, round=at).sample() for at in range(20)]
    assert all(len(set(one)) == 2 for one in chosen)
    assert {id for one in chosen for id in one} == {0, 1, 2, 3}
    assert chosen == [server_of(run, 0.5, round=at).sample() for at in range(20)]
    digest, none = run.worker.identity, Projected.none()
    many = Server(run.method, digest, range(100), participation=0.29, seed=SEED, state=none)
    assert len(many.sample()) == 29  # 0.29 * 100 is 28.999999999999996


def test_a_single_run_that_diverges_stops(toy: MakeToy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.federation.steps.response_loss", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(DivergenceError, match="interval 1"):
        toy("mezo").tune(2)


def test_a_lost_optimiser_state_is_an_error_of_ours(toy: MakeToy) -> None:
    run = toy("lora")
    run.tune(1)
    next(run.ledger.parent.glob("*.optimiser-*")).unlink()
    with pytest.raises(EdgetuneError):
        toy("lora").tune(2)


@pytest.mark.parametrize("name", ["fedkseed", "mezo", "adam", "lora"])
def test_a_run_is_not_moved_by_the_default_type_that_a_load_beside_it_sets(name: str, toy: MakeToy) -> None:
    alone = toy(name, run="alone").tune(2)
    beside = toy(name, run="beside")
    torch.set_default_dtype(torch.bfloat16)  # transformers does while it builds a model of that type
    try:
        assert beside.tune(2).digest == alone.digest
    finally:
        torch.set_default_dtype(torch.float32)


def test_states_are_kept_only_where_messages_build_on_them(toy: MakeToy) -> None:
    for name, kept in (("fedkseed", True), ("full", False)):
        run = toy(name, run=name)
        server = server_of(run)
        for _ in range(2):
            down = server.open_round()
            server.close_round({id: run.devices[id].answer(payload) for id, payload in down.items()})
        assert bool(server._past) == bool(run.worker.states) == kept
