"""Weights are perturbed when read, never written; in every family and type."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import ModelError
from edgetune.core.keys import pool_key
from edgetune.core.update import Dense, Projected
from edgetune.directions import Gaussian, Hadamard, Rademacher
from edgetune.directions.kept import KeptSpace
from edgetune.directions.kind import CHUNK
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.measure.allocator import allocator_peak
from edgetune.tune import ProjectedTuned
from edgetune.updates import Sgd

FAMILIES = ("llama", "gpt2", "opt", "qwen2", "gemma")
KINDS = (Rademacher(), Gaussian(), Hadamard(64))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KEY = pool_key(3)
families = pytest.mark.parametrize("family", FAMILIES)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(1, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.ones_like(ids), ids)


def copies(tuned: ProjectedTuned) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in tuned.named_weights()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    bits = [(one.view(torch.uint8), second[name].view(torch.uint8)) for name, one in first.items()]
    return all(torch.equal(one, other) for one, other in bits)


@torch.no_grad()
def perturbed_copy(model: Any, space: BoundSpace, seed: int, scale: float) -> Any:
    other = copy.deepcopy(model)
    for name, weight in other.named_parameters():
        space.axpy(weight.data, weight.data.clone(), scale, name, seed)
    return other


@families
@kinds
@torch.no_grad()
def test_a_perturbed_forward_equals_that_of_perturbed_weights(
    family: str, kind: Any, tiny_model: Any, batch: Batch
) -> None:
    model, space = tiny_model(family), BoundSpace(kind, KEY)
    expected = perturbed_copy(model, space, 9, 1e-2)(input_ids=batch.input_ids).logits
    plain = model(input_ids=batch.input_ids).logits
    tuned = ProjectedTuned(model, space)
    with tuned.perturbed(9, 1e-2):
        assert torch.equal(tuned.model(input_ids=batch.input_ids).logits, expected)
    assert not torch.equal(plain, expected)
    assert torch.equal(tuned.model(input_ids=batch.input_ids).logits, plain)


@families
@dtypes
def test_a_step_with_zero_learning_rate_leaves_every_bit(
    family: str, dtype: torch.dtype, tiny_model: Any, batch: Batch
) -> None:
    tuned = ProjectedTuned(tiny_model(family).to(dtype), BoundSpace(Rademacher(), KEY))
    before = copies(tuned)
    for key in range(3):
        estimate = TwoPoint(1e-3)(tuned, response_loss, batch, key)
        Sgd(0.0).step(tuned, estimate.update, {})
    assert same(copies(tuned), before)
    tuned.reset(None)
    assert same(copies(tuned), before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside_the_forward_restores_the_parameters(
    error: type[BaseException], tiny_model: Any, batch: Batch
) -> None:
    model = tiny_model("llama")
    owned = {name: id(weight) for name, weight in model.named_parameters()}

    class Failing(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error("simulated")

    model.model.layers[1].mlp.down_proj.__class__ = Failing
    tuned = ProjectedTuned(model, BoundSpace(Rademacher(), KEY))
    with pytest.raises(error), tuned.perturbed(1, 0.1):
        model(input_ids=batch.input_ids)
    assert {name: id(weight) for name, weight in model.named_parameters()} == owned
    with tuned.perturbed(1, 0.1):
        pass


def test_weights_that_are_not_contiguous(tiny_model: Any, batch: Batch) -> None:
    model, space = tiny_model(), BoundSpace(Rademacher(), KEY)
    expected = perturbed_copy(model, space, 9, 1e-2)(input_ids=batch.input_ids).logits
    projection = model.model.layers[0].mlp.up_proj
    projection.weight.data = projection.weight.data.t().contiguous().t()
    assert not projection.weight.is_contiguous()
    tuned = ProjectedTuned(model, space)
    with torch.no_grad(), tuned.perturbed(9, 1e-2):
        assert torch.equal(tuned.model(input_ids=batch.input_ids).logits, expected)
    tuned.apply(Projected.of(9, 1e-2))
    assert torch.equal(tuned.model(input_ids=batch.input_ids).logits, expected)


def test_perturbations_do_not_nest(tiny_model: Any) -> None:
    tuned = ProjectedTuned(tiny_model(), BoundSpace(Rademacher(), KEY))
    with tuned.perturbed(1, 0.1), pytest.raises(RuntimeError, match="nest"), tuned.perturbed(2, 0.1):
        pass


@kinds
@dtypes
def test_a_pools_state_read_back_gives_the_same_bits_in_any_order(
    kind: Any, dtype: torch.dtype, tiny_model: Any
) -> None:
    tuned = ProjectedTuned(tiny_model().to(dtype), BoundSpace(kind, KEY, pooled=True))
    values = np.random.Generator(np.random.Philox(0)).normal(size=20).astype(np.float32) * np.float32(1e-2)
    keys = np.arange(40, 20, -1)
    tuned.reset(Projected(keys, values))
    before = copies(tuned)
    state = tuned.state()
    assert len(tuned.delta().keys) == 0
    tuned.reset(None)
    assert not same(copies(tuned), before)
    tuned.reset(state)
    assert same(copies(tuned), before)
    order = np.argsort(keys)  # as a table on the wire or in a ledger, with zeros between
    table = np.zeros(64, np.float32)
    table[keys[order]] = values[order]
    tuned.reset(Projected(np.arange(64), table))
    assert same(copies(tuned), before)


def test_delta_and_state_tell_steps_from_start(tiny_model: Any) -> None:
    tuned = ProjectedTuned(tiny_model(), BoundSpace(Rademacher(), KEY, pooled=True))
    tuned.reset(Projected.of(4, 1e-2))
    for key in (4, 5, 4):
        tuned.apply(Projected.of(key, 0.25))
    assert tuned.delta().keys.tolist() == [4, 5]
    assert tuned.delta().coefficients.tolist() == [0.5, 0.25]
    assert tuned.state().coefficients.tolist() == pytest.approx([0.51, 0.25])
    fresh = ProjectedTuned(tiny_model(), BoundSpace(Rademacher(), KEY))
    fresh.reset(Projected.of(4, 1e-2))
    for key in (4, 5, 4):
        fresh.apply(Projected.of(key, 0.25))
    assert fresh.state().keys.tolist() == [4, 4, 5], "what came before an interval stays in its place"
    assert fresh.state().coefficients.tolist() == pytest.approx([0.01, 0.5, 0.25])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_many_small_steps_in_half_precision_sum_as_in_float32(dtype: torch.dtype, tiny_model: Any) -> None:
    space = BoundSpace(Hadamard(4), KEY)
    tuned = ProjectedTuned(tiny_model().to(dtype), space)
    base = copies(tuned)
    for _ in range(100):
        tuned.apply(Projected.of(2, 1e-5))  # far below half a unit in the last place of most weights
    moved = 0
    for name, weight in tuned.named_weights():
        expected = torch.empty_like(weight)
        space.axpy(expected, base[name], float(tuned.state().coefficients[0]), name, 2)
        assert torch.equal(weight, expected)
        moved += int((weight != base[name]).sum())
    assert moved > 10_000
    assert float(tuned.state().coefficients[0]) == pytest.approx(1e-3, rel=1e-4)


def test_float32_steps_equal_the_sum_of_directions(tiny_model: Any) -> None:
    space = BoundSpace(Gaussian(), KEY)
    tuned = ProjectedTuned(tiny_model(), space)
    for key in range(10):
        tuned.apply(Projected.of(key, 1e-3 * (key + 1)))
    stepped = copies(tuned)
    tuned.reset(tuned.state())
    for name, weight in tuned.named_weights():
        assert torch.allclose(weight, stepped[name], rtol=0, atol=1e-6)


def test_dense_updates_and_empty_models_are_refused(tiny_model: Any) -> None:
    tuned = ProjectedTuned(tiny_model(), BoundSpace(Rademacher(), KEY))
    for move in (tuned.reset, tuned.apply):
        with pytest.raises(ModelError, match="dense"):
            move(Dense({}))
    with pytest.raises(ModelError, match="no parameters"):
        ProjectedTuned(torch.nn.ReLU(), BoundSpace(Rademacher(), KEY))
    assert tuned.adapter() is None


def test_a_closed_handle_keeps_the_weights_and_perturbs_no_more(tiny_model: Any, batch: Batch) -> None:
    tuned = ProjectedTuned(tiny_model(), BoundSpace(Rademacher(), KEY))
    tuned.apply(Projected.of(1, 1e-2))
    tuned.close()
    with torch.no_grad(), tuned.perturbed(2, 1.0):
        inside = tuned.model(input_ids=batch.input_ids).logits
    assert torch.equal(inside, tuned.model(input_ids=batch.input_ids).logits)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_a_two_point_step_needs_one_largest_tensor_more_than_a_forward(
    kernel: str, tiny_model: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_KERNEL", kernel)
    model = tiny_model(hidden=64, vocabulary=20_000)
    largest = max(weight.numel() * weight.element_size() for weight in model.parameters())
    with torch.no_grad():
        forward = allocator_peak(lambda: response_loss(model, batch))
    tuned = ProjectedTuned(model, BoundSpace(Rademacher(), KEY))
    step = allocator_peak(lambda: TwoPoint(1e-3)(tuned, response_loss, batch, 1))
    print(f"{kernel}: forward {forward:,}, step {step:,}, largest {largest:,}: {step - forward - largest:+,}")
    constant = 16 * CHUNK
    assert largest == 5_120_000
    assert step - forward <= largest + constant + 64 * 1024


def test_kept_directions_cost_a_copy_of_the_weights(tiny_model: Any, batch: Batch) -> None:
    model = tiny_model()
    tuned = ProjectedTuned(model, KeptSpace(Gaussian(), KEY))
    weights = sum(weight.numel() * 4 for weight in model.parameters())
    assert allocator_peak(lambda: TwoPoint(1e-3)(tuned, response_loss, batch, 1)) >= weights
