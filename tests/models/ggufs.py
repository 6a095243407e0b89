"""GGUF files made with the `gguf` library alone, as llama.cpp's converter makes them from transformers' models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "In 2023 the quick brown fox jumped over 1,234 lazy dogs, didn't it? They've seen it all.",
    "Wie viele Äpfel kosten 3,50 € – oder sind's 20? Größe, Übung, naïve café.",
    "def f(x):\n    return x ** 2\n\n\n\tprint( f(10) )   # squares  ",
    "日本語のテキスト、中文字符，한국어 🙂👍🏽 مرحبا שלום ١٢٣",
    " leading and trailing \r\n\r\n spaces\t\tand tabs ",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "a",
    "\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "e\u0301 \u00a0 \u200b\u2028x",
    "1 22 333 4444 x55555",
]


def digit_words() -> PreTrainedTokenizerFast:
    """A byte-level BPE that splits every digit off, as SmolLM's does."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=CONTROLS, initial_alphabet=sorted(letters)
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=TEMPLATE,
    )


def sentence_pieces() -> PreTrainedTokenizerFast:
    """A BPE with byte fallback, as Llama 2's: a start token, a space in front, spaces as an underline."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, special_tokens=special, limit_alphabet=60
    )
    backend.train_from_iterator(CORPUS[:3] * 3, trainer)
    # Byte tokens are no added tokens: nobody writes them.
    described = json.loads(backend.to_str())
    described["added_tokens"] = described["added_tokens"][:3]
    backend = Tokenizer.from_str(json.dumps(described))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def interleave(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's `LlamaModel.permute`, as its converter writes it."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

Change = Callable[[dict[str, Any]], object]


def metadata_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What llama.cpp's converter says of a model and its tokenizer, by key."""
    config, arch = model.config, model.config.model_type
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    tokens: list[str] = sorted(vocabulary, key=lambda token: vocabulary[token])
    special = {token["content"] for token in described["added_tokens"]}
    pieces = bool(described["model"]["byte_fallback"])
    types = [3 if token in special else 1 for token in tokens]
    said: dict[str, Any] = {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": config.head_dim
        if hasattr(config, "head_dim")
        else config.hidden_size // config.num_attention_heads,
        f"{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{arch}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{arch}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "llama" if pieces else "gpt2",
        "tokenizer.ggml.pre": "default" if pieces else "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.unknown_token_id": tokenizer.unk_token_id,
    }
    merges = [" ".join(merge) for merge in described["model"]["merges"]]
    if pieces:
        said["tokenizer.ggml.token_type"] = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(merges):
            ranks.setdefault(merge.replace(" ", ""), rank)
        said["tokenizer.ggml.scores"] = [-float(ranks.get(token, len(merges))) for token in tokens]
    else:
        said |= {
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.chat_template": tokenizer.chat_template,
        }
    return said


def tensors_of(model: PreTrainedModel) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a model as llama.cpp's converter names and orders them, float32."""
    found = {}
    for name, weight in model.named_parameters():
        stem, kind = name.rsplit(".", 1)
        layer = stem.split(".")[2] if stem.startswith("model.layers.") else None
        local = ".".join(stem.split(".")[3:]) if layer is not None else stem
        values = weight.detach().float().numpy()
        if model.config.model_type == "llama" and local in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = (
                model.config.num_attention_heads if "q_proj" in local else model.config.num_key_value_heads
            )
            values = interleave(values, heads)
        found[f"{f'blk.{layer}.' if layer is not None else ''}{NAMES[local]}.{kind}"] = values
    return found


def write(
    path: Path,
    architecture: str,
    said: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write a file; matrices named in `kinds` are quantised by the library."""
    writer = gguf.GGUFWriter(path, architecture)
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in said.items():
        if value is not None:
            adders[type(value)](key, value)
    for name, values in tensors.items():
        kind = (kinds or {}).get(name)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny(model: Any, config: Any, vocabulary: int, **settings: object) -> PreTrainedModel:
    """A small random model in evaluation mode, the same weights every time; norms and biases are no ones or zeros."""
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: PreTrainedModel = model(config(**(sizes | settings)))
        for weight in made.parameters():
            if weight.dim() == 1:
                weight.data += 0.3 * torch.randn_like(weight)
    return made.eval().requires_grad_(False)
