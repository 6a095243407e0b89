"""Budgets, compensation and removal of whole sub-modules against brute force."""

from __future__ import annotations

from copy import deepcopy
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.structured.budget import PerLayer, Priced, Uniform
from edgetune.compress.structured.groups import Groups, Member
from edgetune.compress.structured.importance import RULES
from edgetune.compress.structured.modules import drop_modules
from edgetune.compress.structured.pruning import Structured, groups_in, prune_model, repair
from edgetune.compress.structured.restore import Wanted, restored
from edgetune.compress.structured.settled import block_weights, widths_in
from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError, DataError, ModelError
from edgetune.core.removed import ATTENTION, FEED_FORWARD

from .decoders import decoder
from .test_importance import text

UNIFORM = Structured(0.25, RULES["activation"], Uniform())


def priced(scores: list[float], weights: int, *, fine: bool) -> Priced:
    groups = Groups((Member("x", 1, torch.arange(len(scores))[:, None]),), "x")
    return Priced(groups, weights, torch.tensor(scores), fine)


def _logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        batch = text()[0]
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def test_a_uniform_budget_removes_the_share_that_was_asked_for() -> None:
    heads, channels = priced([4.0, 1, 3, 2], 640, fine=False), priced(list(range(320)), 10, fine=True)
    ((kept, wide),) = Uniform().keep([[heads, channels]], 0.2)
    assert kept.tolist() == [0, 2, 3]  # 20 % of 5,760 are 1,152: one head of 640 and 51 channels, nearest 64
    assert wide.tolist() == list(range(64, 320))


def test_a_uniform_budget_keeps_something_of_everything() -> None:
    heads, channels = priced([1.0], 640, fine=False), priced(list(range(64)), 10, fine=True)
    ((kept, wide),) = Uniform().keep([[heads, channels]], 0.99)
    assert kept.tolist() == [0]
    assert wide.tolist() == list(range(32, 64))


def test_a_budget_across_layers_takes_what_is_worth_least_a_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [
        [
            priced(torch.rand(3, generator=generator).tolist(), 4, fine=False),
            priced(torch.rand(4, generator=generator).tolist(), 4, fine=True),
        ]
        for _ in range(2)
    ]
    kept = PerLayer().keep(layers, 0.5)
    removed = sum(
        one.groups.count - len(k)
        for own, some in zip(layers, kept, strict=True)
        for one, k in zip(own, some, strict=True)
    )
    assert removed == 7
    everything = [
        (float(one.scores[g]), (layer, kind, g))
        for layer, own in enumerate(layers)
        for kind, one in enumerate(own)
        for g in range(one.groups.count)
    ]
    best = min(
        sum(score for score, _ in some)
        for some in combinations(everything, 7)
        if all(
            sum(place[:2] == (layer, kind) for _, place in some) < layers[layer][kind].groups.count
            for layer in range(2)
            for kind in range(2)
        )
    )
    lost = sum(
        float(one.scores.sum() - one.scores[k].sum())
        for own, some in zip(layers, kept, strict=True)
        for one, k in zip(own, some, strict=True)
    )
    assert lost == pytest.approx(best, rel=1e-5)


def test_a_number_of_heads_that_the_configuration_would_refuse_is_not_kept(tmp_path: Path) -> None:
    model = decoder("llama", hidden_size=64)  # 64 is no multiple of 6 heads
    prune_model(model, text(), Structured(0.25, RULES["magnitude"], Uniform(), compensate=False))
    assert model.config.num_attention_heads in (4, 8)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(_logits(again), _logits(model), rtol=1e-5, atol=1e-5)


def test_layers_at_the_ends_can_be_left_alone() -> None:
    layers = [[priced([0.0, 1.0, 2.0, 3.0], 1, fine=False)] for _ in range(4)]
    kept = PerLayer(first=1, last=1).keep(layers, 0.25)
    assert [len(some[0]) for some in kept] == [4, 2, 2, 4]
    with pytest.raises(ConfigError, match="cannot be left alone"):
        PerLayer(first=2, last=2).keep(layers, 0.25)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_that_is_none_is_refused(ratio: float) -> None:
    for budget in (Uniform(), PerLayer()):
        with pytest.raises(ConfigError, match="cannot be removed"):
            budget.keep([[priced([1.0, 2.0], 1, fine=False)]], ratio)


def test_restored_weights_are_the_ridge_solution_for_the_wanted_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(200, 10, generator=generator, dtype=torch.float64)
    outputs = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    keep, wanted = torch.tensor([0, 2, 3, 7, 9]), Wanted(4, 10)
    for rows in (slice(0, 50), slice(50, 50), slice(50, 200)):
        wanted.add(seen[rows], outputs[rows])
    found = restored(weights.float(), wanted, keep, 0.05)
    ridge = 0.05 * float(seen[:, keep].square().sum(0).mean())
    rows = torch.cat([seen[:, keep], ridge**0.5 * torch.eye(5, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, torch.cat([outputs, ridge**0.5 * weights[:, keep].T])).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_group_that_others_repeat_is_lost_without_a_trace_once_restored() -> None:
    inputs = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    inputs[:, 5] = 0.5 * inputs[:, 0] - 2 * inputs[:, 1]
    weights, wanted = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)), Wanted(3, 6)
    wanted.add(inputs, inputs @ weights.T)
    found = restored(weights, wanted, torch.arange(5), 1e-6)
    torch.testing.assert_close(inputs[:, :5] @ found.T, inputs @ weights.T, rtol=1e-3, atol=1e-3)


