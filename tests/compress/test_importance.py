"""Scores of groups against the official formulas, recomputed weight by weight with autograd."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.structured.evidence import Hears, gather
from edgetune.compress.structured.importance import RULES, score_blocks
from edgetune.compress.structured.pruning import groups_in
from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import DataError, ModelError

from .decoders import decoder

LLAMA = {"attention_bias": False, "mlp_bias": False, "intermediate_size": 6, "hidden_size": 16, "head_dim": 4}


def text(records: int = 3, length: int = 9) -> list[Batch]:
    """Two batches, with padding and prompts without a label."""
    ids = torch.randint(2, 50, (records, length), generator=torch.Generator().manual_seed(3))
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, :3] = -100
    mask[0, 7:], labels[0, 7:] = 0, -100
    return [Batch(ids[:2], mask[:2], labels[:2]), Batch(ids[2:], mask[2:], labels[2:])]


def scores_of(model: PreTrainedModel, name: str) -> list[list[torch.Tensor]]:
    kinds = groups_in(model)
    return score_blocks(model, kinds, RULES[name], gather(model, kinds, text(), RULES[name].hears))


def _gradients(model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
    model.requires_grad_(True)
    model.zero_grad()
    response_loss(model, batch).backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.requires_grad_(False)
    return found


def _whole() -> Batch:
    first, second = text()
    parts = zip(
        (first.input_ids, first.attention_mask, first.labels),
        (second.input_ids, second.attention_mask, second.labels),
        strict=True,
    )
    return Batch(*(torch.cat(pair) for pair in parts))


def _saliency(model: PreTrainedModel, name: str) -> dict[str, torch.Tensor]:
    """The reference code's element saliency of every matrix."""
    gradient = _gradients(model, _whole())
    singles = [_gradients(model, one) for batch in text() for one in batch.split(1)]
    found = {}
    for key, weight in model.named_parameters():
        fisher = sum(one[key] ** 2 for one in singles) / len(singles)
        found[key] = {
            "first": weight * gradient[key],
            "vector": weight * gradient[key],
            "second": weight * fisher * weight,
            "mixed": weight * gradient[key] - 0.5 * weight * fisher * weight,
            "magnitude": weight**2,
        }[name].detach()
    return found


@pytest.mark.parametrize("name", ["first", "vector", "second", "mixed", "magnitude"])
def test_scores_are_those_of_the_official_formulas(name: str) -> None:
    model = decoder("llama", **LLAMA)
    saliency, scores = _saliency(model, name), scores_of(model, name)

    def line(values: torch.Tensor) -> float:
        return float(values.sum().abs() if name == "vector" else values.abs().sum())

    for layer in range(2):
        block = f"model.layers.{layer}"
        gate, up, down = (saliency[f"{block}.mlp.{one}_proj.weight"] for one in ("gate", "up", "down"))
        expected = [line(gate[c]) + line(up[c]) + line(down[:, c]) for c in range(6)]
        assert scores[layer][1].tolist() == pytest.approx(expected, rel=1e-4)
        q, k, v, o = (saliency[f"{block}.self_attn.{one}_proj.weight"] for one in "qkvo")
        expected = [
            sum(line(q[8 * head + i]) + line(o[:, 8 * head + i]) for i in range(8))
            + sum(line(k[4 * head + i]) + line(v[4 * head + i]) for i in range(4))
            for head in range(4)
        ]
        assert scores[layer][0].tolist() == pytest.approx(expected, rel=1e-4)


def test_a_contribution_is_the_energy_that_a_group_adds_to_the_residual_stream() -> None:
    model = decoder("llama", **LLAMA)
    seen: dict[str, list[torch.Tensor]] = {"self_attn.o_proj": [], "mlp.down_proj": []}
    block, handles = decoder_blocks(model)[1], []
    for path, found in seen.items():
        layer = block.get_submodule(path)
        handles.append(layer.register_forward_pre_hook(lambda _, given, found=found: found.append(given[0])))
    real = []
    for batch in text():
        with torch.no_grad():
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        real.append(batch.attention_mask.bool())
    for handle in handles:
        handle.remove()
    for kind, (path, width) in enumerate((("self_attn.o_proj", 8), ("mlp.down_proj", 1))):
        inputs = torch.cat([one[mask] for one, mask in zip(seen[path], real, strict=True)])
        weight = block.get_submodule(path).weight
        added = [
            float((inputs[:, at : at + width] @ weight[:, at : at + width].T).square().sum())
            for at in range(0, weight.shape[1], width)
        ]
        expected = [one / sum(added) for one in added]
        assert scores_of(model, "activation")[1][kind].tolist() == pytest.approx(expected, rel=1e-4)


def test_random_scores_are_the_seeds_and_differ_between_layers() -> None:
    model = decoder("llama")
    first, second = scores_of(model, "random"), scores_of(model, "random")
    assert all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert not torch.equal(first[0][1], first[1][1])


def test_scoring_leaves_the_model_and_its_gradients_as_they_were() -> None:
    model = decoder("gpt2")
    model.transformer.wte.weight.requires_grad_(True)
    before = {name: (w.requires_grad, w.clone()) for name, w in model.named_parameters()}
    scores_of(model, "mixed")
    for name, weight in model.named_parameters():
        assert weight.grad is None
        assert weight.requires_grad == before[name][0]
        assert torch.equal(weight, before[name][1])


@pytest.mark.parametrize("name", ["first", "second", "activation"])
def test_what_is_not_finite_and_missing_text_are_refused(name: str) -> None:
    model = decoder("llama")
    kinds = groups_in(model)
    with pytest.raises(DataError, match="needs calibration text"):
        gather(model, kinds, [], RULES[name].hears)
    decoder_blocks(model)[0].mlp.up_proj.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"not finite|NaN or infinity"):
        gather(model, kinds, text(), RULES[name].hears)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_nothing_is_measured_that_nobody_asks_for() -> None:
    model = decoder("llama")
    (first, second) = gather(model, groups_in(model), [], Hears())
    assert not any((first.gradients, first.fisher, second.moments))
