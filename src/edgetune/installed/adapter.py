"""A ledger as an adapter: for llama.cpp a GGUF file, for peft a folder; the base stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgetune.core.canonical import saved
from edgetune.core.errors import ModelError
from edgetune.core.files import write_atomic
from edgetune.core.ledger import Ledger
from edgetune.export.adapter import write_adapter
from edgetune.export.architectures import architecture_of
from edgetune.installed.base import Base
from edgetune.installed.parts import Parts
from edgetune.installed.reading import PEFT
from edgetune.installed.whole import whole_folder

OURS = ("seed", "freeze_a", "initialiser")
"""What a ledger says beside peft's own settings."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """What became of a ledger.

    Args:
        layers: that the adapter changes.
        left: parameters that move and are not in it.
    """

    layers: int
    left: tuple[str, ...] = ()


def write_gguf_adapter(path: Path, parts: Parts, base: Base, ledger: Ledger) -> Adapted:
    """Write the adapter that llama.cpp takes beside a file of the base (`--lora FILE`), atomically.

    llama.cpp has no place in an adapter for norms and biases, and none for embeddings where the head is the same
    tensor: it would multiply the head by factors that it wants transposed for a look-up, and end.

    Raises:
        ModelError, OutputError, MissingExtraError: as `export.adapter.write_adapter`.
    """
    said = {"base_digest": ledger.base_digest, "ledger_digest": ledger.digest, "method": ledger.method}
    architecture = architecture_of(base.outline.config)
    factors, tables, left = dict(parts.factors), dict[str, Any](), [*parts.whole, *parts.others]
    apart = not parts.tied or architecture.own_head
    if not apart:
        factors.pop(parts.tied)
    for layer, pair in parts.tables.items():
        name = f"{layer}.weight"
        if apart and architecture.gguf_name(name) == "token_embd.weight":
            tables[layer] = pair
        else:
            left.append(name)
    if not factors:
        raise ModelError("llama.cpp has no place for what this ledger moves", where=path)

    def write(file: Path) -> None:
        write_adapter(file, base.outline.config, factors, parts.scale, said, tables)

    write_atomic(path, write)
    return Adapted(len(factors) + len(tables), tuple(sorted(left)))


def write_peft_adapter(folder: Path, parts: Parts, base: Base, ledger: Ledger) -> Adapted:
    """Write the folder that `peft.PeftModel.from_pretrained(model, folder)` loads; all of it or nothing.

    Norms go with it as whole modules, biases as values of their own.

    Raises:
        OutputError: if there is something in the folder already, or it cannot be written.
    """
    ranks = {right.shape[0] for _, right in [*parts.factors.values(), *parts.tables.values()]}
    if len(ranks) != 1:
        raise ModelError("peft's file has one rank, these layers differ", hint="write a GGUF adapter instead")
    rank = ranks.pop()
    said: dict[str, Any] = {key: one for key, one in (ledger.adapter or {}).items() if key not in OURS}
    if said.get("peft_type") != "LORA":
        said = _configuration(parts, base)
    said |= {"r": rank, "lora_alpha": parts.scale * rank, "inference_mode": True}
    said["base_model_name_or_path"] = str(base.path)
    data = saved(_tensors(parts, said), {"format": "pt"})
    with whole_folder(folder) as partial:
        (partial / "adapter_model.safetensors").write_bytes(data)
        text = json.dumps(said, indent=2, sort_keys=True) + "\n"
        (partial / "adapter_config.json").write_text(text, encoding="utf-8")
    return Adapted(len(parts.factors) + len(parts.tables), parts.others)


def _tensors(parts: Parts, said: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors by the names under which peft looks for them."""
    found = {}
    for layer, (left, right) in parts.factors.items():
        found[f"{PEFT}{layer}.lora_A.weight"] = right.contiguous()
        found[f"{PEFT}{layer}.lora_B.weight"] = left.contiguous()
    for layer, (left, right) in parts.tables.items():
        found[f"{PEFT}{layer}.lora_embedding_A"] = left.T.contiguous()
        found[f"{PEFT}{layer}.lora_embedding_B"] = right.T.contiguous()
    for name, values in parts.whole.items():
        layer, _, kind = name.rpartition(".")
        adapted = layer in parts.factors or layer in parts.tables
        found[f"{PEFT}{layer}.base_layer.{kind}" if adapted else f"{PEFT}{name}"] = values
    return found


def _configuration(parts: Parts, base: Base) -> dict[str, Any]:
    """Return peft's settings for factors that no LoRA run made."""
    layers = {*parts.factors, *parts.tables}
    whole = {name.rpartition(".")[0] for name in parts.whole} - layers
    modules = [name for name, _ in base.outline.named_modules()]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "target_modules": _short(layers, modules),
        "modules_to_save": _short(whole, modules) or None,
        "bias": "all" if any(name.rpartition(".")[0] in layers for name in parts.whole) else "none",
        "fan_in_fan_out": _turned(base),
    }


def _short(chosen: set[str], modules: Iterable[str]) -> list[str]:
    """Return the last words of names where no other module's name ends so; else the names."""
    words = {name.rpartition(".")[2] for name in chosen}
    return sorted(
        words if {name for name in modules if name.rpartition(".")[2] in words} == chosen else chosen
    )


def _turned(base: Base) -> bool:
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in base.outline.modules())
