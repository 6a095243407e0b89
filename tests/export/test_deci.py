"""Models whose layers differ run in llama.cpp as `deci`, whole sub-modules missing or not."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import gguf
import pytest
import torch
from toys import check, tiny_llama
from transformers import (
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.structured.groups import attention, cut, feed_forward
from edgetune.compress.structured.settled import settle, widths_in
from edgetune.core.errors import ModelError
from edgetune.core.gguf_read import read_gguf
from edgetune.core.removed import ATTENTION, FEED_FORWARD, remove
from edgetune.core.widths import widths_of
from edgetune.export.architectures import architecture_of
from edgetune.export.gguf_file import write_gguf
from edgetune.models.backbone import load_backbone

Changes = dict[int, tuple[int, int]]
"""Key-value heads and channels that stay, by layer."""


def narrowed(model: LlamaForCausalLM, changes: Changes) -> LlamaForCausalLM:
    """The model with some layers cut; 0 takes the whole sub-module."""
    model = deepcopy(model)
    for layer, (heads, channels) in changes.items():
        block = decoder_blocks(model)[layer]
        for count, name, groups in (
            (heads, ATTENTION, attention(model.config, block)),
            (channels, FEED_FORWARD, feed_forward(model.config, block)),
        ):
            if count:
                cut(block, groups, torch.arange(count))
            else:
                remove(block, name, layer)
    settle(model, widths_in(model))
    return model


@pytest.mark.parametrize(
    "changes",
    [{0: (1, 64), 1: (2, 96)}, {0: (0, 96)}, {1: (2, 0)}, {0: (1, 0), 1: (0, 32)}, {0: (0, 0)}, {2: (0, 0)}],
    ids=["widths", "no attention", "no feed-forward", "crossed", "no first", "no last"],
)
def test_llama_cpp_computes_layers_of_different_widths(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int], changes: Changes
) -> None:
    model = narrowed(tiny_llama(num_hidden_layers=3), changes)
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={}, float_type="F32")
    assert read_gguf(path).metadata["general.architecture"] == "deci"
    checked = check(path, model, tokenizer, [(ids, 1)], ["a text"], float_type="F32")
    assert checked.max_log_probability_difference < 1e-3
    read_back(path, model, ids)


def read_back(path: Path, model: PreTrainedModel, ids: list[int]) -> None:
    """The file is a base that computes what was written, and so is a file of that base."""
    given = torch.tensor([ids])
    with torch.no_grad():
        wanted = model(given).logits
        loaded = load_backbone(path)
        assert torch.equal(loaded.model(given).logits, wanted)
        assert widths_of(loaded.model.config) is not None
        again = path.with_name("again.gguf")
        write_gguf(again, loaded.model, loaded.tokenizer, quantised={}, float_type="F32")
        assert torch.equal(load_backbone(again).model(given).logits, wanted)


def test_rotations_of_half_split_pairs_and_biases_are_translated(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.15,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    model = narrowed(model, {1: (1, 64)})
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={}, float_type="F32")
    checked = check(path, model, tokenizer, [(ids, 1)], ["a text"], float_type="F32")
    assert checked.max_log_probability_difference < 1e-3
    read_back(path, model, ids)
    assert load_backbone(path).model.config.model_type == "qwen2"


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"attention.head_count": [2, 4, 4]}, "no counts of 2 layers"),
        ({"attention.head_count": [2, -4]}, "no counts of 2 layers"),
        ({"attention.head_count": [2, 3]}, "3 heads cannot share 2"),
        ({"attention.head_count_kv": [1, 0]}, "4 heads cannot share 0"),
        ({"attention.head_count_kv": [2, 2], "attention.head_count": [2, 4]}, "2 heads on 2 key-value heads"),
        ({"feed_forward_length": [64, 64]}, "the metadata says"),
        ({"feed_forward_length": [64, 0]}, "has no place for"),
        ({"attention.head_count": [0, 4], "attention.head_count_kv": [0, 2]}, "has no place for"),
        ({"feed_forward_length": None}, "it is missing"),
        ({"feed_forward_length": [64.0, 96.0]}, "no counts"),
    ],
)
def test_widths_that_are_not_those_of_the_tensors_are_refused(
    said: dict[str, list[int] | None], what: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = narrowed(tiny_llama(num_hidden_layers=2), {0: (1, 64)})
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={}, float_type="F32")
    read, changed = gguf.GGUFReader(path), gguf.GGUFWriter(tmp_path / "c.gguf", "deci")
    for field in read.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        key = field.name.removeprefix("deci.")
        value = said[key] if key in said else field.contents()
        if value is not None:
            kind = None if key in said else field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            changed.add_key_value(field.name, value, kind or gguf.GGUFValueType.ARRAY, inner)
    for tensor in read.tensors:
        changed.add_tensor(tensor.name, tensor.data)
    changed.write_header_to_file()
    changed.write_kv_data_to_file()
    changed.write_tensors_to_file()
    changed.close()
    with pytest.raises(ModelError, match=what):
        load_backbone(tmp_path / "c.gguf")


def test_a_family_that_the_graph_does_not_compute_is_refused() -> None:
    config = narrowed(tiny_llama(), {0: (1, 64)}).config
    config.model_type = "qwen3"
    with pytest.raises(ModelError, match=r"'qwen3'.*uniform width"):
        architecture_of(config)
