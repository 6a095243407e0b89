"""The loss on responses whose gradients are taken chunk by chunk: plain cross-entropy in float64 is the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgetune.core import heads
from edgetune.core.batch import IGNORED, Batch, response_loss
from edgetune.core.fused_loss import differentiated, fused_response_loss
from edgetune.core.keys import pool_key
from edgetune.core.update import Dense, Projected
from edgetune.directions import Hadamard, RankOnePool
from edgetune.directions.space import BoundSpace
from edgetune.estimators import Backprop, SkipGradient, SkipSlopes
from edgetune.measure.allocator import allocator_peak
from edgetune.methods.catalogue import tuning_method
from edgetune.tune import Lora, Prefix, Writers
from edgetune.tune.dense import DenseTuned
from edgetune.tune.folded_own import FoldedOwn

VOCABULARY = 90
SAID = 18
"""Response tokens of `batch_of`."""
MODELS = ("llama", "llama, tied", "gpt2", "opt", "gemma2", "gemma2, untied", "phi", "granite")
models = pytest.mark.parametrize("kind", MODELS)
chunks = pytest.mark.parametrize("rows", [1, 6, 7, 100], ids=lambda rows: f"{rows} at once")
POOL = RankOnePool(200)


def made(kind: str) -> Any:
    """Make a random model in double precision: heads tied and not, with a bias (Phi), a cap (Gemma 2), a divisor."""
    from transformers import (  # fmt: skip
        AutoModelForCausalLM,
        Gemma2Config,
        GPT2Config,
        GraniteConfig,
        LlamaConfig,
        OPTConfig,
        PhiConfig,
    )

    tied, sizes = {"tie_word_embeddings": True}, {"vocab_size": VOCABULARY, "pad_token_id": 0}
    small = sizes | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    gated = small | {"intermediate_size": 24, "num_key_value_heads": 1}
    cap = {"head_dim": 8, "final_logit_softcapping": 1.5}
    config = {
        "llama": lambda: LlamaConfig(**gated),
        "llama, tied": lambda: LlamaConfig(**gated | tied),
        "gpt2": lambda: GPT2Config(**sizes, n_embd=16, n_layer=2, n_head=2),
        "opt": lambda: OPTConfig(**small, ffn_dim=24, word_embed_proj_dim=16),
        "gemma2": lambda: Gemma2Config(**gated, **cap),
        "gemma2, untied": lambda: Gemma2Config(**gated, **cap, tie_word_embeddings=False),
        "phi": lambda: PhiConfig(**gated),
        "granite": lambda: GraniteConfig(**gated, logits_scaling=4.0),
    }[kind]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.data = weight.data.double() * (10 if "bias" not in name else 1)  # a cap is felt
        weight.data += 0.1 * torch.randn(weight.shape, dtype=torch.float64)
    model.model_kind = kind
    return model


def batch_of() -> Batch:
    """Four records: one padded, one whose last token is not said, one that says nothing."""
    ids = torch.randint(1, VOCABULARY, (4, 10), generator=torch.Generator().manual_seed(0))
    mask, labels = torch.ones_like(ids), ids.clone()
    ids[1, 7:], mask[1, 7:], labels[1, 7:], labels[2, 8:], labels[3] = 0, 0, IGNORED, IGNORED, IGNORED
    labels[0, :3], labels[1, :2], labels[2, :2] = IGNORED, IGNORED, IGNORED
    return Batch(ids, mask, labels)


def plain_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The oracle: every logit, and torch's own mean."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.double()
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())


def at_once(patch: pytest.MonkeyPatch, rows: int) -> None:
    patch.setattr(heads, "LOGITS_AT_ONCE", rows * VOCABULARY)
    patch.setattr(heads, "FEWEST", 1)


def gradients(loss: torch.Tensor, model: Any) -> dict[str, torch.Tensor]:
    weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {name: one for name, one in zip(weights, found, strict=True) if one is not None}


class Heads:
    """Counts the rows that a head is called with."""

    def __init__(self, model: Any) -> None:
        self.rows = list[int]()
        model.get_output_embeddings().register_forward_hook(
            lambda _, args, __: self.rows.append(args[0].numel() // args[0].shape[-1])
        )


@chunks
@models
def test_loss_and_gradients_are_those_of_plain_cross_entropy(
    kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once(monkeypatch, rows)
    model, batch = made(kind).requires_grad_(True), batch_of()
    assert batch.response_tokens == SAID
    expected = plain_loss(model, batch)
    wanted = gradients(expected, model)
    fused_response_loss(model, batch)  # the trial comes first
    seen = Heads(model)
    loss = fused_response_loss(model, batch)
    assert seen.rows == [len(batch.input_ids), *[min(rows, SAID - at) for at in range(0, SAID, rows)]]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    found = gradients(loss, model)
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one, rtol=1e-9, atol=1e-13)


@models
def test_a_frozen_head_gets_no_gradient_and_the_rest_what_it_had(kind: str) -> None:
    model, batch = made(kind), batch_of()
    inner = [
        one
        for name, one in model.named_parameters()
        if "down_proj" in name or "fc2" in name or "mlp.c_proj" in name
    ]
    for one in inner:
        one.requires_grad_(True)
    wanted, found = (gradients(loss(model, batch), model) for loss in (plain_loss, fused_response_loss))
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one, rtol=1e-9, atol=1e-13)


def test_a_head_alone_gets_its_gradient() -> None:
    model, batch = made("phi"), batch_of()
    model.get_output_embeddings().requires_grad_(True)
    wanted, found = (gradients(loss(model, batch), model) for loss in (plain_loss, fused_response_loss))
    assert found.keys() == wanted.keys() == {"lm_head.weight", "lm_head.bias"}
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one, rtol=1e-9, atol=1e-13)


@chunks
@pytest.mark.parametrize(
    "kind", [kind for kind in MODELS if kind != "gemma2"]
)  # whose head's table is no plain one
def test_slopes_are_those_of_every_direction(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once(monkeypatch, rows)
    model, batch = made(kind), batch_of()
    exact = SkipGradient()(DenseTuned(Writers().place(model, 0)), plain_loss, batch).update
    assert isinstance(exact, Dense)
    single = made(kind).float()
    space = BoundSpace(POOL, pool_key(3), pooled=True)
    tuned = Writers().open(single, space, 0)
    assert isinstance(tuned, FoldedOwn)
    found = SkipSlopes()(tuned, response_loss, batch, 0)
    assert isinstance(found.update, Projected)
    directions = [tuned.direction(key) for key in range(POOL.size)]
    expected = torch.tensor(
        [
            sum(float((one[name].double() * g).sum()) for name, g in exact.tensors.items())
            for one in directions
        ]
    )
    slopes = torch.from_numpy(found.update.coefficients) * POOL.size
    torch.testing.assert_close(slopes, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert found.loss == pytest.approx(plain_loss(model, batch).item(), rel=1e-5)


@pytest.mark.parametrize("space", [RankOnePool(64), Hadamard(64)], ids=["folded", "gradients"])
def test_what_multiplies_the_loss_multiplies_slopes_of_the_head_too(space: Any, tiny_model: Any) -> None:
    def thrice(model: Any, batch: Batch) -> torch.Tensor:
        return 3 * fused_response_loss(model, batch)

    bound, found = BoundSpace(space, pool_key(3), pooled=True), []
    for objective in (response_loss, thrice):
        tuned = Writers().open(tiny_model(), bound, 0)
        update = SkipSlopes()(tuned, objective, batch_of(), 0).update
        assert isinstance(update, Projected)
        found.append(torch.from_numpy(update.coefficients))
    torch.testing.assert_close(found[1], 3 * found[0], rtol=1e-5, atol=1e-7)
    assert float(found[0].abs().max()) > 0


@pytest.mark.parametrize("target", [Lora(), Prefix()], ids=lambda one: one.name)
def test_adapters_get_what_they_got(target: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once(monkeypatch, 5)
    found = []
    for whole in (False, True):
        with monkeypatch.context() as patch:
            if whole:
                patch.setattr("edgetune.estimators.backprop.differentiated", lambda _: response_loss)
            tuned = target.open(tiny_model(), None, 0)
            found.append(Backprop()(tuned, response_loss, batch_of()))
    ours, theirs = found
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert isinstance(ours.update, Dense)
    for key, one in theirs.update.tensors.items():
        torch.testing.assert_close(ours.update.tensors[key], one, rtol=1e-4, atol=1e-8)


def test_a_batch_that_says_nothing_moves_nothing(tiny_model: Any) -> None:
    ids = torch.ones(4, 6, dtype=torch.long)
    batch = Batch(ids, torch.ones_like(ids), torch.full_like(ids, IGNORED))
    model = tiny_model().requires_grad_(True)
    loss = fused_response_loss(model, batch)
    assert loss.item() == 0
    assert all(float(one.abs().sum()) == 0 for one in gradients(loss, model).values())
    tuned = Writers().open(tiny_model(), BoundSpace(POOL, pool_key(3), pooled=True), 0)
    found = SkipSlopes()(tuned, response_loss, batch, 0)
    assert isinstance(found.update, Projected)
    assert found.loss == 0
    assert not found.update.coefficients.any()


def test_without_gradients_it_is_the_loss_as_it_was(tiny_model: Any) -> None:
    model, batch = tiny_model(), batch_of()
    seen = Heads(model)
    with torch.no_grad():
        fused_response_loss(model, batch)
    assert len(seen.rows) == 1  # the model called it, and nobody else
    assert differentiated(response_loss) is fused_response_loss
    assert differentiated(plain_loss) is plain_loss


def test_a_head_that_cannot_be_called_by_itself_gives_its_logits_whole(tiny_model: Any) -> None:
    class Warmer(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.get_output_embeddings = inner, inner.get_output_embeddings

        def forward(self, **asked: Any) -> Any:
            out = self.inner(**asked)
            out.logits = out.logits * 2
            return out

    model, batch = Warmer(tiny_model().requires_grad_(True)), batch_of()
    loss, expected = fused_response_loss(model, batch), response_loss(model, batch)
    assert torch.equal(loss, expected)
    for name, one in gradients(expected, model).items():
        assert torch.equal(gradients(fused_response_loss(model, batch), model)[name], one)


def test_a_second_backward_pass_is_refused(tiny_model: Any) -> None:
    loss: Any = fused_response_loss(tiny_model().requires_grad_(True), batch_of())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="passed backward twice"):
        loss.backward()


@pytest.mark.parametrize("method", ["fedskip", "skipgrad", "lora", "fedavg"])
def test_a_step_takes_no_memory_for_the_vocabulary_times_the_tokens(
    method: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = 6000
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 16 * vocabulary)

    def peak(tokens: int) -> int:
        ids = torch.randint(1, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
        value = tuning_method(method)
        space = BoundSpace(value.directions.kind, pool_key(3), pooled=True) if value.directions else None
        tuned: Any = value.target.open(tiny_model(hidden=16, vocabulary=vocabulary), space, 0)
        batch = Batch(ids, torch.ones_like(ids), ids)
        value.estimator(tuned, response_loss, batch, 0)  # what is drawn once
        return allocator_peak(lambda: value.estimator(tuned, response_loss, batch, 0))

    few, many = peak(32), peak(128)
    assert many - few < 96 * vocabulary * 4 / 3  # of logits less than a third of one copy
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 1000 * vocabulary)
    assert peak(128) - few > 96 * vocabulary * 4
