"""How far llama.cpp may be from PyTorch: no farther than its own rounding explains, measured on the model itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgetune.core.quantised import BLOCK, GRIDS
from edgetune.export.plan import ExportPlan

Example = tuple[Sequence[int], int]
"""Token ids and the first position whose log-probability is compared."""

FACTOR_MEAN, FACTOR_LARGEST = 3.0, 4.0
"""How many times the measured rounding is allowed: it falls on the same weights, but not in the same places."""

WIDE = 256
"""Inputs that share a scale where the matrix is in blocks of as many weights."""

LEAST = 2e-4
"""Nats; what summing in another order costs."""


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


@dataclass(frozen=True, slots=True)
class Measured:
    """A model's log-probabilities, and how far llama.cpp's two ways to compute them may be from these.

    Args:
        values: float64 [positions], without rounding.
        exact: with keys, values and their sums in fp32.
        usual: as llama.cpp runs by default, with keys and values in fp16.
    """

    values: torch.Tensor
    exact: Tolerance
    usual: Tolerance


def measure(model: PreTrainedModel, plan: ExportPlan, examples: Sequence[Example]) -> Measured:
    """Measure what llama.cpp's rounding costs this model on these examples, and allow a few times that.

        mean <= 3 mean|noise| + c,   maximum <= 4 max|noise| + 20 c,   perplexity <= mean|noise| + c

    In a matrix product llama.cpp rounds the activations as well: to int8 for a quantised matrix, to fp16 for one in
    fp16; GELU comes from a table of fp16 numbers. By default it also keeps keys and values in fp16. The same rounding
    in PyTorch moves the log-probabilities as far: on the pretrained stories260K and Dolly's records, which it finds
    absurd, by 0.0014 nats on average (fp16 matrices; llama.cpp 0.0014) and by 0.0028 (fp16 keys and values; llama.cpp
    0.0032). A fixed bound would be too wide on text a model expects, where a doubled rotary base costs 0.009, or too
    narrow there.

    Args:
        model: the PyTorch model with the weights of the file, dequantised; in any dtype, computed in float32.
        plan: the types of the file's tensors.
        examples: what is compared.

    Returns:
        Log-probabilities and bounds.
    Cost: three forward passes an example.
    """
    types = {one.parameter: one.type for one in plan.tensors if one.parameter is not None}
    rounding = {name: ROUNDING[kind] for name, kind in types.items()}
    # Queries and the sums of values are fp16 by default, too: the inputs of products stand for them.
    coarser = {name: ROUNDING["F16" if kind == "F32" else kind] for name, kind in types.items()}
    values = log_probabilities(model, examples)
    exact = log_probabilities(model, examples, rounding=rounding)
    usual = log_probabilities(model, examples, rounding=coarser, half_cache=True)
    return Measured(values, _allow(exact - values), _allow(usual - values))


def _allow(noise: torch.Tensor) -> Tolerance:
    mean, largest = float(noise.abs().mean()), float(noise.abs().max())
    return Tolerance(FACTOR_MEAN * mean + LEAST, FACTOR_LARGEST * largest + 20 * LEAST, mean + LEAST)


def log_probabilities(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    rounding: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    half_cache: bool = False,
) -> torch.Tensor:
    """Return log p(ids[t] | ids[<t]) of every example from its start on, computed in float32.

    Args:
        model: a causal language model, in any dtype and mode; left as it is.
        examples: ids and starts.
        rounding: parameter name of a matrix to what happens to its inputs.
        half_cache: round keys and values to fp16.

    Returns:
        float64 [positions], the examples one after another.
    """
    exact: Any = model if model.dtype == torch.float32 else copy.deepcopy(model).float()  # type: ignore[no-untyped-call]
    training = exact.training
    exact.eval()
    found: list[float] = []
    try:
        with torch.no_grad(), _rounded_inputs(exact, rounding or {}):
            for ids, start in examples:
                tokens = torch.tensor(ids, device=model.device)
                cache = _HalfCache(config=exact.config) if half_cache else None
                logits = exact(input_ids=tokens[None], use_cache=half_cache, past_key_values=cache).logits
                chosen = logits[0, start - 1 : -1].float().log_softmax(dim=-1)
                found.extend(chosen.gather(1, tokens[start:, None])[:, 0].tolist())
    finally:
        exact.train(training)
    return torch.tensor(found, dtype=torch.float64)


class _HalfCache(DynamicCache):
    """A cache that hands keys and values back as fp16 would hold them."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *others: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = super().update(
            _half(key_states), _half(value_states), *others, **options
        )
        return found


def _half(values: torch.Tensor) -> torch.Tensor:
    return values.half().to(values.dtype)


def _int8(values: torch.Tensor) -> torch.Tensor:
    """Round to int8 with one fp16 scale a block of 32, as ggml's `quantize_row_q8_0` and `q8_1` do."""
    if values.shape[-1] % BLOCK:
        return values
    codes, scales = _codes(values, BLOCK)
    return (codes * scales.half().float()).reshape(values.shape)


def _int8_wide(values: torch.Tensor) -> torch.Tensor:
    """Round to int8 with one float32 scale a block of 256, as ggml's `quantize_row_q8_K` does."""
    codes, scales = _codes(values, WIDE)
    return (codes * scales).reshape(values.shape)


def _codes(values: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = values.reshape(*values.shape[:-1], -1, block)
    scales = (blocks.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=1e-30)
    return (blocks / scales).round(), scales


def _table_gelu(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Return any kind of GELU as ggml has it, whatever the file's types: tanh, from a table of fp16 numbers."""
    return _half(nn.functional.gelu(_half(inputs[0]), approximate="tanh"))


def _as_it_is(values: torch.Tensor) -> torch.Tensor:
    return values


ROUNDING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F32": _as_it_is,
    "F16": _half,
    **{name: _int8_wide if grid.block == WIDE else _int8 for name, grid in GRIDS.items()},
}
"""ggml type of a matrix to what llama.cpp's product does to its inputs."""


@contextmanager
def _rounded_inputs(
    model: nn.Module, rounding: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
) -> Iterator[None]:
    """Round what enters each matrix product, and GELU; a tied head goes by the name of the embeddings."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hooks: list[Any] = []
    for module in model.modules():
        if rounding and "gelu" in type(module).__name__.lower():
            hooks.append(module.register_forward_hook(_table_gelu))
        rule = rounding.get(names[id(module.weight)]) if isinstance(module, (nn.Linear, Conv1D)) else None
        if rule is not None:
            hooks.append(module.register_forward_pre_hook(_before(rule)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _before(
    rule: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, inputs: (rule(inputs[0]), *inputs[1:])
