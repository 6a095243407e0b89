"""FedSelFT: chosen layers move and no others, in the bytes and the work that they need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgetune.core.batch import response_loss
from edgetune.core.errors import ConfigError, DigestError
from edgetune.core.pieces import cut
from edgetune.core.update import Dense
from edgetune.data.encode import Example
from edgetune.federation.choosing import write_choice
from edgetune.federation.device import Device
from edgetune.federation.server import Server
from edgetune.federation.start import Start
from edgetune.federation.worker import Worker
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options
from edgetune.models.backbone import load_backbone
from edgetune.survey import GradientNorms

SEED, OPTIONS = 5, {"learning_rate": 0.2, "local_steps": 3, "batch_size": 4, "micro_batch": 0}
SELFT = with_options(tuning_method("fedselft"), {**OPTIONS, "layer_budget": 1, "budget_spread": 1})


class House:
    """A server and its devices on a tiny model."""

    def __init__(self, folder: Path, method: TuningMethod, count: int = 4) -> None:
        self.worker = worker = Worker(load_backbone(folder), method, SEED)
        self.devices = {
            id: Device(
                id, [Example((10 + id, 20 + index, 7, 8, 0), 3) for index in range(6)], worker, pad_id=0
            )
            for id in range(count)
        }
        self.server = Server(
            method, worker.identity, list(self.devices), participation=1.0, seed=SEED,
            state=worker.tuned.state(), layers=worker.layers, initial=worker.initial,
            examples=dict.fromkeys(self.devices, 6),
        )  # fmt: skip

    def round(self) -> tuple[dict[int, bytes], dict[int, bytes]]:
        down = self.server.open_round()
        before = {id: self.devices[id].survey(payload) for id, payload in down.items()}
        chosen = self.server.choose(before)
        assert chosen is not None
        up = {id: self.devices[id].answer(down[id], choice=choice) for id, choice in chosen.items()}
        self.server.close_round(up)
        return before, up


def state_of(house: House) -> Dense:
    assert isinstance(house.server.state, Dense)
    return house.server.state


def test_layers_that_nobody_trained_keep_their_bits(save_tiny: Any) -> None:
    house = House(save_tiny(), SELFT)
    before = state_of(house)
    house.round()
    taken = {layer for chosen in house.server.chosen.values() for layer in chosen}
    layers = house.worker.layers
    assert 0 < len(taken) < len(layers)
    for index, layer in enumerate(layers):
        old, new = cut(before, [layer]).tensors, cut(state_of(house), [layer]).tensors
        assert all(torch.equal(old[name], new[name]) for name in old) == (index not in taken)


def test_the_budget_of_all_layers_is_fedavg_bit_for_bit(save_tiny: Any) -> None:
    folder = save_tiny()
    probe = House(folder, SELFT)
    selective = House(
        folder, with_options(SELFT, {"layer_budget": len(probe.worker.layers), "budget_spread": 0})
    )
    whole = House(folder, with_options(tuning_method("fedavg"), {**OPTIONS, "optimiser": "sgd"}))
    for _ in range(2):
        selective.round()
        down = whole.server.open_round()
        whole.server.close_round({id: whole.devices[id].answer(payload) for id, payload in down.items()})
    assert all(
        torch.equal(one, state_of(whole).tensors[name]) for name, one in state_of(selective).tensors.items()
    )


def test_scores_are_squared_norms_of_the_layers_gradients(save_tiny: Any) -> None:
    house = House(save_tiny(), SELFT)
    tuned, layers = house.worker.tuned, house.worker.layers
    batches = house.devices[0]._batches(1, 0)
    scores = GradientNorms(batches=2).measure(tuned, layers, batches, response_loss)
    again, expected = house.devices[0]._batches(1, 0), np.zeros(len(layers))
    weights = dict(tuned.named_weights())
    for _ in range(2):
        loss = response_loss(tuned.model, next(again))
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        for index, layer in enumerate(layers):
            flat = torch.cat([gradients[piece.name].reshape(-1) for piece in layer]).double()
            expected[index] += float(flat.norm()) ** 2 / 2
    assert scores == pytest.approx(expected, rel=1e-5)


def test_bytes_are_those_of_the_chosen_layers_and_of_one_number_a_layer(save_tiny: Any) -> None:
    house = House(save_tiny(), SELFT)
    before, up = house.round()
    layers, state = house.worker.layers, state_of(house)
    for id, payload in up.items():
        chosen = [layers[index] for index in house.server.chosen[str(id)]]
        tensors = cut(state, chosen).tensors
        values = sum(4 * one.numel() for one in tensors.values())
        assert values < len(payload) < values + 130 * len(tensors) + 100
        assert len(before[id]) == 34 + 16 + 4 * len(layers)


def test_a_backward_pass_ends_at_the_lowest_chosen_layer(save_tiny: Any) -> None:
    house = House(save_tiny(), SELFT)
    tuned, layers = house.worker.tuned, house.worker.layers
    batch = next(house.devices[0]._batches(1, 0))

    def backward(chosen: list[Any]) -> int:
        with tuned.only(chosen), torch.enable_grad():
            loss = response_loss(tuned.model, batch)
            with FlopCounterMode(display=False) as counter:
                torch.autograd.grad(loss, [weight for _, weight in tuned.named_weights()])
        return counter.get_total_flops()

    tuned.reset(None)
    top, bottom, whole = backward([layers[-1]]), backward([layers[0]]), backward(list(layers))
    print(f"operations of a backward pass: top layer {top:,}, bottom layer {bottom:,}, all {whole:,}")
    assert top < 0.5 * whole
    assert top < bottom <= whole


def test_scores_that_cannot_be_used_leave_their_device_out(save_tiny: Any) -> None:
    house = House(save_tiny(), SELFT)
    down = house.server.open_round()
    before = {id: house.devices[id].survey(payload) for id, payload in down.items()}
    before[0] = before[1]
    before[2] = before[2][:-1] + bytes([before[2][-1] ^ 1])
    chosen = house.server.choose(before)
    assert chosen is not None
    assert set(chosen) == {1, 3}
    closed = house.server.close_round(
        {id: house.devices[id].answer(down[id], choice=choice) for id, choice in chosen.items()}
    )
    assert set(closed.refused) == {0, 2}
    assert "of device 1" in closed.refused[0]
    assert "damaged" in closed.refused[2]


def test_a_change_of_other_layers_than_the_chosen_ones_is_refused(save_tiny: Any) -> None:
    house = House(save_tiny(), replace(SELFT, survey=GradientNorms(budget=1)))
    down = house.server.open_round()
    before = {id: house.devices[id].survey(payload) for id, payload in down.items()}
    chosen = house.server.choose(before)
    assert chosen is not None
    everything, messages = np.ones(len(house.worker.layers), bool), house.worker.messages
    forged = write_choice(messages, 1, messages.ticket(1, house.server.state), everything)
    closed = house.server.close_round(
        {0: house.devices[0].answer(down[0], choice=forged)}
        | {id: house.devices[id].answer(down[id], choice=chosen[id]) for id in (1, 2, 3)}
    )
    assert list(closed.refused) == [0]
    assert "not the tuned ones" in closed.refused[0]


def test_a_device_without_a_choice_trains_nothing(save_tiny: Any) -> None:
    house = House(save_tiny(), SELFT)
    down = house.server.open_round()
    with pytest.raises(DigestError, match="chosen no layers"):
        house.devices[0].answer(down[0])


def test_a_device_alone_chooses_nothing() -> None:
    with pytest.raises(ConfigError, match="needs a server"):
        SELFT.check_alone()
    with pytest.raises(ConfigError, match="at least 1"):
        with_options(SELFT, {"layer_budget": 0})


@pytest.mark.parametrize("initialiser", ["gaussian", "orthogonal"])
def test_a_computed_start_reaches_a_device_that_computes_none(initialiser: str, save_tiny: Any) -> None:
    folder = save_tiny()
    method = with_options(SELFT, {"target": "lora", "rank": 2, "initialiser": initialiser})
    house = House(folder, method)
    (payload, *_) = house.server.open_round().values()
    there = Worker(load_backbone(folder), method, SEED, start=Start(awaited=True))
    there.start = house.worker.start
    _, state, _ = Device(0, [Example((10, 7, 8, 0), 3)], there, pad_id=0).receive(payload)
    for name, one in state_of(house).tensors.items():
        assert torch.equal(state.tensors[name], one)


def test_a_start_that_is_taken_off_the_base_is_refused() -> None:
    with pytest.raises(ConfigError, match="taken off the base"):
        with_options(SELFT, {"target": "lora", "initialiser": "pissa"})


def test_a_controlled_server_remembers_the_pieces_that_are_chosen(save_tiny: Any) -> None:
    method = with_options(
        SELFT, {"target": "prefix", "prefix_tokens": 2, "aggregate": "controlled", "batch_size": 2}
    )
    house = House(save_tiny(), method)
    before = state_of(house)
    house.round()
    (name,) = before.tensors
    labels = {piece.label for layer in house.worker.layers for piece in layer}
    assert {f"control.v.{label}" for label in labels} <= set(house.server.memory)
    assert not torch.equal(state_of(house).tensors[name], before.tensors[name])


def test_a_choice_counts_in_its_own_round_only(save_tiny: Any) -> None:
    house = House(save_tiny(), SELFT)
    house.round()
    down = house.server.open_round()
    before = {id: house.devices[id].survey(payload) for id, payload in down.items()}
    chosen = house.server.choose(before)
    assert chosen is not None
    up = {id: house.devices[id].answer(down[id], choice=choice) for id, choice in chosen.items()}
    restarted = House(save_tiny(), SELFT)
    restarted.server.state, restarted.server.round = house.server.state, 1
    closed = restarted.server.close_round(up)
    assert closed.void
    assert all("no layers were chosen" in why for why in closed.refused.values())


def test_momentum_would_move_layers_that_nobody_trained() -> None:
    with pytest.raises(ConfigError, match="does not go with replies that hold the layers"):
        with_options(SELFT, {"server": "momentum"})
