"""A group taken out computes what a group of zeros computes, in every family of the table."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.structured.families import FAMILIES
from edgetune.compress.structured.groups import attention, cut, feed_forward, silence
from edgetune.compress.structured.settled import settle, widths_in
from edgetune.core.errors import ModelError

from .decoders import decoder

IDS = torch.randint(2, 50, (2, 20), generator=torch.Generator().manual_seed(1))
CHANNELS = torch.tensor([0, 3, 4, 11, 17, 18, 30, 39])


def _logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def _both(kind: str, keep: list[torch.Tensor]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model with silenced groups, and the one they are cut out of; `keep` has heads by layer."""
    zeroed = decoder(kind)
    smaller = deepcopy(zeroed)
    for model, take in ((zeroed, silence), (smaller, cut)):
        for block, heads in zip(decoder_blocks(model), keep, strict=True):
            take(block, feed_forward(model.config, block), CHANNELS)
            if FAMILIES[kind].heads:
                take(block, attention(model.config, block), heads)
    settle(smaller, widths_in(smaller))
    return zeroed, smaller


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_uniform_cut_equals_zeroed_groups_and_reloads(kind: str, tmp_path: Path) -> None:
    zeroed, smaller = _both(kind, [torch.tensor([0, 2]), torch.tensor([1, 3])])
    expected = _logits(zeroed)
    torch.testing.assert_close(_logits(smaller), expected, rtol=1e-4, atol=1e-4)
    assert float((_logits(decoder(kind)) - expected).abs().max()) > 0.05  # the groups had an effect
    smaller.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(_logits(again), expected, rtol=1e-4, atol=1e-4)
    names = {name: weight.shape for name, weight in smaller.named_parameters()}
    assert {name: weight.shape for name, weight in again.named_parameters()} == names


@pytest.mark.parametrize("kind", [name for name, family in FAMILIES.items() if family.by_layer])
def test_layers_of_different_widths_equal_zeroed_groups(kind: str) -> None:
    zeroed, smaller = _both(kind, [torch.tensor([0, 2, 3]), torch.tensor([1])])
    assert smaller.config.layer_widths["kv_heads"] == [3, 1]
    torch.testing.assert_close(_logits(smaller), _logits(zeroed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2"])
def test_every_weight_of_a_block_that_is_no_norm_nor_bias_belongs_to_one_group(kind: str) -> None:
    model = decoder(kind)
    block = decoder_blocks(model)[0]
    kinds = [feed_forward(model.config, block)]
    kinds += [attention(model.config, block)] if FAMILIES[kind].heads else []
    counted = sum(groups.count * groups.weights(block) for groups in kinds)
    outside = ("attn",) if kind == "gpt2" else ()
    named = block.named_parameters()
    matrices = sum(w.numel() for name, w in named if w.ndim == 2 and not name.startswith(outside or "none"))
    assert counted == matrices


def test_what_cannot_be_pruned_is_refused() -> None:
    model = decoder("gpt2")
    block = decoder_blocks(model)[0]
    with pytest.raises(ModelError, match="heads of 'gpt2'"):
        attention(model.config, block)
    model.config.model_type = "bloom"
    with pytest.raises(ModelError, match=r"'bloom'.*supported: llama"):
        feed_forward(model.config, block)
    other = decoder("phi3")
    cut(decoder_blocks(other)[0], feed_forward(other.config, decoder_blocks(other)[0]), CHANNELS)
    with pytest.raises(ModelError, match="have to be alike"):
        settle(other, widths_in(other))


def test_a_block_that_is_not_what_its_configuration_says_is_refused() -> None:
    model = decoder("llama")
    model.config.num_attention_heads = 4
    with pytest.raises(ModelError, match="rows or columns where the configuration says"):
        attention(model.config, decoder_blocks(model)[0])
