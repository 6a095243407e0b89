"""FedPepTAO: bytes of the chosen layers only, other layers untouched, FedAvg of a prefix as the special case."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgetune.aggregate import Controlled
from edgetune.core.errors import DigestError
from edgetune.core.pieces import pieces
from edgetune.core.update import Dense
from edgetune.data.encode import Example
from edgetune.federation.choosing import HEAD as SCORES_HEAD
from edgetune.federation.choosing import TICKET
from edgetune.federation.device import Device
from edgetune.federation.server import Server
from edgetune.federation.worker import Worker
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options
from edgetune.models.backbone import load_backbone
from edgetune.survey import Density, PromptLayers
from edgetune.survey.prompt_layers import MASK
from edgetune.tune import Prefix
from edgetune.updates import AdamW
from edgetune.wire.frame import OVERHEAD

PUBLISHED = tuning_method("fedpeptao")
SEED, LAYERS, TOKENS = 5, 2, 3
EACH = TOKENS * 2 * 16
"""Numbers of a layer's prompts: keys and values of one head of 16."""
SMALL = {"local_steps": 2, "batch_size": 4, "micro_batch": 0, "prefix_tokens": TOKENS, "learning_rate": 1e-2}


def examples(device: int) -> list[Example]:
    return [Example((10 + device, 20 + at, 30, 7, 8, 0), 3) for at in range(4 + device)]


class Run:
    """A federation of four devices in one process."""

    def __init__(self, folder: Any, method: TuningMethod, participation: float = 1.0) -> None:
        self.worker = Worker(load_backbone(folder), method, SEED)
        self.devices = {id: Device(id, examples(id), self.worker, pad_id=0) for id in range(4)}
        self.first = self.worker.tuned.state()
        self.server = Server(
            method, self.worker.identity, list(self.devices), participation=participation, seed=SEED,
            state=self.worker.tuned.state(), layers=self.worker.layers, initial=self.worker.initial,
            examples={id: device.examples for id, device in self.devices.items()},
        )  # fmt: skip
        self.down, self.up = dict[int, bytes](), dict[int, bytes]()
        self.before, self.choice = dict[int, bytes](), dict[int, bytes]()

    def rounds(self, count: int) -> torch.Tensor:
        """Return the prompts after so many rounds."""
        server, devices = self.server, self.devices
        for _ in range(count):
            self.down = server.open_round()
            self.before = (
                {id: devices[id].survey(payload) for id, payload in self.down.items()}
                if server.surveys
                else {}
            )
            chosen = server.choose(self.before)
            self.choice = chosen or {}
            self.up = {
                id: devices[id].answer(payload, choice=self.choice.get(id))
                for id, payload in self.down.items()
            }
            assert not server.close_round(self.up).refused
        assert isinstance(server.state, Dense)
        (prompts,) = server.state.tensors.values()
        return prompts


def test_the_published_defaults() -> None:
    assert PUBLISHED.target == Prefix(20)
    assert PUBLISHED.local == AdamW(4e-2, weight_decay=0.1)
    assert PUBLISHED.aggregate == Controlled(True, 0.05, 0.9, 0.99, control=True)
    assert PUBLISHED.survey == PromptLayers(Density(), 0.0, 50)
    assert (PUBLISHED.batch_size, PUBLISHED.directions) == (8, None)


@pytest.mark.parametrize("kept", [1, 2])
def test_bytes_are_those_of_the_chosen_layers(kept: int, save_tiny: Any) -> None:
    run = Run(save_tiny(), with_options(PUBLISHED, {"keep_ratio": kept / LAYERS, **SMALL}))
    run.rounds(1)
    up = {len(payload) for payload in run.up.values()}
    assert {len(one) for one in run.before.values()} == {OVERHEAD + SCORES_HEAD.size + 4 * (LAYERS - 1)}
    assert {len(one) for one in run.choice.values()} == {OVERHEAD + TICKET + 1}
    assert max(len(one) for one in run.down.values()) < 120  # nobody moved yet
    run.rounds(1)
    assert run.before == {}
    for sizes in (up, {len(one) for one in run.up.values()}, {len(one) for one in run.down.values()}):
        (size,) = sizes
        assert 0 < size - 4 * kept * EACH < 250 * kept


def test_only_the_chosen_layers_move_and_they_are_the_same_for_all(save_tiny: Any) -> None:
    run = Run(save_tiny(), with_options(PUBLISHED, {"keep_ratio": 0.5, **SMALL}), participation=0.5)
    prompts = run.rounds(4)
    mask = run.server.memory[MASK].numpy().astype(bool)
    assert mask.sum() == 1
    (name,) = run.first.tensors
    before = run.first.tensors[name]
    for layer, chosen in zip(run.worker.layers, mask, strict=True):
        (piece,) = pieces([layer])
        assert torch.equal(piece.of(prompts), piece.of(before)) != chosen
        each = run.server.memory[f"control.c_k.{piece.label}"]
        assert bool(each.any()) == chosen
    assert len(set(run.choice.values())) == 1


def test_with_all_layers_and_no_step_of_the_server_it_is_fedavg_of_a_prefix(save_tiny: Any) -> None:
    folder = save_tiny()
    plain = with_options(tuning_method("fedpetuning"), {"target": "prefix", "weight_decay": 0.1, **SMALL})
    off = {"keep_ratio": 1.0, "server_rate": 0.0, "server_momentum": 0.0, "control": False, **SMALL}
    found = Run(folder, with_options(PUBLISHED, off), participation=0.5).rounds(3)
    expected = Run(folder, plain, participation=0.5).rounds(3)
    assert torch.equal(found, expected)
    on = {"keep_ratio": 1.0, **SMALL}
    assert not torch.equal(Run(folder, with_options(PUBLISHED, on), participation=0.5).rounds(3), expected)


def test_a_device_that_sends_no_number_is_left_out_of_the_choice(save_tiny: Any) -> None:
    run = Run(save_tiny(), with_options(PUBLISHED, {"spectrum_steps": 3, **SMALL}))
    down = run.server.open_round()
    before = {id: run.devices[id].survey(payload) for id, payload in down.items()}
    damaged = bytearray(before[2])
    damaged[-9] ^= 1
    chosen = run.server.choose(before | {2: bytes(damaged)})
    assert chosen is not None
    assert set(chosen) == {0, 1, 3}
    with pytest.raises(DigestError, match="no layers"):
        run.devices[2].answer(down[2])
    replies = {id: run.devices[id].answer(down[id], choice=chosen[id]) for id in chosen}
    assert list(run.server.close_round(replies).refused) == [2]


def test_golden_numbers(save_tiny: Any) -> None:
    run = Run(save_tiny(), with_options(PUBLISHED, {"spectrum_steps": 6, **SMALL}), participation=0.5)
    prompts = run.rounds(3)
    found = [float(prompts.double().sum()), float(prompts.double().square().sum())]
    assert run.server.memory[MASK].tolist() == [1, 0]
    assert found == pytest.approx([1.48406, 1.83515], rel=1e-4)
