"""Tensors placed on a model: what is chosen, what it computes, and the base again when they are off."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.keys import pool_key
from edgetune.core.update import Dense, Projected
from edgetune.directions import Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.models.digest import tensor_digest
from edgetune.tune import (
    Adapter,
    BitFit,
    FullProjected,
    LinearLayers,
    Lora,
    Prefix,
    Writers,
    has_bottlenecks,
    merges,
    release,
    reopen,
)
from edgetune.tune.bottleneck import CHILD

IDS = torch.arange(1, 21).view(2, 10)
MASK = torch.ones_like(IDS)
OWN = [BitFit(), LinearLayers(), Writers(), FullProjected()]
ALL = [Lora(2, 4.0), Lora(2, 4.0, freeze_a=True), Adapter(), Prefix(3), *OWN]
families = pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen2", "gemma"])
targets = pytest.mark.parametrize("target", ALL, ids=lambda one: one.name)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, attention_mask=MASK).logits
    return found


def noise(tuned: Any, size: float = 0.1) -> Dense:
    generator = torch.Generator().manual_seed(5)
    return Dense(
        {name: size * torch.randn(one.shape, generator=generator) for name, one in tuned.named_weights()}
    )


@families
@targets
def test_a_handle_learns_loads_and_leaves_the_base_as_it_was(
    target: Any, family: str, tiny_model: Any
) -> None:
    model = tiny_model(family)
    before, plain = tensor_digest(model.named_parameters()), logits(model)
    tuned = target.open(model, None, 7)
    if target.name != "prefix":
        assert torch.equal(logits(tuned.model), plain)
    start = logits(tuned.model)
    tuned.apply(noise(tuned))
    learnt = logits(tuned.model)
    assert not torch.allclose(learnt, start, atol=1e-4)
    assert tuned.delta().tensors.keys() == tuned.state().tensors.keys()
    again = reopen(tiny_model(family), None, tuned.adapter())
    again.reset(tuned.state())
    assert torch.equal(logits(again.model), learnt)
    release(tuned)
    assert tensor_digest(model.named_parameters()) == before
    assert torch.equal(logits(model), plain)
    assert not any(one.requires_grad for one in model.parameters())


# Linear layers' gradients are some of those of all weights, and along them alone OPT's toy bends within the step.
@families
@pytest.mark.parametrize("target", [one for one in ALL if one != LinearLayers()], ids=lambda one: one.name)
def test_gradients_are_those_of_central_differences(target: Any, family: str, tiny_model: Any) -> None:
    tuned = target.open(tiny_model(family).float(), None, 7)
    tuned.apply(noise(tuned, 0.05))
    weights = dict(tuned.named_weights())

    def loss() -> torch.Tensor:
        found = tuned.model(input_ids=IDS, attention_mask=MASK).logits
        return torch.logsumexp(found.double(), -1).mean() - found.double()[..., 7].mean()

    gradients = torch.autograd.grad(loss(), list(weights.values()))
    direction, eps = noise(tuned, 1.0).tensors, 1e-3
    expected = sum(float((one * direction[name]).sum()) for name, one in zip(weights, gradients, strict=True))
    values = []
    for sign in (1, -1):
        tuned.apply(Dense({name: sign * eps * one for name, one in direction.items()}))
        with torch.no_grad():
            values.append(float(loss()))
        tuned.apply(Dense({name: -sign * eps * one for name, one in direction.items()}))
    assert (values[0] - values[1]) / (2 * eps) == pytest.approx(expected, rel=0.05, abs=2e-3)


@families
def test_an_adapter_is_the_published_formula_behind_both_sublayers(family: str, tiny_model: Any) -> None:
    model = tiny_model(family)
    tuned = Adapter(4).open(model, None, 7)
    tuned.apply(noise(tuned))
    sites = [module for module in model.modules() if hasattr(module, CHILD)]
    assert len(sites) == 2 * model.config.num_hidden_layers
    assert tuned.state().tensors.keys() == {
        f"{name}.{part}" for name, _ in model.named_modules() if name.endswith(CHILD)
        for part in ("down.weight", "down.bias", "up.weight", "up.bias")
    }  # fmt: skip
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    one = getattr(sites[0], CHILD)
    inner = (hidden @ one.down.weight.T + one.down.bias).clamp(min=0)
    assert one.down.weight.shape == (8, 32)
    expected = hidden + inner @ one.up.weight.T + one.up.bias
    assert torch.allclose(one(hidden), expected, atol=1e-6)


def test_bitfit_takes_biases_and_else_the_scales_of_norms(tiny_model: Any) -> None:
    for family in ("gpt2", "opt", "qwen2"):
        names = [name for name, _ in BitFit().open(tiny_model(family), None, 0).named_weights()]
        assert names
        assert all(name.endswith(".bias") for name in names)
    names = [name for name, _ in BitFit().open(tiny_model("llama"), None, 0).named_weights()]
    assert len(names) == 5
    assert all("norm" in name for name in names)


@families
def test_linear_layers_are_their_matrices_without_a_head_that_is_the_embedding(
    family: str, tiny_model: Any
) -> None:
    model = tiny_model(family)
    tables = {id(one.weight) for one in model.modules() if isinstance(one, torch.nn.Embedding)}
    matrices = {name for name, one in model.named_parameters() if one.dim() == 2 and id(one) not in tables}
    assert {name for name, _ in LinearLayers().open(model, None, 0).named_weights()} == matrices
    assert ("lm_head.weight" in matrices) == (family == "llama")
    with pytest.raises(ModelError, match="no linear layers"):
        LinearLayers().place(torch.nn.LayerNorm(3), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "target", [Adapter(), BitFit(), LinearLayers(), Lora(2, 4.0, freeze_a=True)], ids=lambda one: one.name
)
def test_directions_move_the_same_tensors(target: Any, tiny_model: Any) -> None:
    space = BoundSpace(Rademacher(), pool_key(1))
    tuned = target.open(tiny_model(), space, 7)
    dense = target.open(tiny_model(), None, 7)
    assert [name for name, _ in tuned.named_weights()] == [name for name, _ in dense.named_weights()]
    before = logits(tuned.model)
    with tuned.perturbed(3, 0.1):
        perturbed = logits(tuned.model)
    assert torch.equal(logits(tuned.model), before)
    tuned.apply(Projected.of(3, 0.1))
    assert torch.allclose(logits(tuned.model), perturbed, atol=1e-5)
    assert not torch.equal(perturbed, before)
    again = reopen(tiny_model(), space, {"seed": 7, **tuned.adapter()})
    again.reset(tuned.state())
    assert torch.equal(logits(again.model), logits(tuned.model))


def test_half_precision_weights_are_not_moved_by_gradients(tiny_model: Any) -> None:
    for target in OWN:
        with pytest.raises(ModelError, match="bfloat16 lose the steps"):
            target.open(copy.deepcopy(tiny_model()).to(torch.bfloat16), None, 0)
    tuned = Adapter().open(copy.deepcopy(tiny_model()).to(torch.bfloat16), None, 0)
    assert all(one.dtype == torch.float32 for _, one in tuned.named_weights())
    before = logits(tuned.model)
    tuned.apply(noise(tuned))
    assert logits(tuned.model).dtype == torch.bfloat16
    assert not torch.equal(logits(tuned.model), before)


def test_nothing_is_drawn_from_torchs_generator(tiny_model: Any) -> None:
    model = tiny_model()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = Adapter().open(model, None, 7).state().tensors
    assert torch.equal(torch.rand(4), expected)
    second, other = (Adapter().open(tiny_model(), None, seed).state().tensors for seed in (7, 8))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_what_a_file_can_hold_is_known(tiny_model: Any) -> None:
    for target in ALL:
        tuned = target.open(tiny_model(), None, 0)
        assert merges(tuned.adapter()) == target.merges == (target.name not in {"prefix", "adapter"})
        assert has_bottlenecks(tuned.merged()) == (target.name == "adapter")
    assert merges(None)


def test_a_state_of_other_tensors_or_a_residual_where_none_can_be_is_refused(tiny_model: Any) -> None:
    tuned = Adapter().open(tiny_model(), None, 0)
    state = tuned.state().tensors
    with pytest.raises(ModelError, match="no low-rank factors"):
        tuned.reset(Dense({**state, "model.residual": torch.zeros(2, 2)}))
    with pytest.raises(ModelError, match="do not belong"):
        tuned.reset(Dense({name: torch.zeros(3) for name in state}))
    with pytest.raises(ModelError, match="projected"):
        tuned.reset(Projected.none())
    with pytest.raises(ConfigError, match="no wider"):
        Adapter(0)
    lora = Lora(2, 4.0).open(tiny_model(), None, 0)
    with pytest.raises(ModelError, match="no adapted layer"):
        lora.reset(Dense({**lora.state().tensors, "model.residual": torch.zeros(2, 2)}))