def _hidden(model: PreTrainedModel, batches: list[Batch]) -> torch.Tensor:
    """The residual stream behind the last block, before the last norm, of real tokens."""
    found: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    handle.remove()
    return torch.cat([h[b.attention_mask.bool()] for h, b in zip(found, batches, strict=True)])


def test_the_last_reader_brings_the_residual_stream_as_near_as_any_weights_can() -> None:
    dense, model, batches = decoder("mistral"), decoder("mistral"), text(32, 16)
    prune_model(model, batches, Structured(0.25, RULES["activation"], Uniform(), damping=1e-6))
    last = decoder_blocks(model)[-1].mlp.down_proj
    read: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    now, then = _hidden(model, batches), _hidden(dense, batches)
    handle.remove()
    inputs = torch.cat([x[b.attention_mask.bool()] for x, b in zip(read, batches, strict=True)])
    rest = torch.linalg.lstsq(inputs, then - now).solution
    assert float((then - now).square().sum()) <= 1.02 * float((then - now - inputs @ rest).square().sum())


def test_compensation_brings_the_outputs_nearer_and_keeps_the_choice() -> None:
    dense = decoder("llama")
    plain, better = deepcopy(dense), deepcopy(dense)
    batches = text(64, 16)
    first = prune_model(plain, batches, Structured(0.25, RULES["activation"], Uniform(), compensate=False))
    assert prune_model(better, batches, UNIFORM) == first
    gaps = [float((_logits(one) - _logits(dense)).square().mean()) for one in (plain, better)]
    assert gaps[1] < 0.8 * gaps[0]
    one, other = (decoder_blocks(m)[0].mlp.up_proj.weight for m in (plain, better))
    assert torch.equal(one, other)


def test_pruning_removes_the_share_and_can_be_repeated() -> None:
    model = decoder("qwen3")
    before = block_weights(model)
    prune_model(model, text(), UNIFORM)
    once = block_weights(model)
    assert 0.73 < once / before < 0.78
    widths = prune_model(model, text(), UNIFORM)
    assert block_weights(model) < once
    assert widths == widths_in(model)
    assert (model.config.num_key_value_heads, model.config.head_dim) == (2, 16)


def test_compensation_without_text_is_refused() -> None:
    with pytest.raises(DataError, match="needs calibration text"):
        prune_model(decoder("llama"), [], Structured(0.25, RULES["magnitude"], Uniform()))


def _judge(dense: torch.Tensor) -> object:
    return lambda model: float((_logits(model) - dense).square().mean())


def test_the_sub_module_that_goes_is_the_one_whose_zeros_cost_least() -> None:
    model = decoder("llama", num_hidden_layers=3)
    dense, costs = _logits(model), {}
    for layer in range(3):
        for name, reader in ((ATTENTION, "self_attn.o_proj"), (FEED_FORWARD, "mlp.down_proj")):
            silent = deepcopy(model)
            for weight in decoder_blocks(silent)[layer].get_submodule(reader).parameters():
                weight.zero_()
            costs[layer, name] = float((_logits(silent) - dense).square().mean())
    (gone,) = drop_modules(model, 0.16, _judge(dense))  # type: ignore[arg-type]
    assert (gone.layer, gone.name) == min(costs, key=costs.__getitem__)
    assert gone.cost == pytest.approx(costs[gone.layer, gone.name], rel=1e-4)
    assert len(groups_in(model)[gone.layer]) == 1


@pytest.mark.parametrize("kind", ["mistral", "granite"])
def test_what_is_left_makes_up_for_a_sub_module_that_has_gone(kind: str) -> None:
    dense, model, batches = decoder(kind), decoder(kind), text(64, 16)
    drop_modules(model, 0.3, lambda m: -float(widths_in(m).heads[0] == 0), [ATTENTION])
    before = float((_logits(model) - _logits(dense)).square().mean())
    kept = {name: weight.clone() for name, weight in dense.named_parameters()}
    repair(model, dense, batches)
    assert float((_logits(model) - _logits(dense)).square().mean()) < 0.9 * before
    assert all(torch.equal(weight, kept[name]) for name, weight in dense.named_parameters())


def test_a_key_value_cache_goes_on_where_the_first_attention_has_gone() -> None:
    model = decoder("llama", head_dim=6)
    drop_modules(model, 0.45, lambda m: 0.0 if widths_in(m).heads[0] == 0 else 1.0, [ATTENTION])
    assert model.config.layer_widths["heads"] == [0, 8]
    ids = text()[0].input_ids[:, :6]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :4], use_cache=True)
        rest = model(input_ids=ids[:, 4:], past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(rest, whole[:, 4:], rtol=1e-4, atol=1e-4)


def test_families_that_need_every_sub_module_are_refused() -> None:
    with pytest.raises(ModelError, match="'gemma2' models cannot go"):
        drop_modules(decoder("gemma2"), 0.5, lambda _: 0.0)


def test_a_batch_of_padding_alone_changes_nothing() -> None:
    first, second = text(), text()
    empty = Batch(
        torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long), torch.full((1, 4), -100)
    )
    one, other = decoder("llama"), decoder("llama")
    prune_model(one, first, UNIFORM)
    prune_model(other, [*second, empty], UNIFORM)
    torch.testing.assert_close(_logits(one), _logits(other), rtol=1e-5, atol=1e-5)
