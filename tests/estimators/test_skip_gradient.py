"""Gradients along skip connections: by hand, where they are exact, along pools, and what they keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgetune.core.batch import IGNORED, Batch, response_loss
from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.keys import pool_key
from edgetune.core.skips import skips_alone, writers
from edgetune.core.update import Dense, Projected
from edgetune.directions import Hadamard, Rademacher, RankOnePool
from edgetune.directions.draw import Pool
from edgetune.directions.space import BoundSpace
from edgetune.estimators import Accumulate, Backprop, SkipGradient, SkipSlopes
from edgetune.measure.allocator import allocator_peak
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.tune import FullProjected, Writers
from edgetune.tune.walk import probe_batch

KEY = pool_key(3)
FAMILIES = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen2": ("self_attn.o_proj", "mlp.down_proj"),
    "gemma": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "opt": ("self_attn.out_proj", "fc2"),
}
families = pytest.mark.parametrize("family", FAMILIES)
POOLS: list[Any] = [Hadamard(48), Hadamard(64), RankOnePool(6), RankOnePool(64), RankOnePool(200)]


def batch_of(records: int = 4) -> Batch:
    ids = torch.randint(1, 90, (records, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    for row in range(records):
        labels[row, : 2 + row] = IGNORED
    return Batch(ids, torch.ones_like(ids), labels)


def estimated(model: Any, estimate: Any, batch: Batch) -> dict[str, torch.Tensor]:
    tuned = Writers().open(model, None, 0)
    found = estimate(tuned, response_loss, batch)
    assert isinstance(found.update, Dense)
    return dict(found.update.tensors)


@families
def test_the_layers_that_write_are_found_whatever_they_are_called(family: str, tiny_model: Any) -> None:
    model = tiny_model(family)
    batch = probe_batch(model)
    assert batch is not None
    found = writers(model, batch.input_ids)
    assert len(found) == 4
    assert {name.split(".", 3)[-1].removeprefix("layers.").lstrip("01.") for name in found} == set(
        FAMILIES[family]
    )


def test_norms_behind_a_layer_and_blocks_side_by_side_hide_no_writer() -> None:
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPTNeoXConfig, MixtralConfig

    made: Any = AutoModelForCausalLM
    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
    }
    heads: dict[str, Any] = {"num_attention_heads": 2}
    grouped = heads | {"num_key_value_heads": 1}
    for config, ends in (
        (Gemma3TextConfig(**sizes, **grouped, head_dim=8), ("o_proj", "down_proj")),
        (GPTNeoXConfig(**sizes, **heads), ("dense", "dense_4h_to_h")),
        (MixtralConfig(**sizes, **grouped, num_local_experts=2), ("o_proj",)),
    ):
        model = made.from_config(config).eval()
        batch = probe_batch(model)
        assert batch is not None
        assert {name.rpartition(".")[2] for name in writers(model, batch.input_ids)} == set(ends)


def test_a_model_without_a_residual_stream_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ModelError, match="writes into a residual stream"):
        Writers().place(nn.LayerNorm(3), 0)  # type: ignore[arg-type]


def test_a_tied_head_is_left_out_if_that_is_wanted(tiny_model: Any) -> None:
    model = tiny_model("qwen2")
    whole, blocks = Writers().chosen(model), Writers(head=False).chosen(model)
    assert whole - blocks == {"model.embed_tokens.weight"}
    assert len(blocks) == 4
    assert Writers(tensors=("model.embed_tokens.weight",)).chosen(model) == {"model.embed_tokens.weight"}
    with pytest.raises(ModelError, match="a tensor that this model has not"):
        Writers(tensors=("elsewhere",)).chosen(model)


def test_it_is_the_sum_of_outer_products_of_the_last_error_and_the_inputs(tiny_model: Any) -> None:
    model, batch = tiny_model(), batch_of()
    inputs: dict[str, torch.Tensor] = {}
    hidden: list[torch.Tensor] = []
    layers = {name: one for name, one in model.named_modules() if name.endswith(("o_proj", "down_proj"))}
    hooks = [
        one.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
        for name, one in layers.items()
    ]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, args: hidden.append(args[0])))
    model(input_ids=batch.input_ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    last = hidden[0].clone().requires_grad_()
    logits = functional.linear(model.model.norm(last), model.lm_head.weight)
    said = batch.labels[:, 1:]
    loss = functional.cross_entropy(logits[:, :-1].reshape(-1, 100), said.reshape(-1), ignore_index=IGNORED)
    (error,) = torch.autograd.grad(loss, last)
    found = estimated(model, SkipGradient(), batch)
    for name, x in inputs.items():
        torch.testing.assert_close(found[f"{name}.weight"], torch.einsum("bto,bti->oi", error, x))


@families
def test_what_lies_behind_all_blocks_is_exact_and_the_rest_points_the_same_way(
    family: str, tiny_model: Any
) -> None:
    exact = estimated(tiny_model(family), Backprop(), batch_of())
    found = estimated(tiny_model(family), SkipGradient(), batch_of())
    assert found.keys() == exact.keys()
    last = FAMILIES[family][1]
    tied = tiny_model(family).config.tie_word_embeddings
    for name, gradient in found.items():
        if f"1.{last}" in name or ("lm_head" in name and not tied):
            torch.testing.assert_close(gradient, exact[name])
        else:
            likeness = functional.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0)
            assert likeness > 0.5, name
            assert not torch.equal(gradient, exact[name])


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: f"{kind.name}-{kind.size}")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_slopes_are_those_of_every_direction_of_the_pool(family: str, kind: Any, tiny_model: Any) -> None:
    space, batch = BoundSpace(kind, KEY), batch_of()
    gradient = estimated(tiny_model(family), SkipGradient(), batch)
    tuned: Any = Writers().open(tiny_model(family), space, 0)
    found = SkipSlopes()(tuned, response_loss, batch, 5)
    assert isinstance(found.update, Projected)
    assert found.update.keys.tolist() == list(range(kind.size))
    expected = []
    for key in range(kind.size):
        direction = tuned.direction(key)
        expected.append(sum(float((direction[name].double() * one).sum()) for name, one in gradient.items()))
    np.testing.assert_allclose(found.update.coefficients * kind.size, expected, rtol=1e-4, atol=1e-6)
    assert found.loss == pytest.approx(float(response_loss(tiny_model(family), batch)), rel=1e-6)
    assert not any(weight.requires_grad or weight.grad is not None for weight in tuned.model.parameters())


def test_gradients_of_vectors_and_of_tensors_larger_than_a_chunk_are_taken_along_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgetune.directions.rank_one_pool.CHUNK", 64)
    monkeypatch.setattr("edgetune.directions.hadamard.ROWS_AT_ONCE", 2)
    generator = torch.Generator().manual_seed(1)
    tensors = {"a": (37, 21), "b": (70,), "c": (2, 3, 40), "d": (0,), "e": (1, 1)}
    gradients = {name: torch.randn(shape, generator=generator) for name, shape in tensors.items()}
    for kind in POOLS:
        space = BoundSpace(kind, KEY)
        seen = space.projection()
        for name, gradient in gradients.items():
            seen.add(name, gradient)
        expected = [
            sum(
                float((kind.whole(space._source, name, key, one.shape, one.device).double() * one).sum())
                for name, one in gradients.items()
            )
            for key in range(kind.size)
        ]
        np.testing.assert_allclose(seen.mean().coefficients * kind.size, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_add_up_to_the_batch(micro: int, tiny_model: Any) -> None:
    batch, pooled = batch_of(), BoundSpace(RankOnePool(64), KEY)
    for estimate, space in ((SkipGradient(), None), (SkipSlopes(), pooled)):
        tuned = Writers().open(tiny_model(), space, 0)
        whole = estimate(tuned, response_loss, batch, 0)
        parts = Accumulate(estimate, micro)(tuned, response_loss, batch, 0)
        assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
        if isinstance(whole.update, Projected) and isinstance(parts.update, Projected):
            np.testing.assert_allclose(
                parts.update.coefficients, whole.update.coefficients, rtol=1e-3, atol=1e-7
            )
        elif isinstance(whole.update, Dense) and isinstance(parts.update, Dense):
            for name, one in whole.update.tensors.items():
                torch.testing.assert_close(parts.update.tensors[name], one, rtol=1e-4, atol=1e-7)
        else:
            pytest.fail("two kinds of update")


@families
def test_rows_without_an_error_need_not_be_kept(family: str, tiny_model: Any) -> None:
    def whole(model: Any, batch: Batch) -> torch.Tensor:
        return response_loss(model, batch)  # another function than the one that is known

    batch = batch_of(2)
    short = Batch(batch.input_ids, batch.attention_mask, batch.labels.clone())
    short.labels[:, :9] = IGNORED
    for one in (batch, short):
        model, other = tiny_model(family), tiny_model(family)
        few = SkipGradient()(Writers().open(model, None, 0), response_loss, one)
        all_rows = SkipGradient()(Writers().open(other, None, 0), whole, one)
        assert isinstance(few.update, Dense)
        assert isinstance(all_rows.update, Dense)
        assert few.loss == pytest.approx(all_rows.loss, rel=1e-6)
        for name, gradient in all_rows.update.tensors.items():
            torch.testing.assert_close(few.update.tensors[name], gradient, rtol=1e-5, atol=1e-8)


@families
def test_a_width_that_is_a_number_of_positions_is_no_row(family: str, tiny_model: Any) -> None:
    def whole(model: Any, batch: Batch) -> torch.Tensor:
        return response_loss(model, batch)

    for records, tokens in ((4, 8), (10, 10), (1, 32)):  # 32 is the width, 100 the vocabulary
        ids = torch.randint(1, 90, (records, tokens), generator=torch.Generator().manual_seed(1))
        labels = ids.clone()
        labels[:, : tokens - 3] = IGNORED
        batch = Batch(ids, torch.ones_like(ids), labels)
        few = estimated(tiny_model(family), SkipGradient(), batch)
        found = SkipGradient()(Writers().open(tiny_model(family), None, 0), whole, batch).update
        assert isinstance(found, Dense)
        for name, gradient in found.tensors.items():
            torch.testing.assert_close(few[name], gradient, rtol=1e-5, atol=1e-8)


def test_a_step_allocates_little_beside_a_forward_pass(tiny_model: Any) -> None:
    ids = torch.randint(1, 90, (1, 1024), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, IGNORED)
    labels[:, -4:] = ids[:, -4:]
    batch, config = Batch(ids, torch.ones_like(ids), labels), {"max_position_embeddings": 1024}
    plain = tiny_model("llama", hidden=64)
    plain.config.update(config)
    with torch.no_grad():
        forward = allocator_peak(lambda: response_loss(plain, batch))

    def beside(estimate: Any) -> int:
        tuned: Any = Writers().open(tiny_model("llama", hidden=64), None, 0)
        return allocator_peak(lambda: estimate(tuned, response_loss, batch)) - forward

    gradients = sum(one.numel() for _, one in Writers().open(plain, None, 0).named_weights()) * 4
    row = 1024 * 64 * 4  # what a position of the stream holds, of all positions
    assert beside(SkipGradient()) < gradients + 4 * row
    assert beside(Backprop()) > gradients + 15 * row


def test_no_layer_stays_hooked_after_a_failure(tiny_model: Any) -> None:
    model = tiny_model()
    with pytest.raises(RuntimeError, match="on the way"), skips_alone(model):
        raise RuntimeError("on the way")
    assert not any(one._forward_pre_hooks for one in model.modules())


def test_other_weights_and_other_pools_are_refused() -> None:
    skipgrad, fedskip = tuning_method("skipgrad"), tuning_method("fedskip")
    with pytest.raises(ConfigError, match="skip_gradient needs weights that skip connections reach"):
        replace(skipgrad, target=FullProjected())
    with pytest.raises(ConfigError, match="needs a pool that one transform sums"):
        with_options(fedskip, {"directions": "rademacher"})
    assert with_options(fedskip, {"directions": "hadamard"}).directions == Pool(Hadamard(4096), 4096)
    with pytest.raises(ConfigError, match="does not go with slopes that are derivatives of the loss"):
        with_options(fedskip, {"objective": "token_f1"})
    with pytest.raises(ConfigError, match="a pass over them each"):
        BoundSpace(Rademacher(), KEY, pooled=True).projection()


def test_a_loss_that_is_no_number_moves_nothing(tiny_model: Any) -> None:
    def broken(model: Any, batch: Batch) -> torch.Tensor:
        return response_loss(model, batch) * float("nan")

    for estimate, space in ((SkipGradient(), None), (SkipSlopes(), BoundSpace(RankOnePool(64), KEY))):
        assert not estimate(Writers().open(tiny_model(), space, 0), broken, batch_of(), 0).is_finite
