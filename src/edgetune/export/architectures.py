"""The table of model families that can be written as GGUF; adding one is one row."""

from __future__ import annotations

from edgetune.core.errors import ModelError
from edgetune.core.widths import widths_of
from edgetune.export.deci import DECI, DECI_TYPES
from edgetune.export.fused import BLOOM, FALCON, GPTNEOX, MPT
from edgetune.export.gemma import GEMMA, GEMMA2, GEMMA3
from edgetune.export.gpt2 import GPT2
from edgetune.export.layout import Architecture, Config
from edgetune.export.llama import (
    ARCEE,
    ERNIE,
    GLM4,
    GRANITE,
    HUNYUAN,
    LLAMA,
    OLMO,
    OLMO2,
    OLMO3,
    PHI3,
    QWEN2,
    QWEN3,
    SEED_OSS,
    SMOLLM3,
)
from edgetune.export.normed import (
    COHERE,
    COHERE2,
    NEMOTRON,
    PHI2,
    STABLELM,
    STARCODER,
    STARCODER2,
)

ARCHITECTURES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gpt2": GPT2,
    "phi3": PHI3,
    "granite": GRANITE,
    "olmo": OLMO,
    "olmo2": OLMO2,
    "olmo3": OLMO3,
    "smollm3": SMOLLM3,
    "seed_oss": SEED_OSS,
    "ernie4_5": ERNIE,
    "arcee": ARCEE,
    "glm4": GLM4,
    "hunyuan_v1_dense": HUNYUAN,
    "gpt_neox": GPTNEOX,
    "phi": PHI2,
    "starcoder2": STARCODER2,
    "gpt_bigcode": STARCODER,
    "falcon": FALCON,
    "mpt": MPT,
    "bloom": BLOOM,
    "stablelm": STABLELM,
    "nemotron": NEMOTRON,
    "cohere": COHERE,
    "cohere2": COHERE2,
}
"""`model_type` of a `transformers` configuration to its row."""


def architecture_of(config: Config) -> Architecture:
    """Return the row of a configuration.

    Args:
        config: a `transformers` configuration; `model_type` decides.

    Raises:
        ModelError: if the family cannot be exported; names those that can.
    """
    if widths_of(config) is not None:
        if config.model_type in DECI_TYPES:
            return DECI
        raise ModelError(
            f"{config.model_type!r} models whose layers differ in width cannot be written as GGUF",
            where="config.json",
            hint=f"prune with a uniform width; by layer: {', '.join(DECI_TYPES)}",
        )
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise ModelError(
            f"models of type {config.model_type!r} cannot be written as GGUF",
            where="config.json",
            hint=f"supported: {', '.join(ARCHITECTURES)}",
        )
    return found
