"""Models whose layers differ in width, which transformers has no configuration for: how a folder says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.core.removed import ATTENTION, FEED_FORWARD, remove
from edgetune.core.widths import ATTRIBUTE, Widths, widths_of

WIDTHS_FILE = "widths.json"
"""Lies beside config.json: the family, and how wide each layer is."""
MODEL_TYPE = "edgetune_by_layer"
"""What config.json calls such a model, so that whoever does not know of the widths refuses it instead of filling in."""


def config_by_layer(folder: Path) -> PreTrainedConfig:
    """Return the configuration of a folder with a file of widths; its field `layer_widths` holds them.

    Raises:
        ModelError: if the files do not fit together, or name an unknown family.
    """
    file = folder / WIDTHS_FILE
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    more = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(more, dict) or set(more) != {"model_type", ATTRIBUTE}:
        raise ModelError(f"this file names model_type and {ATTRIBUTE}", where=file)
    if said.get("model_type") != MODEL_TYPE:
        raise ModelError(f"config.json beside it is of type {said.get('model_type')!r}", where=file)
    widths = Widths.read(more[ATTRIBUTE])
    said.pop("model_type")
    config: Any = AutoConfig.for_model(str(more["model_type"]), **said)
    if len(widths.heads) != config.num_hidden_layers:
        what = f"widths of {len(widths.heads)} layers for {config.num_hidden_layers}"
        raise ModelError(what, where=file)
    setattr(config, ATTRIBUTE, widths.as_json())
    return config  # type: ignore[no-any-return]


def write_config_by_layer(folder: Path, config: PreTrainedConfig) -> None:
    """Write config.json and the file of widths for a configuration that has widths; nothing is atomic here."""
    said = json.loads(config.to_json_string(use_diff=False))
    widths = said.pop(ATTRIBUTE)
    more = {"model_type": config.model_type, ATTRIBUTE: widths}
    for name, content in (("config.json", said | {"model_type": MODEL_TYPE}), (WIDTHS_FILE, more)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def by_layer(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the family's class with layers of a configuration's widths; `from_pretrained` fills them.

    Raises:
        ModelError: if the family has no causal language model.
    """
    widths = widths_of(config)
    base: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if widths is None or not isinstance(base, type):
        raise ModelError(f"no model has layers of different widths and type {config.model_type!r}")

    def build(self: Any, config: PreTrainedConfig) -> None:
        super(made, self).__init__(config)
        fit(self, widths)

    kept = {"__init__": build, "__module__": base.__module__, "__qualname__": base.__qualname__}
    made: Any = type(base.__name__, (base,), kept)
    return made  # type: ignore[no-any-return]


def fit(model: Any, widths: Widths) -> None:
    """Give every layer of a fresh model its width; the new weights are without values.

    Args:
        model: as its configuration builds it, on any device.
        widths: of its layers.

    Raises:
        ModelError: if a block has other names than Llama's, or its heads are shared otherwise than the others'.
    """
    config = model.config
    width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    shared = config.num_attention_heads // config.num_key_value_heads
    blocks = getattr(model.base_model, "layers", [])
    layers = zip(blocks, widths.feed_forward, widths.heads, widths.kv_heads, strict=True)
    for layer, (block, channels, heads, kv) in enumerate(layers):
        if heads != shared * kv:
            raise ModelError(
                f"{heads} heads on {kv} key-value heads, {shared} share one", where=f"layer {layer}"
            )
        own = {f"{ATTENTION}.q_proj": heads * width, f"{ATTENTION}.k_proj": kv * width}
        own |= {f"{ATTENTION}.v_proj": kv * width, f"{FEED_FORWARD}.up_proj": channels}
        own |= {f"{FEED_FORWARD}.gate_proj": channels} if hasattr(block.mlp, "gate_proj") else {}
        for path, outputs in own.items():
            _resize(block.get_submodule(path), outputs=outputs)
        _resize(block.get_submodule(f"{ATTENTION}.o_proj"), inputs=heads * width)
        _resize(block.get_submodule(f"{FEED_FORWARD}.down_proj"), inputs=channels)
        for name, count in ((ATTENTION, heads), (FEED_FORWARD, channels)):
            if not count:
                remove(block, name, layer)


def _resize(layer: Any, *, outputs: int | None = None, inputs: int | None = None) -> None:
    shape = (outputs or layer.out_features, inputs or layer.in_features)
    layer.weight = nn.Parameter(torch.empty(shape, dtype=layer.weight.dtype, device=layer.weight.device))
    if layer.bias is not None and outputs is not None:
        layer.bias = nn.Parameter(torch.empty(shape[0], dtype=layer.bias.dtype, device=layer.bias.device))
    layer.out_features, layer.in_features = shape
