"""What calibration text says of a model's weights: gradients, Fisher information, moments of what readers read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.hessian import Hessian
from edgetune.compress.structured.groups import Groups, matrix
from edgetune.core.batch import Batch
from edgetune.core.errors import DataError, ModelError
from edgetune.core.fused_loss import fused_response_loss


@dataclass(frozen=True, slots=True)
class Hears:
    """What a score needs to know.

    Args:
        gradient: dL/dw of the mean loss over the whole text.
        fisher: the mean square of the gradients of single records.
        moments: the second moments of what the readers of groups read.
    """

    gradient: bool = False
    fisher: bool = False
    moments: bool = False


@dataclass(slots=True)
class Evidence:
    """What was measured in one block, by name of the layer inside it.

    Args:
        layer: number of the block.
        gradients, fisher: float32 [outputs, inputs].
        moments: float32 [inputs, inputs] of a reader.
    """

    layer: int
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    fisher: dict[str, torch.Tensor] = field(default_factory=dict)
    moments: dict[str, torch.Tensor] = field(default_factory=dict)


def gather(
    model: PreTrainedModel, kinds: Sequence[Sequence[Groups]], calibration: Sequence[Batch], hears: Hears
) -> list[Evidence]:
    """Measure what a score needs, in every block.

    Args:
        model: left as it is.
        kinds: the groups of every block.
        calibration: batches; the loss is that of their labels.
        hears: what is needed.

    Returns:
        Evidence by block; empty dictionaries for what was not asked for.

    Raises:
        DataError: if text is needed and there is none.
        ModelError: if a gradient or an activation is not finite.
    Cost: one forward pass for moments; one with back-propagation over the text for the gradient, and one a record
        for Fisher information. Memory: one float32 copy of the groups' weights each.
    """
    found = [Evidence(layer) for layer in range(len(kinds))]
    needed = hears.gradient or hears.fisher or hears.moments
    if needed and not sum(batch.response_tokens for batch in calibration):
        raise DataError("this importance needs calibration text", hint="give at least one batch")
    if hears.gradient:
        _add_gradients(model, kinds, calibration, found)
    if hears.fisher:
        _add_fisher(model, kinds, calibration, found)
    if hears.moments:
        _add_moments(model, kinds, calibration, found)
    return found


def _layers(model: PreTrainedModel, kinds: Sequence[Sequence[Groups]]) -> list[dict[str, nn.Module]]:
    """Return the layers that groups have members in, by name, for every block."""
    return [
        {member.path: block.get_submodule(member.path) for groups in own for member in groups.members}
        for block, own in zip(decoder_blocks(model), kinds, strict=True)
    ]


@contextmanager
def _wanting(model: nn.Module, layers: Sequence[Mapping[str, nn.Module]]) -> Iterator[None]:
    """Let the weights of these layers alone have gradients, without a trace afterwards."""
    before = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    for weight, _, _ in before:
        weight.requires_grad_(False)
        weight.grad = None
    for one in layers:
        for layer in one.values():
            layer.weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, wanted, gradient in before:
            weight.grad = gradient
            weight.requires_grad_(wanted)


def _taken(layer: nn.Module, path: str) -> torch.Tensor:
    """Return a layer's gradient as [outputs, inputs] and forget it."""
    weight: Any = layer.weight
    if weight.grad is None:
        return torch.zeros_like(matrix(layer), dtype=torch.float32)
    gradient: torch.Tensor = weight.grad.float()
    weight.grad = None
    if not bool(torch.isfinite(gradient).all()):
        raise ModelError(
            "a gradient is not finite, so nothing can be said of its weights",
            where=path,
            hint="load the model in float32 and check the calibration text, or use --importance activation",
        )
    return gradient if matrix(layer) is weight else gradient.T


def _add_gradients(
    model: PreTrainedModel,
    kinds: Sequence[Sequence[Groups]],
    calibration: Sequence[Batch],
    found: Sequence[Evidence],
) -> None:
    layers, total = _layers(model, kinds), sum(batch.response_tokens for batch in calibration)
    with torch.enable_grad(), _wanting(model, layers):
        for batch in calibration:
            share = batch.response_tokens / total
            (fused_response_loss(model, batch.to(model.device)) * share).backward()  # type: ignore[no-untyped-call]
        for own, evidence in zip(layers, found, strict=True):
            evidence.gradients = {path: _taken(layer, path) for path, layer in own.items()}


def _add_fisher(
    model: PreTrainedModel,
    kinds: Sequence[Sequence[Groups]],
    calibration: Sequence[Batch],
    found: Sequence[Evidence],
) -> None:
    layers, singles = _layers(model, kinds), [one for batch in calibration for one in batch.split(1)]
    records = [one for one in singles if one.response_tokens]
    with torch.enable_grad(), _wanting(model, layers):
        for record in records:
            fused_response_loss(model, record.to(model.device)).backward()  # type: ignore[no-untyped-call]
            for own, evidence in zip(layers, found, strict=True):
                for path, layer in own.items():
                    square = _taken(layer, path).square() / len(records)
                    evidence.fisher[path] = (
                        evidence.fisher[path] + square if path in evidence.fisher else square
                    )


def _add_moments(
    model: PreTrainedModel,
    kinds: Sequence[Sequence[Groups]],
    calibration: Sequence[Batch],
    found: Sequence[Evidence],
) -> None:
    moments: dict[nn.Module, Hessian] = {}
    real: list[torch.Tensor] = []

    def read(layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        flat = arguments[0].reshape(-1, arguments[0].shape[-1])
        moments[layer].add(flat[real[0]])

    handles = []
    for block, own in zip(decoder_blocks(model), kinds, strict=True):
        for groups in own:
            layer = block.get_submodule(groups.reader)
            moments[layer] = Hessian(matrix(layer).shape[1], model.device)
            handles.append(layer.register_forward_pre_hook(read))
    try:
        with torch.no_grad():
            for batch in calibration:
                moved = batch.to(model.device)
                real[:] = [moved.attention_mask.flatten().bool()]
                model.base_model(
                    input_ids=moved.input_ids, attention_mask=moved.attention_mask, use_cache=False
                )
    finally:
        for handle in handles:
            handle.remove()
    for block, own, evidence in zip(decoder_blocks(model), kinds, found, strict=True):
        for groups in own:
            moment = moments[block.get_submodule(groups.reader)].matrix
            if not math.isfinite(float(moment.diagonal().sum())):
                hint = "load the model in float32 and check the calibration text"
                raise ModelError("calibration inputs hold NaN or infinity", where=groups.reader, hint=hint)
            evidence.moments[groups.reader] = moment
