"""Mixtures of experts and state-space models: what is tuned is perturbed, or the model is refused before the run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgetune.cli.app import execute
from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import ModelError
from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.models.quiet import quiet
from edgetune.tune import Lora, ProjectedTuned

SPACE = BoundSpace(Rademacher(), pool_key(3))
SMALL = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": 0,
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4},
    "deepseek_v2": {
        "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "num_experts_per_tok": 2, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 16, "n_group": 1, "topk_group": 1,
    },
}  # fmt: skip
families = pytest.mark.parametrize("family", MIXTURES)


def made(family: str, **more: Any) -> Any:
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **more))
    return model.float().eval().requires_grad_(False)


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(1, 90, (3, 16), generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.ones_like(ids), ids)


@torch.no_grad()
def moved(model: Any, scale: float, but: tuple[str, ...] = ()) -> Any:
    other = copy.deepcopy(model)
    for name, weight in other.named_parameters():
        if name not in but:
            SPACE.axpy(weight.data, weight.data.clone(), scale, name, 9)
    return other


def fused(model: Any) -> tuple[str, ...]:
    """Tensors of all experts of a layer, which belong to a module that is no linear layer."""
    owned = dict(model.named_modules())
    names = [name for name, weight in model.named_parameters() if weight.ndim == 3]
    assert not any(isinstance(owned[name.rpartition(".")[0]], torch.nn.Linear) for name in names)
    return tuple(names)


@families
def test_all_experts_of_a_mixture_are_perturbed(family: str, batch: Batch) -> None:
    model = made(family, **MIXTURES[family])
    experts, scale = fused(model), 0.05
    assert len(experts) >= 2
    with torch.no_grad():
        expected = moved(model, scale)(input_ids=batch.input_ids).logits
        without = moved(model, scale, but=experts)(input_ids=batch.input_ids).logits
    losses = [float(response_loss(moved(model, sign * scale), batch)) for sign in (1, -1)]
    tuned = ProjectedTuned(model, SPACE)
    with torch.no_grad(), tuned.perturbed(9, scale):
        found = model(input_ids=batch.input_ids).logits
    assert torch.equal(found, expected)
    assert float((expected - without).abs().max()) > 1e-4, "the experts' part can be seen"
    assert tuned.losses(response_loss, batch, 9, (scale, -scale)) == pytest.approx(losses, rel=1e-6)


@families
def test_a_step_moves_the_experts(family: str, batch: Batch) -> None:
    model = made(family, **MIXTURES[family])
    expected = moved(model, 0.05)
    tuned = ProjectedTuned(model, SPACE)
    tuned.apply(Projected.of(9, 0.05))
    wanted = dict(expected.named_parameters())
    assert all(torch.equal(weight, wanted[name]) for name, weight in tuned.named_weights())
    with torch.no_grad():
        logits = tuned.model(input_ids=batch.input_ids).logits
        assert torch.equal(logits, expected(input_ids=batch.input_ids).logits)


def mamba() -> Any:
    return made("mamba", state_size=8)


def test_weights_that_another_module_reads_itself_are_refused_by_name(batch: Batch) -> None:
    tuned = ProjectedTuned(mamba(), SPACE)
    with pytest.raises(ModelError, match=r"mixer\.dt_proj\.weight.*tune LoRA on it"):
        tuned.losses(response_loss, batch, 1, (0.1, -0.1))


def test_low_rank_adapters_go_where_a_forward_pass_calls(batch: Batch) -> None:
    tuned = Lora(2, 4.0).open(mamba(), None, 0)
    names = [name for name, _ in tuned.named_weights()]
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in names} == {"in_proj", "x_proj"}
    weights = dict(tuned.named_weights())
    gradients = torch.autograd.grad(response_loss(tuned.model, batch), list(weights.values()))
    moving = {name for name, gradient in zip(weights, gradients, strict=True) if gradient.any()}
    assert moving == {name for name in names if ".lora_B." in name}, "A starts to matter once B has moved"


def test_experts_that_no_token_was_sent_to_keep_their_adapters(tiny_model: Any) -> None:
    model = tiny_model()
    aside = torch.nn.Linear(32, 32)
    model.model.layers[0].aside = aside
    tuned = Lora(2, 4.0).open(model, None, 0)
    assert any(".aside." in name for name, _ in tuned.named_weights())


def test_a_model_that_cannot_be_perturbed_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "mamba", tmp_path / "out"
    with quiet():
        mamba().save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
    short = [
        "data.records=40",
        "data.held_out=4",
        "data.calibration=2",
        "data.max_tokens=24",
        "evaluation.max_new_tokens=2",
    ]
    settings = [word for text in short for word in ("--set", text)]
    assert execute(["tune", "mezo", "--model", str(folder), "--out", str(out), "--quiet", *settings]) == 4
    error = capsys.readouterr().err
    assert "dt_proj.weight" in error
    assert error.count("\n") == 1
    assert not (out / "events.jsonl").exists()
