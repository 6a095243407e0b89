"""The architectures of GGUF files that can be base models; adding one of Llama's kind is one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from edgetune.core.errors import ModelError
from edgetune.core.gguf_names import HEAD_NORMS, NAMES, interleaved_rows
from edgetune.core.gguf_read import GgufFile
from edgetune.core.widths import ATTRIBUTE, Widths
from edgetune.models.gguf.metadata import Metadata
from edgetune.models.gguf.rope import rope_parameters
from edgetune.models.tokenizer import first_line

HARMLESS = frozenset(
    {
        "vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "expert_count", "expert_used_count",
        "attention.causal", "rope.scaling.original_context_length",
    }
)  # fmt: skip
"""Keys, without the architecture's prefix, that change nothing where this package reads no other of them."""
ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""Roles of tokens at which llama.cpp ends an answer, the one that trained responses end with first."""


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    Args:
        model: transformers' class.
        config: its configuration's class.
        names: parameter name (inside a layer: without prefix and number) to GGUF name, both without kind.
        turned: names whose rows llama.cpp interleaves, head by head.
        settings: what this family's configuration says besides.
        by_layer: layers differ in width, or lack a sub-module.
    """

    model: Any
    config: Callable[..., PreTrainedConfig]
    names: Mapping[str, str]
    turned: tuple[str, ...]
    settings: Callable[[GgufFile], dict[str, Any]]
    by_layer: bool = False

    def parameter(self, tensor: str) -> str | None:
        """Return the parameter of a tensor, for example of `blk.3.attn_q.weight`; None if the family has none."""
        stem, _, kind = tensor.rpartition(".")
        inside = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        local = {stored: name for name, stored in self.names.items()}.get(inside[2] if inside else stem)
        if local is None or kind not in ("weight", "bias"):
            return None
        return f"model.layers.{inside[1]}.{local}.{kind}" if inside else f"{local}.{kind}"

    def rows(self, parameter: str, config: Any, rows: int) -> torch.Tensor | None:
        """Return which stored row stands where in the model, int64 [rows]; None where they stand alike."""
        if not any(f".{name}." in parameter for name in self.turned):
            return None
        return torch.argsort(interleaved_rows(rows, rows // int(config.head_dim)))


def _biased(file: GgufFile) -> set[str]:
    """Return the names of the layers inside a block that have a bias."""
    return {
        tensor.name.rpartition(".")[0].rpartition(".")[2] for tensor in file.tensors if "bias" in tensor.name
    }


def _llama(file: GgufFile) -> dict[str, Any]:
    names = _biased(file)
    return {"attention_bias": "attn_q" in names, "mlp_bias": "ffn_up" in names}


TURNED = ("self_attn.q_proj", "self_attn.k_proj")
LLAMA = Family(LlamaForCausalLM, LlamaConfig, NAMES, TURNED, _llama)
QWEN2 = Family(Qwen2ForCausalLM, Qwen2Config, NAMES, (), lambda file: {})
FAMILIES = {
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": Family(Qwen3ForCausalLM, Qwen3Config, NAMES | HEAD_NORMS, (), lambda file: {}),
    "deci": replace(LLAMA, by_layer=True),
}
"""`general.architecture` to its row."""
DECI_QWEN2 = replace(QWEN2, turned=TURNED, by_layer=True)
"""Layers of different widths with biases where a Qwen2 has them: on queries, keys and values alone."""


def family_of(file: GgufFile) -> tuple[Family, Metadata]:
    """Return the row of a file and its metadata.

    Raises:
        ModelError: if the architecture cannot be a base model; names those that can.
    """
    name, parts = file.metadata.get("general.architecture"), file.metadata.get("split.count", 1)
    if parts not in (0, 1):
        hint = "join the parts with llama.cpp's llama-gguf-split --merge"
        raise ModelError(f"this is one of {str(parts)[:20]} parts of a model", where=file.path, hint=hint)
    if name not in FAMILIES:
        raise ModelError(
            f"models of the architecture {str(name)[:40]!r} cannot be read from GGUF",
            where=file.path,
            hint=f"supported: {', '.join(FAMILIES)}; others from their Hugging Face folder",
        )
    said, biased = Metadata(file, f"{name}."), _biased(file)
    if FAMILIES[str(name)].by_layer and "attn_q" in biased and "attn_output" not in biased:
        return DECI_QWEN2, said
    return FAMILIES[str(name)], said


def config_of(family: Family, said: Metadata, factors: NDArray[np.float32] | None) -> PreTrainedConfig:
    """Return the configuration that a file's metadata describes.

    Args:
        family: its row.
        said: the metadata.
        factors: what the file divides rotary frequencies by, if it does.

    Raises:
        ModelError: for a setting that is missing, absurd, or that transformers does not compute alike.
    """
    shapes = {tensor.name: tensor.shape for tensor in said.file.tensors}
    vocabulary = shapes.get("token_embd.weight", (0, 0))[0]
    hidden, layers = said.whole("embedding_length"), said.whole("block_count")
    if layers > len(shapes):
        said.refuse("block_count", f"{layers} layers in {len(shapes)} tensors")
    sizes, widths = _sizes(family, said, hidden, layers)
    heads, width = sizes["num_attention_heads"], sizes["head_dim"]
    tokens = {
        role: said.token(f"tokenizer.ggml.{role}_token_id", vocabulary) for role in ("bos", "padding", *ENDS)
    }
    ends = list(dict.fromkeys(tokens[role] for role in ENDS if tokens[role] is not None))
    settings = dict(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        **sizes,
        max_position_embeddings=said.whole("context_length"),
        rms_norm_eps=said.real("attention.layer_norm_rms_epsilon"),
        tie_word_embeddings="output.weight" not in shapes,
        rope_parameters=rope_parameters(said, width, factors),
        bos_token_id=tokens["bos"],
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=tokens["padding"],
        **family.settings(said.file),
    )
    try:
        config = family.config(**settings)
    except Exception as error:  # the library checks with errors of its own
        what = f"no configuration has these settings: {first_line(error)}"
        raise ModelError(what, where=said.file.path) from error
    if heads % config.num_key_value_heads:
        said.refuse("attention.head_count_kv", f"{heads} heads on {config.num_key_value_heads} of keys")
    if said.whole("expert_count", 0, least=0):
        said.refuse("expert_count", "a mixture of experts is not supported")
    said.refuse_unknown(HARMLESS)
    if widths is not None:
        setattr(config, ATTRIBUTE, widths.as_json())
    return config


def _sizes(family: Family, said: Metadata, hidden: int, layers: int) -> tuple[dict[str, int], Widths | None]:
    """Return heads and channels as a configuration says them, and how wide each layer is where they differ."""
    widths = _widths(said, layers) if family.by_layer else None
    first = widths.heads[0] if widths else said.whole("attention.head_count")
    if first > hidden:
        said.refuse("attention.head_count", f"{first} heads in a width of {hidden}")
    width = said.whole("attention.key_length", hidden // first if first else None)
    if widths is None:
        heads, kv = first, said.whole("attention.head_count_kv", first)
        channels = said.whole("feed_forward_length")
    else:
        heads, kv = _whole_layer(widths, hidden // width)
        channels = max(*widths.feed_forward, 1)
    if said.whole("attention.value_length", width) != width:
        said.refuse("attention.value_length", f"keys have {width} dimensions, values have other")
    if width % 2 or width > hidden * heads:
        said.refuse("attention.key_length", f"heads of {width} dimensions")
    names = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    return dict(zip(names, (channels, heads, kv, width), strict=True)), widths


def _widths(said: Metadata, layers: int) -> Widths:
    """Return how wide the layers of a file are.

    Raises:
        ModelError: for heads that do not share key-value heads, and attention of another kind.
    """
    heads = said.by_layer("attention.head_count", layers)
    kv = said.by_layer("attention.head_count_kv", layers, heads)
    try:
        return Widths(said.by_layer("feed_forward_length", layers), heads, kv)
    except ModelError as error:
        said.refuse("attention.head_count_kv", error.what)


def _whole_layer(widths: Widths, heads: int) -> tuple[int, int]:
    """Return heads and key-value heads of a layer that lacks none; only how many share one is computed with.

    As many heads as the hidden width holds if that can be, else those of the widest layer: some configurations want the
    one to be a multiple of the other.
    """
    most, kv = max(*widths.heads, 1), max(*widths.kv_heads, 1)
    share = most // kv
    return (heads, heads // share) if heads >= most and heads % share == 0 else (share * kv, kv)
