"""Layers that stand for compressed ones while a model is traced for another runtime, and go again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.core.quantised import QuantisedMatrix

SCALED = "embed_scale"
"""Buffer of transformers' embeddings that multiply their rows; that this is all they do, the comparison shows."""

StandIn = Callable[[nn.Module, QuantisedMatrix], nn.Module | None]
"""Makes what stands for a layer from the layer and its matrix; None where it stays as it is."""


def layers_of(model: PreTrainedModel, quantised: Mapping[str, QuantisedMatrix]) -> dict[str, str]:
    """Return the layers whose weights are compressed: module name to parameter name; several may share a matrix."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        name: names.get(id(getattr(module, "weight", None)))
        for name, module in model.named_modules(remove_duplicate=False)
    }
    return {module: name for module, name in found.items() if name is not None and name in quantised}


def factor_of(embedding: nn.Embedding) -> tuple[bool, torch.Tensor | None]:
    """Say whether it is known what an embedding does with its rows, and return what it multiplies them by, if any."""
    factor: Any = getattr(embedding, SCALED, None)
    return type(embedding) is nn.Embedding or isinstance(factor, torch.Tensor), factor


@contextmanager
def standing_in(
    model: PreTrainedModel, quantised: Mapping[str, QuantisedMatrix], make: StandIn
) -> Iterator[None]:
    """Let other layers stand in a model within a block; afterwards it is as before.

    Args:
        model: its layers keep their biases.
        quantised: parameter name to matrix.
        make: called once a layer.
    """
    whose, place = layers_of(model, quantised), next(model.parameters()).device
    layers = {module: model.get_submodule(module) for module in whose}
    try:
        for name, module in layers.items():
            other = make(module, quantised[whose[name]])
            if other is not None:
                model.set_submodule(name, other.to(place))
        yield
    finally:
        for name, module in layers.items():
            model.set_submodule(name, module)
