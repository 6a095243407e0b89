from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import TEXTS, byte_level, quantise, tiny_llama
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from edgetune.core.errors import VerifyError
from edgetune.core.quantised import GRIDS
from edgetune.export import architectures
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama import LLAMA, llama_parameters
from edgetune.export.verify import verify

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GEMMA: dict[str, Any] = SIZES | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
FAMILIES: dict[str, Any] = {
    "llama": tiny_llama,
    "llama-tied": lambda: tiny_llama(tie_word_embeddings=True, head_dim=16),
    "llama-biased": lambda: tiny_llama(
        attention_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    ),
    "llama3-rope": lambda: tiny_llama(rope_parameters=LLAMA3_ROPE),
    "llama-linear-rope": lambda: tiny_llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=32)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**(GEMMA | {"num_hidden_layers": 6}))),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=384, n_positions=256, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1,
            initializer_range=0.15,
        )
    ),
}  # fmt: skip


def stir(model: PreTrainedModel) -> PreTrainedModel:
    """Move norms and biases off their initial ones and zeros, so that losing one shows."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_computes_the_same_in_llama_cpp(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    torch.manual_seed(0)
    model = stir(FAMILIES[family]())
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={}, float_type="F32")
    found = verify(path, model, tokenizer, [(ids, 1)], TEXTS)
    assert found.mean_log_probability_difference < 0.005
    assert found.tokenizer_texts == len(TEXTS)


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_quantised_files_stay_within_the_bounds(
    grid: str, family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model = FAMILIES[family]()
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantise(model, GRIDS[grid]))
    found = verify(path, model, tokenizer, [(ids, 1), (ids[::-1], 20)], TEXTS)
    assert 0 < found.max_log_probability_difference < 1.0


@pytest.mark.parametrize("name", ["stories260K", "markov-3.7M"])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_pretrained_models_agree(name: str, kind: Any, pretrained: Any, tmp_path: Path) -> None:
    model, tokenizer = pretrained(name)
    quantised = quantise(model, GRIDS[kind]) if kind in GRIDS else {}
    path = write_gguf(
        tmp_path / "m.gguf",
        model,
        tokenizer,
        quantised=quantised,
        float_type="F32" if kind == "F32" else "F16",
    )
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    found = verify(
        path, model, tokenizer, [(tokenizer(text).input_ids, 1)], [text, "Ünïcode 🙂\n\n two  spaces"]
    )
    assert found.mean_log_probability_difference <= (0.03 if quantised else 0.002)
    assert found.perplexity_llama_cpp == pytest.approx(found.perplexity_torch, rel=0.01)


def llama_with(**changed: Any) -> Any:
    return replace(LLAMA, parameters=lambda config: llama_parameters(config) | changed)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize(
    "fault",
    [replace(LLAMA, rotary={}), llama_with(**{"rope.freq_base": 2e4})],
    ids=["row order", "rope base"],
)
def test_a_wrong_computation_with_the_right_weights_is_caught(
    kind: str, fault: Any, pretrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = pretrained("stories260K")
    quantised = quantise(model, GRIDS[kind]) if kind in GRIDS else {}
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day,"
    examples = [(tokenizer(text + " Tom saw a big dog and it was happy.").input_ids, 1)]
    right = write_gguf(tmp_path / "right.gguf", model, tokenizer, quantised=quantised)
    assert verify(right, model, tokenizer, examples, [text]).tokenizer_texts == 1
    monkeypatch.setitem(architectures.ARCHITECTURES, "llama", fault)
    wrong = write_gguf(tmp_path / "wrong.gguf", model, tokenizer, quantised=quantised)
    monkeypatch.setitem(architectures.ARCHITECTURES, "llama", replace(LLAMA, rotary=fault.rotary))
    with pytest.raises(VerifyError, match="does not compute what PyTorch computes"):
        verify(wrong, model, tokenizer, examples, [text])


def test_a_missing_row_order_is_caught(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(architectures.ARCHITECTURES, "llama", replace(LLAMA, rotary={}))
    model = tiny_llama()
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})
    with pytest.raises(VerifyError, match="does not compute what PyTorch computes"):
        verify(path, model, tokenizer, [(ids, 1)], TEXTS)


def test_the_row_order_of_quantised_rows_is_checked_too(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(architectures.ARCHITECTURES, "llama", replace(LLAMA, rotary={}))
    model = tiny_llama()
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantise(model))
    with pytest.raises(VerifyError, match="does not compute what PyTorch computes"):
        verify(path, model, tokenizer, [(ids, 1)], TEXTS)


def test_a_missing_template_is_caught(tmp_path: Path, ids: list[int]) -> None:
    bare = byte_level()
    bare.chat_template = None
    model = tiny_llama()
    path = write_gguf(tmp_path / "m.gguf", model, bare, quantised={})
    with pytest.raises(VerifyError, match="chat template is missing"):
        verify(path, model, byte_level(), [(ids, 1)], TEXTS)


def test_one_damaged_weight_is_caught(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model = tiny_llama()
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantise(model))
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] += 0.01
    with pytest.raises(VerifyError, match=r"blk\.1\.ffn_down\.weight: 1 of 6144 weights differ"):
        verify(path, model, tokenizer, [(ids, 1)], TEXTS)


def test_another_tokenizer_is_caught_with_its_first_difference(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model = tiny_llama()
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={}, pre_tokenizer="smollm")
    with pytest.raises(VerifyError, match="tokenizers differ at token"):
        verify(path, model, tokenizer, [(ids, 1)], ["x 12345", *TEXTS, *(str(n) for n in range(3000))])


def test_half_precision_models_are_judged_in_float32(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model = tiny_llama().half()
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})
    assert verify(path, model, tokenizer, [(ids, 1)], []).mean_log_probability_difference < 0.005
    assert model.dtype == torch.float16
