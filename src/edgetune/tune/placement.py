"""Adapters placed on a model by peft, with initial values that a seed alone fixes."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgetune.core.batch import response_loss
from edgetune.core.blank import blank_like
from edgetune.core.errors import MissingExtraError, ModelError
from edgetune.core.exclusive import LIBRARIES
from edgetune.tune.initial import normal, uniform
from edgetune.tune.walk import probe_batch

REFUSING = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
REFUSED = frozenset({"out_proj", "conv1d"})
"""Names of layers that peft adapts in no model of these types."""
RANDOM = frozenset({"normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_"})
"""How modules fill their parameters when they are made."""


def place_lora(model: PreTrainedModel, *, rank: int, alpha: float, seed: int, freeze_a: bool = False) -> Any:
    """Put low-rank adapters on all linear layers but the head, and those that an adapter could not change.

        y = W x + (alpha / rank) B A x,   B = 0 at the start

    Some state-space models read the matrix of a linear layer instead of calling it, past any adapter.

    Args:
        model: peft replaces its target modules in place, their weights stay untouched.
        rank: r, at least 1.
        alpha: scaling numerator, > 0.
        seed: seed of A's initial values: even between -1 / sqrt(inputs) and 1 / sqrt(inputs), as peft's own.
        freeze_a: A stays as it is, and only B is tuned.

    Returns:
        The peft model in evaluation mode; its tuned tensors require gradients, nothing else does.

    Raises:
        MissingExtraError: if peft is not installed.
        ModelError: if peft finds no linear layer to adapt.
    Cost: r (inputs + outputs) weights a layer.
    Source: Hu et al. 2021, arXiv:2106.09685; placement by peft; initial values by `tune.initial`.
    """
    with peft_for("LoRA") as peft:
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules="all-linear",
            exclude_modules=_left_out(model) or None,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        placed = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, weight in trainable(placed).items():
            if ".lora_A." in name:
                weight.copy_(uniform(seed, name, weight.shape, 1 / math.sqrt(weight.shape[1])))
                weight.requires_grad_(not freeze_a)
            else:
                weight.zero_()
    return placed


def place_prefix(model: PreTrainedModel, *, tokens: int, scale: float, seed: int) -> Any:
    """Put trainable keys and values before the first token of every attention layer.

        attention over [P_k; K], [P_v; V],   P ~ N(0, scale^2) at the start

    Args:
        model: stays untouched.
        tokens: length of the prefix, at least 1.
        scale: standard deviation of the initial values, at least 0.
        seed: seed of the initial values.

    Returns:
        The peft model in evaluation mode; the prefix requires gradients, nothing else does. It goes on from a key-value
        cache like any causal language model.

    Raises:
        MissingExtraError: if peft is not installed.
        ModelError: if peft cannot give this model a prefix.
    Cost: 2 tokens x width weights a layer (fewer with grouped queries); `tokens` more positions a pass.
    Source: Li and Liang 2021, arXiv:2101.00190, without re-parametrisation, as princeton-nlp/MeZO; placed by peft.
    """
    with peft_for("prefix tuning") as peft:
        config = peft.PrefixTuningConfig(num_virtual_tokens=tokens, task_type="CAUSAL_LM")
        placed = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, weight in trainable(placed).items():
            weight.copy_(normal(seed, name, weight.shape, scale))
    _go_on_from_a_cache(placed, tokens)
    return placed


def _left_out(model: PreTrainedModel) -> list[str]:
    """Return the linear layers that are read, but not called, and those that peft refuses."""
    refused = REFUSED if getattr(model.config, "model_type", None) in REFUSING else frozenset()
    linear = {
        name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)
    }
    found = [name for name in linear if name.rsplit(".", 1)[-1] in refused]
    batch = probe_batch(model)
    if batch is None:
        return found
    called = set[str]()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in linear.items()
    ]
    with torch.no_grad():
        try:
            response_loss(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        for name, module in linear.items():
            if name in called:
                continue  # an expert that no token was sent to is not called either
            kept, module.weight.data = module.weight.data, blank_like(module.weight.data)
            try:
                if math.isnan(float(response_loss(model, batch))):
                    found.append(name)
            finally:
                module.weight.data = kept
    return found


@contextmanager
def peft_for(purpose: str) -> Iterator[Any]:
    """Lend peft, one thread at a time; its errors become ours, and modules that it makes are not filled at random.

    Raises:
        MissingExtraError: if it is not installed.
        ModelError: if it cannot do what it is asked for with this model.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "peft", purpose) from error
    with LIBRARIES, warnings.catch_warnings(), _NothingDrawn():
        warnings.simplefilter("ignore")  # peft corrects its own settings for GPT-2, and says so
        try:
            yield peft
        except (ValueError, AttributeError, TypeError) as error:
            raise ModelError(f"peft cannot adapt this model: {error}") from error


class _NothingDrawn(TorchFunctionMode):
    """While entered, this thread fills no tensor at random: torch's generator is everybody's."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _go_on_from_a_cache(placed: Any, tokens: int) -> None:
    """Let a prefix model go on from the cache it returned, in which peft's own forward puts the bare prefix instead."""
    positioned = "position_ids" in inspect.signature(placed.get_base_model().forward).parameters

    def forward(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past_key_values: Any = None,
        position_ids: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        if positioned and position_ids is not None:
            options["position_ids"] = position_ids + tokens
        prefix = attention_mask.new_ones(len(attention_mask), tokens)
        return placed.get_base_model()(
            input_ids=input_ids,
            attention_mask=torch.cat([prefix, attention_mask], dim=1),
            past_key_values=placed.get_prompt(len(input_ids)) if past_key_values is None else past_key_values,
            **options,
        )

    placed.forward = forward


def remove_adapter(placed: Any) -> None:
    """Take an adapter off its model, whose weights stay as they were; nothing is merged, not even zeros."""
    model = placed.get_base_model()
    if hasattr(placed.base_model, "unload"):
        model = placed.unload()
    if hasattr(model, "peft_config"):
        del model.peft_config  # else peft takes the next adapter for a second one


def trainable(placed: Any) -> dict[str, torch.nn.Parameter]:
    """Return an adapter's tensors by name."""
    return {name: weight for name, weight in placed.named_parameters() if weight.requires_grad}


def configuration(placed: Any) -> dict[str, Any]:
    """Return the peft configuration as plain JSON values, the same wherever the base lies: a digest names it."""
    config = cast("dict[str, Any]", placed.peft_config["default"].to_dict())
    config["base_model_name_or_path"] = None
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
