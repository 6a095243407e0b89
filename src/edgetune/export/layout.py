"""What distinguishes one model family in a GGUF file: names, hyper-parameters, row order and offsets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from edgetune.core.errors import ModelError
from edgetune.core.gguf_names import interleaved_rows

Value = str | int | float | bool | list[int] | list[bool]
"""A hyper-parameter as GGUF stores it."""

Config = Any
"""A `transformers` configuration; its fields differ from family to family."""


RowOrder = Callable[[Config, int], torch.Tensor]
"""From a configuration and a number of rows to int64 [rows] indices, `new = old[indices]`."""


def no_tensors(config: Config) -> dict[str, torch.Tensor]:
    """Return the tensors a family derives from its configuration: none."""
    return {}


def no_notes(config: Config) -> tuple[str, ...]:
    """Return what a family's file limits: nothing."""
    return ()


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row of the table of supported families.

    Args:
        name: `general.architecture`, the prefix of the hyper-parameter keys.
        blocks: the prefix of the layers in the parameter names, up to the layer number.
        names: parameter name (inside a layer: without prefix and number) without `.weight` or `.bias` to GGUF name.
        parameters: configuration to hyper-parameters, keys without the architecture's prefix.
        rows: names of the tensors whose rows llama.cpp wants in another order, to (configuration, rows) -> which
            row stands where.
        norm_offset: added to every norm weight (Gemma stores `w` and multiplies by `1 + w`).
        transposed: names stored [inputs, outputs] (GPT-2's Conv1D).
        own_head: llama.cpp wants an output matrix even where it is tied to the embeddings.
        exact: names of matrices that are added or looked up in F32 only (learned positions).
        tensors: tensors computed from the configuration, by GGUF name.
        notes: what the file limits, for a person.
    """

    name: str
    blocks: str
    names: Mapping[str, str]
    parameters: Callable[[Config], dict[str, Value]]
    rows: Mapping[str, RowOrder] = field(default_factory=dict)
    norm_offset: float = 0.0
    transposed: frozenset[str] = frozenset()
    own_head: bool = False
    exact: frozenset[str] = frozenset()
    tensors: Callable[[Config], dict[str, torch.Tensor]] = no_tensors
    notes: Callable[[Config], tuple[str, ...]] = no_notes

    def local_name(self, parameter: str) -> tuple[str, str, str]:
        """Split a parameter name into (GGUF prefix such as `blk.3.`, name in the table, `weight` or `bias`).

        Raises:
            ModelError: if the name has another form, for example an adapter's.
        """
        stem, _, kind = parameter.rpartition(".")
        if kind not in ("weight", "bias"):
            raise ModelError(
                "GGUF has no place for this tensor", where=parameter, hint="merge adapters first"
            )
        inside = re.fullmatch(re.escape(self.blocks) + r"\.(\d+)\.(.+)", stem)
        return (f"blk.{inside[1]}.", inside[2], kind) if inside else ("", stem, kind)

    def is_exact(self, parameter: str) -> bool:
        """Say whether llama.cpp reads a matrix as F32 only."""
        return self.local_name(parameter)[1] in self.exact

    def gguf_name(self, parameter: str) -> str:
        """Return the GGUF name of a parameter, for example `blk.3.attn_q.weight`.

        Raises:
            ModelError: if the family has no such tensor in llama.cpp.
        """
        prefix, local, kind = self.local_name(parameter)
        if local not in self.names:
            raise ModelError(
                f"the GGUF architecture {self.name!r} has no place for this tensor",
                where=parameter,
                hint="merge adapters into the weights before the export",
            )
        return f"{prefix}{self.names[local]}.{kind}"


def interleaved(heads: Callable[[Config], int]) -> RowOrder:
    """Return the row order of a matrix with half-split rotary pairs in so many heads."""
    return lambda config, rows: interleaved_rows(rows, heads(config))


def require(condition: bool, what: str) -> None:
    """Refuse a configuration that llama.cpp would silently compute differently.

    Raises:
        ModelError: if the condition is false.
    """
    if not condition:
        raise ModelError(f"llama.cpp computes this family differently: {what}", where="config.json")


def head_dim(config: Config) -> int:
    """Return the width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def transformer_parameters(
    config: Config, norm: str | None = "attention.layer_norm_rms_epsilon"
) -> dict[str, Value]:
    """Return the hyper-parameters every rotary family of the table shares.

    Args:
        config: names them as Llama does.
        norm: key of the norms' epsilon; None for a family without one.
    """
    names = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")
    epsilons = [getattr(config, name) for name in names if getattr(config, name, None) is not None]
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "attention.key_length": head_dim(config),
        "attention.value_length": head_dim(config),
        "vocab_size": config.vocab_size,
    } | ({} if norm is None else {norm: float(epsilons[0])})
