"""Open a GGUF file as a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from edgetune.core.blank import blank
from edgetune.core.errors import ModelError
from edgetune.core.widths import widths_of
from edgetune.models.by_layer import by_layer
from edgetune.models.gguf.weights import GgufWeights
from edgetune.models.tokenizer import first_line


def gguf_model(weights: GgufWeights, dtype: torch.dtype | None, *, matrices: bool = True) -> PreTrainedModel:
    """Return the model of a file, its weights dequantised exactly.

    Args:
        weights: the file.
        dtype: type of the parameters; None for one that loses nothing.
        matrices: without, matrices are blank (`core.blank`): somebody else reads them where they are stored.

    Raises:
        ModelError: if tensors are missing, too many, or of another shape than the metadata says, or cannot be read.
    Cost: the model in memory once, and one tensor; its vectors alone without the matrices.
    """
    path, dtype = weights.file.path, dtype or weights.dtype
    config, kind = weights.config, _kind(weights)
    outline_of(weights)
    values = {
        name: weights[name].to(dtype) if matrices or len(shape) < 2 else blank(shape, dtype)
        for name, shape in weights.shapes.items()
    }
    try:
        model: PreTrainedModel = kind.from_pretrained(None, config=config, state_dict=values, dtype=dtype)
    except Exception as error:
        raise ModelError(f"cannot load this model: {first_line(error)}", where=path) from error
    model.config.name_or_path = str(path)
    return model


def outline_of(weights: GgufWeights) -> PreTrainedModel:
    """Return the model of a file without values, after checking that the file holds what it asks for.

    Raises:
        ModelError: if tensors are missing, too many, or of another shape than the metadata says.
    """
    path = weights.file.path
    try:
        with torch.device("meta"):
            outline: PreTrainedModel = _kind(weights)(weights.config)
    except ModelError:
        raise
    except Exception as error:  # the library raises many unrelated types
        raise ModelError(f"no model has this configuration: {first_line(error)}", where=path) from error
    _compare(_shapes(outline), weights.shapes, path)
    return outline


def _kind(weights: GgufWeights) -> Any:
    """Return the class of a file's model; layers may differ in width."""
    return weights.family.model if widths_of(weights.config) is None else by_layer(weights.config)


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter; a tied head is none of its own."""
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _compare(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], path: Path) -> None:
    """Refuse other tensors than the configuration asks for, before anything is made of them.

    Raises:
        ModelError: naming one.
    """
    for name in sorted(expected.keys() ^ found.keys()):
        lacks = name in expected
        raise ModelError(
            f"the file {'lacks' if lacks else 'holds'} {name}, which its metadata "
            f"{'asks for' if lacks else 'has no place for'}",
            where=path,
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ModelError(f"{name} is {found[name]}, the metadata says {shape}", where=path)
