"""Exact rules for low-rank factors: what they add to the base, what the mean lacks, and the form that travels."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from edgetune.aggregate import AGGREGATORS, gap, ordered, shares
from edgetune.core.errors import DigestError
from edgetune.core.residual import folded, formed, misfit, residuals, trained
from edgetune.core.update import Contribution, Dense
from edgetune.wire import Known, Tensors

OUTPUTS, INPUTS, RANK, SCALE = 60, 50, 2, 0.75

LEFT, RIGHT = "m.layer.lora_B.default.weight", "m.layer.lora_A.default.weight"
EXAMPLES = [10, 1, 5]
exact = pytest.mark.parametrize("rule", ["flora", "fedex"])


def tensor(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def state_of(seed: int = 0) -> Dense:
    generator = torch.Generator().manual_seed(seed)
    return Dense({LEFT: tensor(generator, OUTPUTS, RANK), RIGHT: tensor(generator, RANK, INPUTS)})


def contributions(seed: int = 1) -> list[Contribution]:
    generator = torch.Generator().manual_seed(seed)
    changes = [
        Dense({LEFT: tensor(generator, OUTPUTS, RANK), RIGHT: tensor(generator, RANK, INPUTS)})
        for _ in EXAMPLES
    ]
    return [Contribution(id, EXAMPLES[id], 1.0, 0, change) for id, change in enumerate(changes)]


def moved(state: Dense, change: Dense) -> Dense:
    """Return a state after a change, as a server forms it."""
    sums = {name: one + change.tensors.get(name, 0) for name, one in state.tensors.items()}
    return Dense({**change.tensors, **sums})


def weights_of(state: Dense) -> torch.Tensor:
    """Return s (R + B A) in double precision."""
    product = state.tensors[LEFT].double() @ state.tensors[RIGHT].double()
    return SCALE * (product + sum(one.double() for one in formed(residuals(state)).values()))


def wanted(state: Dense, told: list[Contribution]) -> torch.Tensor:
    """Return s (R + sum_c p_c B_c A_c) in double precision."""
    total = sum(EXAMPLES)
    added = Dense(residuals(state))
    beneath = sum(one.double() for one in formed(added.tensors).values())
    products = sum(
        one.examples
        / total
        * moved(trained(state), one.update).tensors[LEFT].double()
        @ moved(trained(state), one.update).tensors[RIGHT].double()
        for one in told
    )
    return SCALE * (beneath + products)


def gap_of(rule: str, state: Dense, told: list[Contribution]) -> float:
    change = AGGREGATORS[rule]().combine(told, state, {})
    found = gap(told, shares(told, by_examples=True), state, change, SCALE)
    assert found is not None
    return found


@exact
def test_an_exact_rule_gives_the_mean_of_the_products_round_after_round(rule: str) -> None:
    state = state_of()
    if rule == "flora":
        state = Dense({**state.tensors, LEFT: torch.zeros(OUTPUTS, RANK)})
    for round in range(3):
        told = contributions(round)
        expected = wanted(state, told)
        change = AGGREGATORS[rule]().combine(told, state, {})
        assert gap_of(rule, state, told) < 1e-5 * float(expected.norm())
        state = Tensors().settle(moved(state, change))
        assert float((weights_of(state) - expected).norm()) < 1e-6 * float(expected.norm())


def test_the_gap_of_the_mean_is_that_of_the_formula() -> None:
    state, told = state_of(), contributions()
    mean = AGGREGATORS["mean"]().combine(told, state, {})
    assert isinstance(mean, Dense)
    after, total = moved(state, mean).tensors, sum(EXAMPLES)
    centred = sum(
        one.examples
        / total
        * (moved(state, one.update).tensors[LEFT].double() - after[LEFT].double())
        @ (moved(state, one.update).tensors[RIGHT].double() - after[RIGHT].double())
        for one in told
    )
    measured = float((weights_of(moved(state, mean)) - wanted(state, told)).norm())
    assert gap_of("mean", state, told) == pytest.approx(SCALE * float(centred.norm()), rel=1e-5)
    assert gap_of("mean", state, told) == pytest.approx(measured, rel=1e-5)


def test_a_fixed_first_factor_leaves_no_gap() -> None:
    state = Dense({LEFT: state_of().tensors[LEFT]})
    told = [
        Contribution(one.device, one.examples, 1.0, 0, Dense({LEFT: one.update.tensors[LEFT]}))
        for one in contributions()
    ]
    assert gap_of("ffa", state, told) == 0


@exact
def test_the_order_of_arrival_changes_no_bit(rule: str) -> None:
    state, told = state_of(), contributions()
    expected = AGGREGATORS[rule]().combine(told, state, {}).tensors
    for order in itertools.permutations(told):
        found = AGGREGATORS[rule]().combine(list(order), state, {}).tensors
        assert all(torch.equal(found[name], one) for name, one in expected.items())
        assert gap_of(rule, state, ordered(order)) == gap_of(rule, state, told)


def test_flora_leaves_the_factors_of_the_state() -> None:
    change = AGGREGATORS["flora"]().combine(contributions(), state_of(), {})
    assert not any(one.any() for one in trained(change).tensors.values())


def test_factors_travel_until_a_matrix_is_smaller() -> None:
    state, sizes = Dense({**state_of().tensors, LEFT: torch.zeros(OUTPUTS, RANK)}), []
    for round in range(6):
        change = AGGREGATORS["flora"]().combine(contributions(round), state, {})
        before = formed(residuals(moved(state, change)))["m.layer"]
        state = Tensors().settle(moved(state, change))
        assert torch.allclose(formed(residuals(state))["m.layer"], before, atol=1e-5)
        sizes.append(sum(one.numel() for one in residuals(state).values()))
    each = RANK * len(EXAMPLES) * (OUTPUTS + INPUTS)
    assert sizes == [each, 2 * each, 3 * each, 4 * each, OUTPUTS * INPUTS, OUTPUTS * INPUTS]
    assert folded(state).tensors.keys() == state.tensors.keys()


def test_a_residual_of_no_tuned_layer_or_of_another_shape_is_found() -> None:
    like = state_of().tensors
    good = residuals(AGGREGATORS["fedex"]().combine(contributions(), state_of(), {}))
    assert misfit(good, like) is None
    left, right = good
    for broken in (
        {"other.residual": torch.zeros(OUTPUTS, INPUTS)},
        {"m.layer.residual": torch.zeros(INPUTS, OUTPUTS)},
        {"m.layer.residual": torch.zeros(OUTPUTS, INPUTS).double()},
        {left: good[left]},
        {right: good[right]},
        {**good, left: good[left][:, 1:]},
        {**good, left: good[left][1:]},
        {**good, right: good[right][:, :1]},
    ):
        assert misfit(broken, like) is not None


def test_what_is_no_state_brings_no_residual() -> None:
    state = state_of()
    change = AGGREGATORS["fedex"]().combine(contributions(), state, {})
    after: Any = moved(state, change)
    body = Tensors().encode(after)
    assert Tensors().decode(body, Known(like=state, is_state=True)).tensors.keys() == after.tensors.keys()
    with pytest.raises(DigestError, match="not the tuned ones"):
        Tensors().decode(body, Known(like=after))
