"""Exact gradients as slopes along a whole pool: against autograd and every direction as a whole tensor."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.compress.grid import AbsMax
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.batch import IGNORED, Batch, response_loss
from edgetune.core.blank import blank_like
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.core.packing import pack
from edgetune.core.quantised import GRIDS, BaseTensor, PackedTensor, values_of
from edgetune.core.recomputed import recomputed
from edgetune.core.update import Dense, Projected
from edgetune.directions import Hadamard, RankOnePool
from edgetune.directions.space import BoundSpace
from edgetune.estimators import Accumulate, Backprop, BackpropSlopes
from edgetune.measure.allocator import allocator_peak
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.tune import LinearLayers, Lora, Writers
from edgetune.tune.folded_own import FoldedOwn

POOL = RankOnePool(200)
FAMILIES = ("llama", "qwen2", "gemma", "gpt2", "opt")
LORA = Lora(rank=2)
TARGETS: dict[str, Any] = {
    "linear": LinearLayers(),
    "head": LinearLayers(tied_head=True),
    "writers": Writers(),
    "lora": Lora(rank=2),
}


def space_of(kind: Any = POOL) -> BoundSpace:
    return BoundSpace(kind, pool_key(3), pooled=True)


def batch_of(records: int = 4, tokens: int = 12) -> Batch:
    ids = torch.randint(1, 90, (records, tokens), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    for row in range(records):
        labels[row, : 2 + row] = IGNORED
    return Batch(ids, torch.ones_like(ids), labels)


def slopes(tuned: Any, batch: Batch, *, recompute: bool = True) -> Any:
    found = BackpropSlopes(recompute)(tuned, response_loss, batch, 5)
    assert isinstance(found.update, Projected)
    return found.update.coefficients


def by_autograd(target: Any, model: Any, tuned: Any, batch: Batch) -> list[float]:
    """Every direction as a whole tensor, times a dense gradient."""
    update = Backprop()(target.open(model, None, 0), response_loss, batch).update
    assert isinstance(update, Dense)
    return [
        sum(float((direction[name].double() * one).sum()) for name, one in update.tensors.items())
        for direction in map(tuned.direction, range(POOL.size))
    ]


@pytest.mark.parametrize("recompute", [True, False], ids=["again", "kept"])
@pytest.mark.parametrize("kind", [POOL, Hadamard(200)], ids=["rank one", "hadamard"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_slopes_are_those_of_the_exact_gradient(
    family: str, target: str, kind: Any, recompute: bool, tiny_model: Any
) -> None:
    model, batch = tiny_model(family), batch_of()
    tuned: Any = TARGETS[target].open(copy.deepcopy(model), space_of(kind), 0)
    expected = by_autograd(TARGETS[target], model, tuned, batch)
    found = slopes(tuned, batch, recompute=recompute)
    np.testing.assert_allclose(found * POOL.size, expected, atol=2e-5 * max(map(abs, expected)))
    assert max(map(abs, expected)) > 0
    assert not any(weight.requires_grad or weight.grad is not None for weight in tuned.model.parameters())


@pytest.mark.parametrize("target", ["linear", "head", "writers"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_so_they_are_over_matrices_that_stay_packed(kind: str, target: str, tiny_model: Any) -> None:
    model, batch = tiny_model("llama", hidden=64), batch_of()
    base: dict[str, BaseTensor] = {name: one.detach().clone() for name, one in model.named_parameters()}
    empty = copy.deepcopy(model)
    for name, weight in empty.named_parameters():
        if weight.dim() > 1:
            blocks = round_to_nearest(weight.detach(), GRIDS[kind], AbsMax())
            base[name] = PackedTensor(
                GRIDS[kind], torch.from_numpy(pack(blocks)).view(-1), tuple(weight.shape)
            )
            model.get_parameter(name).data = (
                values_of(base[name], 0, weight.numel()).float().view(weight.shape)
            )
            weight.data = blank_like(weight.data)
    tuned: Any = TARGETS[target].stream(empty, space_of(), base)
    assert isinstance(tuned, FoldedOwn)
    expected = by_autograd(TARGETS[target], model, tuned, batch)
    np.testing.assert_allclose(
        slopes(tuned, batch) * POOL.size, expected, atol=2e-5 * max(map(abs, expected))
    )


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_add_up_to_the_batch(micro: int, tiny_model: Any) -> None:
    tuned = LinearLayers().open(tiny_model("llama"), space_of(), 0)
    whole = slopes(tuned, batch_of())
    parts = Accumulate(BackpropSlopes(), micro)(tuned, response_loss, batch_of(), 0).update
    assert isinstance(parts, Projected)
    np.testing.assert_allclose(parts.coefficients, whole, rtol=1e-3, atol=1e-7)


def test_a_step_makes_nothing_of_the_size_of_a_matrix(tiny_model: Any) -> None:
    batch, model = batch_of(tokens=16), tiny_model("llama", hidden=512)
    folded: Any = LinearLayers().open(copy.deepcopy(model), space_of(RankOnePool(256)), 0)
    whole: Any = LinearLayers().open(model, space_of(Hadamard(256)), 0)
    ours, theirs = (allocator_peak(lambda one=one: slopes(one, batch)) for one in (folded, whole))  # type: ignore[misc]
    assert ours < theirs - 4 * 512 * 1024  # the gradient of one down_proj


def test_blocks_that_compute_again_keep_less(tiny_model: Any) -> None:
    batch = batch_of(tokens=64)
    tuned: Any = LinearLayers().open(tiny_model("llama", hidden=256), space_of(RankOnePool(64)), 0)
    again, kept = (
        allocator_peak(lambda one=one: slopes(tuned, batch, recompute=one))  # type: ignore[misc]
        for one in (True, False)
    )
    feed_forward = 4 * 4 * 64 * tuned.model.config.intermediate_size  # bytes of one of its activations
    assert again < kept - 2 * feed_forward


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_marks_its_blocks_and_gets_them_back(family: str, tiny_model: Any) -> None:
    model = tiny_model(family)
    with recomputed(model) as blocks:
        assert blocks == model.config.num_hidden_layers
    assert not any("forward" in vars(one) for one in model.modules())
    with pytest.raises(RuntimeError, match="on the way"), recomputed(model):
        raise RuntimeError("on the way")
    assert not any("forward" in vars(one) for one in model.modules())
    with recomputed(torch.nn.Linear(2, 2)) as blocks:
        assert blocks == 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_ledger_says_whether_a_tied_head_is_tuned(tied: bool, tiny_model: Any) -> None:
    model = tiny_model("llama")
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    without, whole = LinearLayers().chosen(model), LinearLayers(tied_head=True).chosen(model)
    assert whole - without == ({"model.embed_tokens.weight"} if tied else set())
    assert ("lm_head.weight" in without) is not tied
    for target in (LinearLayers(), LinearLayers(tied_head=True)):
        said: Any = target.open(copy.deepcopy(model), space_of(), 0).adapter()
        assert LinearLayers.described(said) == target


def test_what_it_goes_with() -> None:
    method = tuning_method("fedsubspace")
    assert (method.estimate.passes, with_options(method, {"recompute": False}).estimate.passes) == (4, 3)
    with pytest.raises(ConfigError, match="needs a pool that one transform sums"):
        with_options(method, {"directions": "rademacher"})
    with pytest.raises(ConfigError, match="does not go with tuning all weights"):
        with_options(method, {"target": "full"})
    assert with_options(method, {"target": "writers"}).target == Writers()
