"""Rotary positions: the hyper-parameters and frequency factors that llama.cpp needs to turn as transformers does."""

from __future__ import annotations

import math

import torch

from edgetune.export.layout import Config, Value, head_dim, require

SCALINGS = ("default", "linear", "llama3", "yarn")


def rope(config: Config, *, scalings: tuple[str, ...] = SCALINGS) -> dict[str, Value]:
    """Return the rotary hyper-parameters of a configuration with one kind of positions.

    Raises:
        ModelError: if the scaling is none of `scalings`, or a yarn of another kind than llama.cpp's.
    """
    return rope_of(config.rope_parameters, config, scalings)


def rope_of(given: Config, config: Config, scalings: tuple[str, ...]) -> dict[str, Value]:
    """Return the rotary hyper-parameters of one kind of positions; refuses what `rope` refuses."""
    kind = given.get("rope_type", "default")
    require(kind in scalings, f"rope scaling {kind!r}")
    turned = int(head_dim(config) * given.get("partial_rotary_factor", 1.0))
    found: dict[str, Value] = {"rope.freq_base": float(given["rope_theta"]), "rope.dimension_count": turned}
    if kind == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(given["factor"])}
    if kind == "yarn":
        found |= _yarn(given)
    return found


def _yarn(given: Config) -> dict[str, Value]:
    factor = float(given["factor"])
    attention = given.get("attention_factor")
    require(given.get("truncate", True), "yarn without rounded corrections")
    require(not given.get("mscale") and not given.get("mscale_all_dim"), "yarn with mscale")
    require(
        attention is None or math.isclose(attention, 0.1 * math.log(factor) + 1, rel_tol=1e-6),
        f"yarn with an attention factor of {attention}",
    )
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(given["original_max_position_embeddings"]),
        "rope.scaling.yarn_beta_fast": float(given.get("beta_fast") or 32),
        "rope.scaling.yarn_beta_slow": float(given.get("beta_slow") or 1),
    }


def llama3_factors(config: Config) -> dict[str, torch.Tensor]:
    """Return how much each rotary frequency is slowed down by Llama 3's scaling, or nothing for other scalings.

        factor_i = 1 for short waves, `factor` for long ones, 1 / ((1 - s) / factor + s) between
        s = (old / wave_i - low) / (high - low)

    Returns:
        {"rope_freqs.weight": float32 [head_dim / 2]} or {}.
    Source: transformers `_compute_llama3_parameters`; llama.cpp divides the frequencies by this tensor.
    """
    given = config.rope_parameters
    if given.get("rope_type") != "llama3":
        return {}
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    old, factor = given["original_max_position_embeddings"], given["factor"]
    width = head_dim(config)
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    waves = 2 * math.pi * given["rope_theta"] ** exponents
    smooth = (old / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(waves > old / low, torch.full_like(waves, factor), between)
    return {"rope_freqs.weight": torch.where(waves < old / high, torch.ones_like(waves), factors).float()}


def longrope(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of Phi's long context, exact as far as its original context goes.

    transformers changes to the long factors when a text exceeds the original context, llama.cpp when its context
    does; in a file whose context is the original one both use the short factors.
    """
    given = config.rope_parameters
    old = int(given["original_max_position_embeddings"])
    factor = given.get("factor") or config.max_position_embeddings / old
    attention = given.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(old)) if factor > 1 else 1.0
    return {
        "rope.freq_base": float(given["rope_theta"]),
        "rope.dimension_count": int(head_dim(config) * given.get("partial_rotary_factor", 1.0)),
        "rope.scaling.attn_factor": float(attention),
        "rope.scaling.original_context_length": old,
        "context_length": min(old, config.max_position_embeddings),
    }


def longrope_factors(config: Config) -> dict[str, torch.Tensor]:
    """Return Phi's frequency factors for a long and for a short context; nothing for other scalings."""
    given = config.rope_parameters
    if given.get("rope_type") != "longrope":
        return {}
    return {
        f"rope_factors_{name}.weight": torch.tensor(given[f"{name}_factor"], dtype=torch.float32)
        for name in ("long", "short")
    }


def windowed(config: Config) -> int | None:
    """Return the attention window where every layer has one that is shorter than the context, else None."""
    window = getattr(config, "sliding_window", None)
    return window if window is not None and window < config.max_position_embeddings else None


def context_of_window(config: Config) -> dict[str, Value]:
    """Return the context within which a window in every layer hides nothing."""
    window = windowed(config)
    return {} if window is None else {"context_length": window}


def window_notes(config: Config) -> tuple[str, ...]:
    """Say that a file's context is the model's attention window, or its context before a scaling."""
    window, given = windowed(config), getattr(config, "rope_parameters", None) or {}
    if given.get("rope_type") == "longrope":
        window = int(given["original_max_position_embeddings"])
    return (
        ()
        if window is None
        else (f"the context is {window:,} tokens, which llama.cpp computes as this model does",)
    )
