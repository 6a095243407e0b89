"""The optimiser's state beside a ledger: whose it is not, and what no optimiser can hold, is refused before a step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federations import MakeToy
from safetensors.torch import load_file, save

from edgetune.core.errors import ModelError
from edgetune.core.ledger import read_ledger, write_ledger
from edgetune.federation.beside import BESIDE, beside

State = dict[str, torch.Tensor]
OPTIMISERS = pytest.mark.parametrize("name", ["adam", "heavy", "lora"])


def put(ledger: Path, state: State) -> None:
    """Write a state with its digest in the ledger, as whoever can write both would."""
    data, found = save(state), read_ledger(ledger)
    beside(ledger, found.round).write_bytes(data)
    write_ledger(ledger, replace(found, extra={**found.extra, BESIDE: hashlib.sha256(data).hexdigest()}))


@OPTIMISERS
def test_any_changed_byte_is_noticed(name: str, toy: MakeToy) -> None:
    run = toy(name)
    run.tune(2)
    path = beside(run.ledger, 2)
    whole = path.read_bytes()
    for at in (0, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ModelError, match="not the one that the ledger"):
            toy(name).tune(3)
    path.write_bytes(whole[:-4])
    with pytest.raises(ModelError, match="not the one that the ledger"):
        toy(name).tune(3)
    path.unlink()
    with pytest.raises(ModelError, match="missing"):
        toy(name).tune(3)


@OPTIMISERS
def test_the_state_of_another_round_is_refused(name: str, toy: MakeToy) -> None:
    run = toy(name)
    run.tune(1)
    older = beside(run.ledger, 1).read_bytes()
    run = toy(name)
    run.tune(2)
    beside(run.ledger, 2).write_bytes(older)
    with pytest.raises(ModelError, match="not the one that the ledger"):
        toy(name).tune(3)


def longer(state: State) -> State:
    return {key: torch.cat([one, one]) if one.ndim else one for key, one in state.items()}


def with_keys(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    return lambda state: state | {"keys": change(state["keys"].clone())}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {},
        lambda state: state | {"more": torch.zeros(1)},
        lambda state: {key: one for key, one in state.items() if key != "m"},
        lambda state: state | {"m": state["m"].double()},
        lambda state: state | {"m": state["m"][:-1]},
        lambda state: state | {"m": state["m"] * float("nan")},
        lambda state: state | {"m": state["m"].view(1, -1)},
        lambda state: state | {"t": torch.zeros(2)},
        longer,
        with_keys(lambda keys: keys - 1000),
        with_keys(lambda keys: keys + 64),
        with_keys(lambda keys: torch.zeros_like(keys)),
        with_keys(lambda keys: keys.int()),
        with_keys(lambda keys: keys.view(1, -1)),
    ],
)
def test_what_no_adam_over_a_pool_can_hold(change: Callable[[State], State], toy: MakeToy) -> None:
    run = toy("adam")
    run.tune(2)
    put(run.ledger, change(load_file(beside(run.ledger, 2))))
    with pytest.raises(ModelError, match="none that this method can have"):
        toy("adam").tune(3)


def test_moments_of_other_shapes_are_refused(toy: MakeToy) -> None:
    run = toy("lora")
    run.tune(1)
    state = load_file(beside(run.ledger, 1))
    name = next(key for key in state if key.startswith("m."))
    put(run.ledger, state | {name: state[name][:1].clone()})
    with pytest.raises(ModelError, match="none that this method can have"):
        toy("lora").tune(2)


def test_what_kills_left_is_removed_and_the_last_state_is_kept(toy: MakeToy) -> None:
    run = toy("adam")
    run.tune(2)
    for round in (0, 1, 7):
        beside(run.ledger, round).write_bytes(b"left by a kill")
    again = toy("adam")
    again.tune(3)
    assert [path.name for path in run.ledger.parent.glob("*.optimiser-*")] == [beside(run.ledger, 3).name]
