"""Rotary positions of a GGUF file, as transformers describes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from edgetune.core.errors import ModelError
from edgetune.models.gguf.metadata import Metadata

FACTORS = "rope_freqs.weight"
"""The tensor by which llama.cpp divides the rotary frequencies of a Llama 3.1 and later."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Llama 3's scaling but for its factor; a file stores only what comes out."""
EQUAL = 1e-5


def rope_parameters(said: Metadata, head_dim: int, factors: NDArray[np.float32] | None) -> dict[str, Any]:
    """Return `rope_parameters` of a configuration.

    Args:
        said: the metadata.
        head_dim: width of a head; all of it is turned.
        factors: float32 [head_dim / 2], what the file divides the frequencies by, if it does.

    Raises:
        ModelError: for positions that transformers does not compute alike.
    """
    turned = said.whole("rope.dimension_count", head_dim)
    if turned != head_dim:
        said.refuse("rope.dimension_count", f"{turned} of {head_dim} dimensions are turned")
    theta = said.real("rope.freq_base", 10000.0)
    # llama.cpp scales linearly where a factor stands without a type; files before 2024 name it otherwise.
    kind = said.text("rope.scaling.type", "linear")
    factor = said.real("rope.scaling.factor", said.real("rope.scale_linear", 1.0))
    if not math.isclose(said.real("rope.scaling.attn_factor", 1.0), 1.0):
        said.refuse("rope.scaling.attn_factor", "a factor on attention is not supported")
    plain = kind == "none" or (kind == "linear" and factor == 1.0)
    if factors is not None:
        if not plain:
            said.refuse("rope.scaling.type", f"{kind[:40]!r} together with {FACTORS}")
        return _llama3(said, theta, head_dim, factors)
    if plain:
        return {"rope_type": "default", "rope_theta": theta}
    scaled = {"rope_type": kind, "rope_theta": theta, "factor": factor}
    if kind == "linear":
        return scaled
    if kind != "yarn":
        said.refuse("rope.scaling.type", f"{kind[:40]!r} is not supported: none, linear and yarn are")
    return scaled | {
        "original_max_position_embeddings": said.whole("rope.scaling.original_context_length"),
        "beta_fast": said.real("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": said.real("rope.scaling.yarn_beta_slow", 1.0),
    }


def _llama3(said: Metadata, theta: float, width: int, factors: NDArray[np.float32]) -> dict[str, Any]:
    """Recognise Llama 3's scaling by what it makes of the frequencies."""
    whole = factors.shape == (width // 2,) and bool(np.isfinite(factors).all()) and bool((factors >= 1).all())
    found = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": float(factors.max()) if whole else 1.0,
    } | LLAMA3
    if whole:
        config = LlamaConfig(
            hidden_size=width,
            num_attention_heads=1,
            max_position_embeddings=1 << 17,
            rope_parameters=dict(found),
        )
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        expected = (plain / scaled.double()).numpy()
        if np.allclose(expected, factors, rtol=EQUAL, atol=0):
            return found
    raise ModelError(
        f"the positions are scaled by {FACTORS} in another way than Llama 3's", where=said.file.path
    )
