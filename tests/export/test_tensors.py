from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toys import byte_level, quantise, round_to, tiny_llama
from transformers import PreTrainedTokenizerFast, T5Config

from edgetune.core.errors import ModelError
from edgetune.core.gguf_names import interleaved_rows
from edgetune.core.gguf_read import read_metadata, read_tensors
from edgetune.core.quantised import GRIDS, BlockGrid
from edgetune.export.architectures import ARCHITECTURES, architecture_of
from edgetune.export.gguf_file import write_gguf


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
def test_a_file_holds_the_dequantised_weights_in_llama_cpp_order(
    grid: BlockGrid, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_llama(hidden_size=256)
    quantised = quantise(model, grid)
    assert any((matrix.numbers[0] < 0).any() for matrix in quantised.values()) or not grid.signed
    found = dict(read_tensors(write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantised)))
    for ours, theirs, heads in (("q", "attn_q", 4), ("k", "attn_k", 2), ("v", "attn_v", None)):
        expected = quantised[f"model.layers.1.self_attn.{ours}_proj.weight"].dequantise()
        if heads:
            width = expected.shape[0] // heads
            expected = expected.view(heads, 2, width // 2, -1).swapaxes(1, 2).reshape(expected.shape)
        stored = found[f"blk.1.{theirs}.weight"]
        np.testing.assert_array_equal(stored.view(np.uint32), expected.numpy().view(np.uint32))
    np.testing.assert_array_equal(found["output_norm.weight"], model.model.norm.weight.detach().numpy())


def test_interleaving_pairs_the_two_halves_of_every_head() -> None:
    assert interleaved_rows(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_metadata_explains_the_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    given_metadata = {"name": "toy", "base": "abc", "method": "fedkseed"}
    path = write_gguf(
        tmp_path / "m.gguf", model, tokenizer, quantised=quantise(model), metadata=given_metadata
    )
    found = read_metadata(path)
    expected = {
        "general.name": "toy",
        "general.architecture": "llama",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "edgetune.base": "abc",
        "edgetune.method": "fedkseed",
        "llama.attention.key_length": 32,
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    assert {key: found[key] for key in expected} == expected
    assert "output.weight" not in dict(read_tensors(path)), "a tied head is stored once"


def test_an_unsupported_family_names_the_supported_ones() -> None:
    with pytest.raises(ModelError, match="supported: llama"):
        architecture_of(T5Config())
    assert architecture_of(tiny_llama().config) is ARCHITECTURES["mistral"]


def test_wrong_codes_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama()
    path = tmp_path / "m.gguf"
    matrix = round_to(torch.randn(64, 64), GRIDS["Q4_0"])
    with pytest.raises(ModelError, match=r"the codes are \(64, 64\)"):
        write_gguf(path, model, tokenizer, quantised={"model.layers.0.mlp.up_proj.weight": matrix})
    with pytest.raises(ModelError, match="no parameter of this name"):
        write_gguf(path, model, tokenizer, quantised={"layers.0": matrix})
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_weights_beyond_fp16_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    model.lm_head.weight.data[0, 0] = 1e6
    with pytest.raises(ModelError, match="not finite"):
        write_gguf(tmp_path / "m.gguf", model, byte_level(), quantised={})
    write_gguf(tmp_path / "m.gguf", model, byte_level(), quantised={}, float_type="F32")


def test_a_rope_scaling_llama_cpp_lacks_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(ModelError, match="rope scaling 'dynamic'"):
        write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})
