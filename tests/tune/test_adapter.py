"""LoRA through peft: a frozen base and a few tensors that a seed fixes."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.update import Dense, Projected
from edgetune.tune import DenseTuned, Lora

IDS = torch.arange(1, 21).view(2, 10)
families = pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen2", "gemma"])


def opened(model: Any, seed: int = 0) -> DenseTuned:
    return Lora(rank=4, alpha=8.0).open(model, None, seed)


def noise(tuned: DenseTuned) -> Dense:
    generator = torch.Generator().manual_seed(5)
    return Dense(
        {name: torch.randn(one.shape, generator=generator) * 0.1 for name, one in tuned.named_weights()}
    )


@families
@torch.no_grad()
def test_an_adapter_starts_as_the_base_and_merges_as_it_computes(family: str, tiny_model: Any) -> None:
    model = tiny_model(family)
    plain = copy.deepcopy(model)(input_ids=IDS).logits
    tuned = opened(model)
    assert torch.equal(tuned.model(input_ids=IDS).logits, plain)
    tuned.apply(noise(tuned))
    adapted = tuned.model(input_ids=IDS).logits
    assert not torch.allclose(adapted, plain, atol=1e-3)
    assert torch.allclose(tuned.merged()(input_ids=IDS).logits, adapted, atol=1e-5)


def test_the_seed_alone_fixes_the_initial_values(tiny_model: Any) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = opened(tiny_model(), 3).state().tensors
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = opened(tiny_model(), 3).state().tensors, opened(tiny_model(), 4).state().tensors
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_reset_delta_and_state_fit_together(tiny_model: Any) -> None:
    tuned = opened(tiny_model())
    initial, step = tuned.state(), noise(tuned)
    tuned.apply(step)
    for name, change in tuned.delta().tensors.items():
        assert torch.allclose(change, step.tensors[name], atol=1e-6)
    state = tuned.state()
    tuned.reset(None)
    assert all(torch.equal(one, initial.tensors[name]) for name, one in tuned.named_weights())
    tuned.reset(state)
    assert all(torch.equal(one, state.tensors[name]) for name, one in tuned.named_weights())
    assert not any(bool(change.any()) for change in tuned.delta().tensors.values())


def test_a_state_does_not_change_with_the_handle(tiny_model: Any) -> None:
    tuned = opened(tiny_model())
    state = tuned.state()
    kept = {name: tensor.clone() for name, tensor in state.tensors.items()}
    tuned.apply(noise(tuned))
    assert all(torch.equal(state.tensors[name], kept[name]) for name in kept)


def test_foreign_states_are_refused(tiny_model: Any) -> None:
    tuned = opened(tiny_model())
    for move in (tuned.reset, tuned.apply):
        with pytest.raises(ModelError, match="projected"):
            move(Projected.of(1, 1.0))
    with pytest.raises(ModelError, match="do not belong"):
        tuned.reset(Dense({"x": torch.zeros(1)}))


def test_its_configuration_is_plain_json_without_the_folder_of_the_base(tiny_model: Any) -> None:
    model = tiny_model()
    model.config._name_or_path = "/home/somebody/models/base"
    config = json.loads(json.dumps(opened(model).adapter()))
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    assert "somebody" not in json.dumps(config)


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}])
def test_impossible_sizes_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="LoRA needs"):
        Lora(**options)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises((ModelError, AttributeError)):
        opened(torch.nn.ReLU())
