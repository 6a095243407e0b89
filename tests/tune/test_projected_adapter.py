"""Directions over an adapter's tensors: LoRA and prefixes, tuned by forward passes, rebuilt from coefficients."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import Gaussian, Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.measure.evaluate import generate
from edgetune.tune import Lora, Prefix, ProjectedAdapter, reopen

FAMILIES = ("llama", "gpt2", "opt", "qwen2", "gemma")
KEY = pool_key(3)
IDS = torch.arange(1, 21).view(2, 10)
BATCH = Batch(IDS, torch.ones_like(IDS), IDS)
TARGETS = (Lora(rank=2, alpha=4.0), Prefix(tokens=3))
families = pytest.mark.parametrize("family", FAMILIES)
targets = pytest.mark.parametrize("target", TARGETS, ids=["lora", "prefix"])


def opened(target: Any, model: Any, seed: int = 0) -> ProjectedAdapter:
    handle = target.open(model, BoundSpace(Rademacher(), KEY), seed)
    assert isinstance(handle, ProjectedAdapter)
    return handle


def state() -> Projected:
    return Projected(np.arange(6), np.linspace(-0.05, 0.05, 6).astype(np.float32))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@families
@targets
def test_a_perturbed_forward_reads_the_perturbed_adapter_and_writes_nothing(
    target: Any, family: str, tiny_model: Any
) -> None:
    tuned = opened(target, tiny_model(family))
    before = {name: weight.clone() for name, weight in tuned.model.named_parameters()}
    with tuned.perturbed(9, 0.1):
        inside = logits(tuned.model)
    outside = logits(tuned.model)
    assert all(torch.equal(before[name], weight) for name, weight in tuned.model.named_parameters())
    tuned.apply(Projected.of(9, 0.1))
    assert torch.equal(logits(tuned.model), inside)
    assert not torch.allclose(inside, outside, atol=1e-4)


@families
@targets
def test_the_base_stays_untouched_and_the_initial_values_are_the_seeds(
    target: Any, family: str, tiny_model: Any
) -> None:
    model = tiny_model(family)
    base = {name: weight.clone() for name, weight in model.named_parameters()}
    first, again, other = (opened(target, tiny_model(family), seed) for seed in (3, 3, 4))
    tuned = opened(target, model, 3)
    tuned.reset(state())
    names = {name for name, _ in tuned.named_weights()}
    kept = [weight for name, weight in tuned.model.named_parameters() if name not in names]
    assert sum(weight.numel() for weight in kept) == sum(weight.numel() for weight in base.values())
    assert sorted(float(one.sum()) for one in kept) == sorted(float(one.sum()) for one in base.values())
    same = [
        torch.equal(one, two)
        for (_, one), (_, two) in zip(first.named_weights(), again.named_weights(), strict=True)
    ]
    assert all(same)
    differs = [
        not torch.equal(one, two)
        for (_, one), (_, two) in zip(first.named_weights(), other.named_weights(), strict=True)
    ]
    assert any(differs)


@families
@targets
def test_coefficients_and_the_configuration_rebuild_the_adapter(
    target: Any, family: str, tiny_model: Any
) -> None:
    tuned = opened(target, tiny_model(family), 5)
    tuned.apply(state())
    tuned.reset(tuned.state())
    config = json.loads(json.dumps(tuned.adapter()))
    again = reopen(tiny_model(family), BoundSpace(Rademacher(), KEY), config)
    again.reset(tuned.state())
    for (name, one), (other_name, other) in zip(tuned.named_weights(), again.named_weights(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    assert again.adapter() == tuned.adapter()
    assert torch.equal(logits(tuned.plain()), logits(again.plain()))


@families
def test_lora_merges_as_it_computes(family: str, tiny_model: Any) -> None:
    tuned = opened(TARGETS[0], tiny_model(family))
    tuned.reset(state())
    adapted = logits(tuned.model)
    plain = tuned.plain()
    assert type(plain) is type(tiny_model(family))
    assert torch.allclose(logits(plain), adapted, atol=1e-5)


@families
def test_a_prefix_computes_as_in_peft(family: str, tiny_model: Any) -> None:
    from peft import PeftModelForCausalLM

    tuned = opened(TARGETS[1], tiny_model(family))
    tuned.reset(state())
    expected = PeftModelForCausalLM.forward(
        tuned.model, input_ids=IDS, attention_mask=torch.ones_like(IDS)
    ).logits
    assert torch.allclose(logits(tuned.model), expected, atol=1e-6)
    assert not torch.allclose(logits(tiny_model(family)), expected, atol=1e-3)


@families
def test_a_prefix_model_generates_as_peft_does(family: str, tiny_model: Any, tiny_tokenizer: Any) -> None:
    tuned = opened(Prefix(tokens=3, scale=1.0), tiny_model(family))
    tuned.reset(state())
    prompts = [[5, 9, 30, 31, 32], [40, 7]]
    answers = generate(tuned.model, tiny_tokenizer, prompts, max_new_tokens=6, batch_size=2)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        for _ in range(6):  # without a cache, by peft's own forward
            out = type(tuned.model).forward(tuned.model, input_ids=ids, attention_mask=torch.ones_like(ids))
            token = int(out.logits[0, -1].argmax())
            if token == 0:
                break
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        assert answer == tiny_tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True).strip()


@targets
def test_the_slope_is_the_gradient_along_the_direction(target: Any, tiny_model: Any) -> None:
    kind = Gaussian()
    space = BoundSpace(kind, KEY)
    tuned = target.open(tiny_model("llama"), space, 0)
    tuned.reset(state())
    slope = float(TwoPoint(1e-3)(tuned, response_loss, BATCH, 77).update.coefficients[0])
    weights = {
        name: weight for name, weight in tuned.model.named_parameters() if name in dict(tuned.named_weights())
    }
    for weight in weights.values():
        weight.requires_grad_(True)
    gradients = torch.autograd.grad(response_loss(tuned.model, BATCH), list(weights.values()))
    exact = 0.0
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        z = torch.empty_like(weight)
        space.axpy(z, torch.zeros_like(weight), 1.0, name, 77)
        exact += float((gradient * z).sum())
    assert slope == pytest.approx(exact, rel=2e-2, abs=2e-3)
    assert abs(exact) > 1e-2


@targets
def test_only_the_adapter_is_copied(target: Any, tiny_model: Any) -> None:
    tuned = opened(target, tiny_model())
    assert set(tuned._weights._base) == {name for name, _ in tuned.named_weights()}
    tuned_weights = sum(weight.numel() for _, weight in tuned.named_weights())
    assert tuned_weights < sum(weight.numel() for weight in tiny_model().parameters()) / 5


def test_impossible_prefixes_and_adapters_are_refused(tiny_model: Any) -> None:
    for options in ({"tokens": 0}, {"scale": -1.0}):
        with pytest.raises(ConfigError, match="prefix needs"):
            Prefix(**options)
    space = BoundSpace(Rademacher(), KEY)
    config = opened(TARGETS[0], tiny_model()).adapter()
    assert config is not None
    with pytest.raises(ModelError, match="no adapter of the kind 'IA3'"):
        reopen(tiny_model(), space, {**config, "peft_type": "IA3"})
    with pytest.raises(ModelError, match="lacks the setting 'seed'"):
        reopen(tiny_model(), space, {name: one for name, one in config.items() if name != "seed"})


def test_half_precision_models_keep_their_adapter_exact(tiny_model: Any) -> None:
    for target in TARGETS:
        tuned = opened(target, copy.deepcopy(tiny_model()).to(torch.bfloat16))
        assert all(weight.dtype == torch.float32 for _, weight in tuned.named_weights())
        before = logits(tuned.model)
        tuned.apply(Projected.of(2, 0.1))
        assert not torch.equal(logits(tuned.model), before)
