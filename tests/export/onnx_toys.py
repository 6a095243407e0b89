"""Tiny random decoders of many families, compressed and written as ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgetune.compress.sequential import compress_model
from edgetune.core.integers import grid_named
from edgetune.core.quantised import QuantisedMatrix
from edgetune.export.onnx_graph import write_onnx
from edgetune.export.onnx_runtime import OnnxDecoder
from edgetune.methods.compression.rtn import METHOD
from edgetune.models.quiet import quiet

VOCABULARY, WIDTH = 96, 64
USUAL = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 8},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8},
    "mistral": {"sliding_window": 8},
    "qwen3": {"head_dim": 16},
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": WIDTH},
}
"""What a family's configuration calls otherwise, or needs beside the usual."""


def toy(family: str, seed: int = 0, **more: Any) -> Any:
    """A random decoder, float32, in evaluation mode."""
    said = USUAL | OWN.get(family, {}) | more
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **said))
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases begin as ones and zeros, which hide what is left out
                parameter.data += 0.2 * torch.randn_like(parameter)
            elif "embed" not in name:
                parameter.data *= 4
    return model.eval().requires_grad_(False)


def written(model: Any, file: Path, grid: str = "Q4_0") -> Mapping[str, QuantisedMatrix]:
    """Compress a model in place by rounding and write it."""
    quantised = compress_model(model, [], replace(METHOD, grid=grid_named(grid)), lambda event: None)
    with quiet():
        write_onnx(model, quantised, file)
    return quantised


def stored(file: Path) -> dict[str, Any]:
    """The weights of a file by name."""
    import onnx
    from onnx import numpy_helper

    return {one.name: numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer}


def some_ids(count: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    found: list[int] = torch.randint(
        1, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return found


def far(model: Any, decoder: OnnxDecoder, ids: list[int]) -> float:
    """Greatest difference of log-probabilities, half of the text read from the cache."""
    ours = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return float((ours - decoder.log_probabilities(ids)).abs().max())


def far_in_a_padded_batch(model: Any, decoder: OnnxDecoder, long: list[int], short: list[int]) -> float:
    """Greatest difference of the logits behind the last token: padded on the left here, each text alone there."""
    width = len(long)
    ids = np.array([long, [0] * (width - len(short)) + short])
    mask = np.array([[1] * width, [0] * (width - len(short)) + [1] * len(short)])
    logits, _ = decoder.step(ids, decoder.start(2), mask)
    alone = [model(torch.tensor([text])).logits[0, -1] for text in (long, short)]
    return float((torch.from_numpy(logits[:, -1]) - torch.stack(alone)).abs().max())
