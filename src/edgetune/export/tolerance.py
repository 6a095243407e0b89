"""How far llama.cpp may be from PyTorch: no farther than its own rounding of activations explains."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgetune.core.quantised import BLOCK

Example = tuple[Sequence[int], int]
"""Token ids and the first position whose log-probability is compared."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far llama.cpp may be from PyTorch with the same weights.

    Args:
        mean: largest mean |difference| of the log-probabilities, nats.
        maximum: largest single |difference|, nats.
        perplexity: largest relative difference of the perplexities.
    """

    mean: float
    maximum: float
    perplexity: float


FLOAT = Tolerance(mean=0.005, maximum=0.05, perplexity=0.002)
"""For F32 and F16 files. Measured on four models: mean 0.0001 to 0.002, largest 0.012; F32 is not exact because
llama.cpp keeps keys and values in fp16."""


def quantised_tolerance(
    model: PreTrainedModel, examples: Sequence[Example], exact: torch.Tensor
) -> Tolerance:
    """Measure what rounding the activations costs this model on these examples, and allow a few times that.

        mean <= 3 noise + 0.002,   maximum <= 4 largest + 0.05,   perplexity <= noise + 0.002

    In a quantised matrix product llama.cpp rounds the activations to int8 as well. The same rounding in PyTorch
    moves the log-probabilities as far, though not in the same places: 0.011 against 0.012 on average on text the
    embedded model writes, 0.032 against 0.032 on text it finds absurd. A fixed bound would be too wide
    for the first or too narrow for the second; a doubled rotary base (mean 0.009, noise 0.001) needs a tight one.

    Args:
        model: the PyTorch model with the dequantised weights.
        examples: what is compared.
        exact: float64 [positions], its log-probabilities without rounding.

    Returns:
        The bounds.
    Cost: one forward pass an example.
    """
    noise = (log_probabilities(model, examples, rounded=True) - exact).abs()
    mean, largest = float(noise.mean()), float(noise.max())
    return Tolerance(mean=3 * mean + 0.002, maximum=4 * largest + 0.05, perplexity=mean + 0.002)


def log_probabilities(
    model: PreTrainedModel, examples: Sequence[Example], *, rounded: bool = False
) -> torch.Tensor:
    """Return log p(ids[t] | ids[<t]) of every example from its start on, computed in float32.

    Args:
        model: a causal language model, in any dtype and mode; left as it is.
        examples: ids and starts.
        rounded: round what enters each matrix product to int8, as llama.cpp does for quantised matrices.

    Returns:
        float64 [positions], the examples one after another.
    """
    exact: nn.Module = model if model.dtype == torch.float32 else copy.deepcopy(model)
    exact = exact.to(torch.float32)
    training = exact.training
    exact.eval()
    found: list[float] = []
    try:
        with torch.no_grad(), _rounded_activations(exact if rounded else nn.Identity()):
            for ids, start in examples:
                tokens = torch.tensor(ids, device=model.device)
                logits = exact(input_ids=tokens[None], use_cache=False).logits[0, start - 1 : -1].float()
                picked = logits.log_softmax(dim=-1).gather(1, tokens[start:, None])[:, 0]
                found.extend(picked.tolist())
    finally:
        exact.train(training)
    return torch.tensor(found, dtype=torch.float64)


def _round(values: torch.Tensor) -> torch.Tensor:
    """Round to int8 with one fp16 scale a block of 32, as ggml's `quantize_row_q8_0` does."""
    if values.shape[-1] % BLOCK:
        return values
    blocks = values.reshape(*values.shape[:-1], -1, BLOCK)
    scales = (blocks.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=1e-30)
    return ((blocks / scales).round() * scales.half().float()).reshape(values.shape)


def _before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_round(inputs[0]), *inputs[1:])


@contextmanager
def _rounded_activations(model: nn.Module) -> Iterator[None]:
    products = [module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))]
    hooks = [module.register_forward_pre_hook(_before) for module in products]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
