"""Momentum with control variates: by the plain recursion, their sum, and the mean as the special case."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgetune.aggregate import Controlled, Mean
from edgetune.core.errors import ConfigError
from edgetune.core.update import Contribution, Dense
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options

EXAMPLES = {2: 10, 5: 30, 6: 20, 11: 40}
STATE = Dense({"a": torch.zeros(3), "b": torch.zeros(2, 2)})
ROUNDS = [[2, 6], [5, 6, 11], [2, 5, 6, 11], [11], [5, 2]]


def contribution(round: int, device: int, names: str = "ab") -> Contribution:
    generator = torch.Generator().manual_seed(100 * round + device)
    tensors = {name: torch.randn(one.shape, generator=generator) for name, one in STATE.tensors.items()}
    change = Dense({name: tensors[name] for name in names})
    return Contribution(device, EXAMPLES[device], 1.0, 0, change)


def memory_of(rule: Controlled) -> Any:
    return rule.start(STATE) | rule.enrol(STATE, EXAMPLES)


@pytest.mark.parametrize("by_examples", [True, False])
def test_a_round_is_the_published_recursion(by_examples: bool) -> None:
    rule = Controlled(by_examples, rate=0.3, momentum=0.8, decay=0.9)
    memory, v, each = memory_of(rule), np.zeros(3), {id: np.zeros(3) for id in EXAMPLES}
    weight = EXAMPLES if by_examples else dict.fromkeys(EXAMPLES, 1)
    for round, asked in enumerate(ROUNDS):
        told = [contribution(round, id) for id in asked]
        sent = {one.device: one.update.tensors["a"].double().numpy() for one in told}
        total, p = sum(weight.values()), {id: weight[id] / sum(weight[one] for one in asked) for id in asked}
        c = sum(weight[id] * each[id] for id in each) / total
        mean = sum(p[id] * sent[id] for id in asked)
        v = 0.8 * v + 0.2 * mean + sum(p[id] * (c - each[id]) for id in asked)
        each |= sent
        found = rule.combine(told, STATE, memory)
        assert np.allclose(found.tensors["a"].numpy(), mean + 0.3 * 0.9**round * v, atol=1e-5)


@pytest.mark.parametrize("by_examples", [True, False])
def test_the_control_variates_of_all_devices_sum_to_that_of_the_server(by_examples: bool) -> None:
    rule = Controlled(by_examples)
    memory = memory_of(rule)
    shares = memory["control.q"]
    assert shares.tolist() == pytest.approx([0.1, 0.3, 0.2, 0.4] if by_examples else [0.25] * 4)
    for round, asked in enumerate(ROUNDS):
        rule.combine([contribution(round, id, "a" if id == 6 else "ab") for id in asked], STATE, memory)
        for name in "ab":
            each = memory[f"control.c_k.{name}"].double()
            summed = torch.einsum("k,k...->...", shares, each)
            assert each.abs().max() > 0
            assert torch.allclose(memory[f"control.c.{name}"], summed, atol=1e-12)


def test_the_correction_is_nothing_if_all_devices_answer() -> None:
    rule = Controlled(rate=1.0, momentum=0.0, decay=1.0)
    memory = memory_of(rule)
    for round in range(3):
        told = [contribution(round, id) for id in EXAMPLES]
        mean = Mean().combine(told, STATE, {}).tensors
        found = rule.combine(told, STATE, memory).tensors
        assert all(torch.allclose(found[name], 2 * mean[name], atol=1e-6) for name in mean)


def test_without_a_rate_it_is_the_mean_bit_for_bit() -> None:
    for rule in (Controlled(rate=0.0), Controlled(rate=0.0, control=False, momentum=0.0)):
        memory = memory_of(rule)
        for round, asked in enumerate(ROUNDS):
            told = [contribution(round, id) for id in asked]
            mean, found = Mean().combine(told, STATE, {}), rule.combine(told, STATE, memory)
            assert all(torch.equal(found.tensors[name], mean.tensors[name]) for name in mean.tensors)


def test_the_order_of_replies_plays_no_part_and_tensors_that_nobody_sent_stay() -> None:
    rule = Controlled()
    first, second = memory_of(rule), memory_of(rule)
    for round, asked in enumerate(ROUNDS):
        told = [contribution(round, id, "a") for id in asked]
        one, other = rule.combine(told, STATE, first), rule.combine(told[::-1], STATE, second)
        assert list(one.tensors) == ["a"]
        assert torch.equal(one.tensors["a"], other.tensors["a"])
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(first[f"control.{kind}.b"].any() for kind in ("v", "c", "c_k"))


def test_the_memory_keeps_its_names_types_and_shapes() -> None:
    rule = Controlled()
    memory = memory_of(rule)
    before = {name: (one.dtype, one.shape) for name, one in memory.items()}
    rule.combine([contribution(0, 5)], STATE, memory)
    assert {name: (one.dtype, one.shape) for name, one in memory.items()} == before
    assert before["control.c_k.b"] == (torch.float32, (4, 2, 2))
    assert not Controlled(control=False).enrol(STATE, EXAMPLES)


def test_the_rate_decays_to_a_floor_and_zero_stays() -> None:
    for rate, expected in ((0.05, 1e-4), (0.0, 0.0), (5e-5, 5e-5)):
        rule = Controlled(rate=rate, momentum=0.0, control=False)
        memory = memory_of(rule)
        memory["control.rounds"] += 10_000
        told = [contribution(0, 5)]
        mean = Mean().combine(told, STATE, {}).tensors["a"]
        assert torch.allclose(rule.combine(told, STATE, memory).tensors["a"], (1 + expected) * mean)


def test_numbers_out_of_range_and_a_second_step_of_the_server_are_refused() -> None:
    for broken in ({"rate": -1.0}, {"rate": float("nan")}, {"momentum": 1.0}, {"decay": 0.0}, {"decay": 1.1}):
        with pytest.raises(ConfigError, match="the server's rate"):
            Controlled(**broken)
    for step in ("momentum", "adam"):
        with pytest.raises(ConfigError, match="a step of the server of its own"):
            with_options(tuning_method("fedpeptao"), {"server": step})
