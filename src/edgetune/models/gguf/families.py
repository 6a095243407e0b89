"""The architectures of GGUF files that can be base models; adding one of Llama's kind is one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        turned: names whose rows llama.cpp interleaves, to the heads of the matrix.
        settings: what this family's configuration says besides.
    """

    model: Any
    config: Callable[..., PreTrainedConfig]
    names: Mapping[str, str]
    turned: Mapping[str, Callable[[PreTrainedConfig], int]]
    settings: Callable[[GgufFile], dict[str, Any]]

    def parameter(self, tensor: str) -> str | None:
        """Return the parameter of a tensor, for example of `blk.3.attn_q.weight`; None if the family has none."""
        stem, _, kind = tensor.rpartition(".")
        inside = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        local = {stored: name for name, stored in self.names.items()}.get(inside[2] if inside else stem)
        if local is None or kind not in ("weight", "bias"):
            return None
        return f"model.layers.{inside[1]}.{local}.{kind}" if inside else f"{local}.{kind}"

    def rows(self, parameter: str, config: PreTrainedConfig, rows: int) -> torch.Tensor | None:
        """Return which stored row stands where in the model, int64 [rows]; None where they stand alike."""
        heads = next((found for name, found in self.turned.items() if f".{name}." in parameter), None)
        if heads is None:
            return None
        return torch.argsort(interleaved_rows(rows, heads(config)))


def _llama(file: GgufFile) -> dict[str, Any]:
    names = {
        tensor.name.rpartition(".")[0].rpartition(".")[2] for tensor in file.tensors if "bias" in tensor.name
    }
    return {"attention_bias": "attn_q" in names, "mlp_bias": "ffn_up" in names}


FAMILIES = {
    "llama": Family(
        LlamaForCausalLM,
        LlamaConfig,
        NAMES,
        {
            "self_attn.q_proj": lambda config: int(config.num_attention_heads),
            "self_attn.k_proj": lambda config: int(config.num_key_value_heads),
        },
        _llama,
    ),
    "qwen2": Family(Qwen2ForCausalLM, Qwen2Config, NAMES, {}, lambda file: {}),
    "qwen3": Family(Qwen3ForCausalLM, Qwen3Config, NAMES | HEAD_NORMS, {}, lambda file: {}),
}
"""`general.architecture` to its row."""


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
    return FAMILIES[str(name)], Metadata(file, f"{name}.")


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
    hidden, heads = said.whole("embedding_length"), said.whole("attention.head_count")
    layers = said.whole("block_count")
    if layers > len(shapes) or heads > hidden:
        said.refuse("block_count", f"{layers} layers of {heads} heads in {len(shapes)} tensors")
    width = said.whole("attention.key_length", hidden // heads)
    if said.whole("attention.value_length", width) != width:
        said.refuse("attention.value_length", f"keys have {width} dimensions, values have other")
    if width % 2 or width > hidden * heads:
        said.refuse("attention.key_length", f"heads of {width} dimensions")
    tokens = {
        role: said.token(f"tokenizer.ggml.{role}_token_id", vocabulary) for role in ("bos", "padding", *ENDS)
    }
    ends = list(dict.fromkeys(tokens[role] for role in ENDS if tokens[role] is not None))
    settings = dict(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=said.whole("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=said.whole("attention.head_count_kv", heads),
        head_dim=width,
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
    return config
