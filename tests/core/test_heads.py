"""A head called a few rows at a time: the same logits, losses and gradients, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgetune.core import heads
from edgetune.core.batch import Batch
from edgetune.core.heads import Apart, after_head, by_chunks, mean_by_chunks, positions

FAMILIES = ("llama", "gpt2", "opt", "qwen2", "gemma")


def _batch(vocabulary: int = 100, rows: int = 3, length: int = 9) -> Batch:
    ids = torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[0, 6:], labels[0, 6:], labels[:, :3] = 0, -100, -100
    return Batch(ids, mask, labels)


def test_positions_are_those_behind_which_a_response_token_or_any_token_follows() -> None:
    batch = _batch()
    rows, columns = positions(batch)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True))[:4] == [(0, 2), (0, 3), (0, 4), (1, 2)]
    assert len(rows) == 3 + 6 + 6 == batch.response_tokens
    assert len(positions(batch, all_tokens=True)[0]) == 5 + 8 + 8


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_head_by_itself_gives_the_models_own_logits(tiny_model: Any, kind: str) -> None:
    model, batch = tiny_model(kind), _batch()
    apart, where = Apart(), positions(batch)
    rows = apart.rows(model, batch, where)
    assert rows.shape[-1] == 32
    assert apart.width == 100
    whole = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert torch.allclose(apart.logits(model, rows), whole[where], atol=1e-5)


@pytest.mark.parametrize(
    "field", [("final_logit_softcapping", 2.0), ("logit_scale", 3.0), ("logits_scaling", 4.0)]
)
def test_what_families_do_to_their_logits_is_done(field: tuple[str, float]) -> None:
    from transformers import AutoModelForCausalLM, Cohere2Config, Gemma2Config, GraniteConfig

    small = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1, field[0]: field[1], "pad_token_id": 0}
    kinds = {
        "final_logit_softcapping": Gemma2Config,
        "logit_scale": Cohere2Config,
        "logits_scaling": GraniteConfig,
    }
    more = {"head_dim": 8} if field[0].startswith("final") else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kinds[field[0]](**small, **more)).eval()
    model.get_output_embeddings().weight.data.mul_(50)  # large enough that a cap is felt
    batch, apart = _batch(50), Apart()
    where = positions(batch)
    rows = apart.rows(model, batch, where)
    assert rows.shape[-1] == 16
    whole = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert torch.allclose(apart.logits(model, rows), whole[where], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(model.get_output_embeddings()(rows), whole[where], rtol=1e-3, atol=1e-4)


def test_a_model_that_does_more_to_its_logits_gives_them_whole(tiny_model: Any) -> None:
    class Warmer(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.get_output_embeddings = inner, inner.get_output_embeddings

        def forward(self, **asked: Any) -> Any:
            out = self.inner(**asked)
            out.logits = out.logits * 2
            return out

    inner, batch, apart = tiny_model(), _batch(), Apart()
    rows = apart.rows(Warmer(inner), batch, positions(batch))
    whole = inner(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[positions(batch)]
    assert torch.allclose(apart.logits(Warmer(inner), rows), 2 * whole, atol=1e-5)
    assert apart.width == 100


def test_chunks_give_the_value_and_the_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 4 * 11)
    monkeypatch.setattr(heads, "FEWEST", 1)
    torch.manual_seed(0)
    hidden = torch.randn(13, 5, dtype=torch.float64, requires_grad=True)
    head, seen = nn.Linear(5, 11).double(), list[int]()

    def loss(rows: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(len(rows))
        found = head(rows).log_softmax(-1)[:, 3]
        return found if more is None else found * more.square().sum(-1)

    assert torch.allclose(by_chunks(loss, (hidden,), 11), loss(hidden))
    found, expected = mean_by_chunks(loss, (hidden, hidden), 11, 7), loss(hidden, hidden).sum() / 7
    assert seen == [4, 4, 4, 1, 13] * 2
    assert torch.allclose(found, expected)
    inputs = (hidden, head.weight, head.bias)
    chunked, whole = torch.autograd.grad(5 * found, inputs), torch.autograd.grad(5 * expected, inputs)
    assert all(torch.allclose(one, other) for one, other in zip(chunked, whole, strict=True))
    assert by_chunks(loss, (hidden[:0],), 11).shape == (0,)
    with torch.no_grad():
        assert torch.equal(mean_by_chunks(loss, (hidden,), 11, 7), by_chunks(loss, (hidden,), 11).sum() / 7)
    head.requires_grad_(False)
    assert not mean_by_chunks(loss, (hidden.detach(),), 11, 7).requires_grad


def test_no_tensor_of_all_logits_lives_in_either_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 1)
    tokens, vocabulary, largest = 640, 3000, 0
    head, hidden = nn.Linear(8, vocabulary, bias=False), torch.randn(640, 8, requires_grad=True)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            largest = max(largest, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Watch():
        mean_by_chunks(
            lambda row: head(row).log_softmax(-1).exp().square().sum(-1), (hidden,), vocabulary, 1
        ).backward()
    assert largest == max(heads.FEWEST * vocabulary, head.weight.numel()) < tokens * vocabulary


def test_a_configuration_that_says_nothing_leaves_logits_as_they_are() -> None:
    assert after_head(None)(torch.ones(2)).tolist() == [1.0, 1.0]
