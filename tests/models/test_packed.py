"""Bases of GPTQ and compressed-tensors folders: every weight is what the checkpoint means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from edgetune.core.errors import ModelError
from edgetune.core.quantised import PackedTensor
from edgetune.models.backbone import load_backbone
from edgetune.models.saving import stored_dtype
from edgetune.models.stored import packed_weights, stored_weights, streamed_weights
from packed_folders import (
    Layer,
    compressed_layer,
    compressed_said,
    gptq_layer,
    gptq_said,
    pack_folder,
)

WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def plain(save: Any) -> Path:
    """A tiny Llama wide enough for groups of 32."""
    folder: Path = save()
    torch.manual_seed(0)
    sizes = {**WIDE, "vocab_size": 257, "num_hidden_layers": 2, "max_position_embeddings": 64}
    config = LlamaConfig(
        **sizes, num_key_value_heads=1, bos_token_id=None, eos_token_id=256, pad_token_id=None
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def changed(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace or remove tensors of layer Q."""
    file = folder / "model.safetensors"
    stored = load_file(file)
    for part, values in tensors.items():
        stored.pop(f"{Q}.{part}")
        if values is not None:
            stored[f"{Q}.{part}"] = values
    save_file(stored, file, metadata={"format": "pt"})


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "gptq": (gptq_said(), gptq_layer),
    "gptq, 2 bits": (gptq_said(bits=2), lambda shape, **k: gptq_layer(shape, bits=2, **k)),
    "gptq, 3 bits": (gptq_said(bits=3), lambda shape, **k: gptq_layer(shape, bits=3, **k)),
    "gptq, 8 bits": (gptq_said(bits=8), lambda shape, **k: gptq_layer(shape, bits=8, **k)),
    "gptq, zero points": (gptq_said(sym=False), lambda shape, **k: gptq_layer(shape, symmetric=False, **k)),
    "gptq v2, zero points": (
        gptq_said(sym=False, checkpoint_format="gptq_v2"),
        lambda shape, **k: gptq_layer(shape, symmetric=False, stored_less=0, **k),
    ),
    "gptq, sorted columns": (
        gptq_said(desc_act=True),
        lambda shape, **k: gptq_layer(shape, scattered=True, **k),
    ),
    "gptq, whole rows": (
        gptq_said(group_size=-1),
        lambda shape, **k: gptq_layer(shape, size=shape[1], **k),
    ),
    "auto-round": (
        gptq_said(quant_method="auto-round", packing_format="auto_round:auto_gptq", sym=False),
        lambda shape, **k: gptq_layer(shape, symmetric=False, **k),
    ),
    "auto-round, zero points as they are": (
        gptq_said(quant_method="auto-round", packing_format="auto_round", sym=False),
        lambda shape, **k: gptq_layer(shape, symmetric=False, stored_less=0, **k),
    ),
    "compressed-tensors": (compressed_said(), compressed_layer),
    "compressed-tensors, 3 bits": (
        compressed_said(num_bits=3),
        lambda shape, **k: compressed_layer(shape, bits=3, **k),
    ),
    "compressed-tensors, zero points": (
        compressed_said(symmetric=False),
        lambda shape, **k: compressed_layer(shape, symmetric=False, **k),
    ),
    "compressed-tensors, whole rows": (
        compressed_said(strategy="channel", group_size=None),
        lambda shape, **k: compressed_layer(shape, size=shape[1], **k),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_what_the_checkpoint_means(case: str, plain: Path) -> None:
    said, layer = CASES[case]
    meant = pack_folder(plain, said, lambda name, shape: layer(shape, seed=len(name)))
    backbone = load_backbone(plain)
    weights = dict(backbone.model.named_parameters())
    for name, values in meant.items():
        assert torch.equal(weights[name].double(), values), name
    stored = stored_weights(plain, backbone.model)
    assert stored is not None
    for name, weight in weights.items():
        assert torch.equal(stored[name].float(), weight), name
    assert stored_dtype(plain) == torch.float32
    assert not hasattr(backbone.model.config, "quantization_config")


def test_streams_of_packed_layers_mean_the_same(plain: Path) -> None:
    meant = pack_folder(plain, gptq_said(), lambda name, shape: gptq_layer(shape, seed=len(name)))
    streamed = streamed_weights(plain, load_backbone(plain).model)
    assert streamed is not None
    for name, values in meant.items():
        packed = streamed[name]
        assert isinstance(packed, PackedTensor)
        assert torch.equal(packed.dequantise().double(), values)


@pytest.mark.parametrize(
    ("case", "grid"),
    [
        ("gptq, 2 bits", "Q4_0"), ("gptq, 3 bits", "Q4_0"), ("gptq", "Q4_0"), ("gptq, zero points", "Q5_0"),
        ("gptq v2, zero points", "Q5_0"), ("gptq, 8 bits", "Q8_0"), ("gptq, whole rows", "Q4_0"),
        ("compressed-tensors", "Q4_0"), ("compressed-tensors, zero points", "Q5_0"),
    ],
)  # fmt: skip
def test_codes_are_carried_into_blocks_bit_for_bit(case: str, grid: str, plain: Path) -> None:
    said, layer = CASES[case]
    meant = pack_folder(plain, said, lambda name, shape: layer(shape, seed=len(name)))
    weights = packed_weights(plain, load_backbone(plain).model)
    assert weights is not None
    blocks = weights.in_blocks(meant)
    assert set(blocks) == set(meant)
    for name, matrix in blocks.items():
        assert matrix.grid.name == grid
        assert torch.equal(matrix.dequantise().double(), meant[name])


def test_sorted_columns_are_not_carried(plain: Path) -> None:
    said, layer = CASES["gptq, sorted columns"]
    meant = pack_folder(plain, said, lambda name, shape: layer(shape, seed=1))
    weights = packed_weights(plain, load_backbone(plain).model)
    assert weights is not None
    assert not weights.in_blocks(meant)


def test_a_scale_beyond_fp16_is_not_carried(plain: Path) -> None:
    def layer(name: str, shape: tuple[int, int]) -> Layer:
        parts, meant = compressed_layer(shape)
        parts["weight_scale"] = parts["weight_scale"].bfloat16()
        parts["weight_scale"][0, 0] = 2.0**-30
        return parts, meant

    meant = pack_folder(plain, compressed_said(), layer)
    weights = packed_weights(plain, load_backbone(plain).model)
    assert weights is not None
    assert not weights.in_blocks(meant)


def test_biases_of_zeros_that_the_model_lacks_are_left_out_and_others_refused(plain: Path) -> None:
    pack_folder(plain, gptq_said(), lambda name, shape: gptq_layer(shape))
    file = plain / "model.safetensors"
    stored = load_file(file)
    save_file({**stored, f"{Q}.bias": torch.zeros(64)}, file, metadata={"format": "pt"})
    load_backbone(plain)
    save_file({**stored, f"{Q}.bias": torch.ones(64)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"q_proj\.bias"):
        load_backbone(plain)


def test_a_bit_more_or_another_meaning_is_another_base(plain: Path) -> None:
    pack_folder(plain, gptq_said(), lambda name, shape: gptq_layer(shape))
    first = load_backbone(plain).digest
    assert load_backbone(plain).digest == first
    words = load_file(plain / "model.safetensors")[f"{Q}.qweight"]
    words[0, 0] ^= 1
    changed(plain, qweight=words)
    second = load_backbone(plain).digest
    config = plain / "config.json"
    said = json.loads(config.read_text())
    said["quantization_config"]["checkpoint_format"] = "gptq_v2"
    config.write_text(json.dumps(said))
    assert len({first, second, load_backbone(plain).digest}) == 3


WORD = torch.zeros(8, 64, dtype=torch.int32)


@pytest.mark.parametrize(
    ("said", "change", "sentence"),
    [
        ({"bits": 5}, {}, "5 bits"),
        ({"bits": 4.0}, {}, "4.0 bits"),
        ({"bits": [4]}, {}, "bits"),
        ({"checkpoint_format": ["gptq"]}, {}, "damaged"),
        ({"checkpoint_format": "marlin"}, {}, "marlin"),
        ({"desc_act": True}, {"g_idx": None}, "no g_idx"),
        ({}, {"g_idx": torch.full((64,), 9, dtype=torch.int32)}, "no scales for"),
        ({}, {"g_idx": torch.zeros(63, dtype=torch.int32)}, "no scales for"),
        ({}, {"qzeros": None}, "no qzeros"),
        ({}, {"scales": torch.full((2, 64), torch.nan).half()}, "NaN"),
        ({}, {"scales": torch.ones(2, 63).half()}, "do not fit 4 bits"),
        ({}, {"qzeros": torch.zeros(2, 7, dtype=torch.int32)}, "do not fit 4 bits"),
        ({}, {"qweight": WORD.float()}, "float32"),
        ({"bits": 3}, {}, "do not fit 3 bits"),
        ({"quant_method": "awq"}, {}, "awq"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"}, {}, "auto_awq"),
        (
            {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "act_bits": 8},
            {},
            "more than packed integers",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(
    said: dict[str, Any], change: dict[str, torch.Tensor | None], sentence: str, plain: Path
) -> None:
    pack_folder(plain, gptq_said(**said), lambda name, shape: gptq_layer(shape))
    changed(plain, **change)
    with pytest.raises(ModelError, match=sentence):
        load_backbone(plain)


def test_a_group_index_that_says_nothing_new_may_be_missing(plain: Path) -> None:
    meant = pack_folder(plain, gptq_said(), lambda name, shape: gptq_layer(shape))
    changed(plain, g_idx=None)
    weights = dict(load_backbone(plain).model.named_parameters())
    assert torch.equal(weights[f"{Q}.weight"].double(), meant[f"{Q}.weight"])


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"format": "float-quantized"}, "float-quantized"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        (
            {"config_groups": {"a": {"weights": {"num_bits": 4}, "input_activations": {"num_bits": 8}}}},
            "activations",
        ),
        ({"config_groups": {"a": {"weights": None}}}, "damaged"),
        ({"config_groups": {"a": {"weights": {"num_bits": 8}}}}, "none of \\[8\\] bits"),
    ],
)
def test_a_compressed_folder_that_is_more_than_packed_integers_is_refused(
    said: dict[str, Any], sentence: str, plain: Path
) -> None:
    pack_folder(plain, compressed_said() | said, lambda name, shape: compressed_layer(shape))
    with pytest.raises(ModelError, match=sentence):
        load_backbone(plain)
