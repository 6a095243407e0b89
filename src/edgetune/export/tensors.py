"""Every tensor of a GGUF file, one at a time: names mapped, rows ordered, codes packed without loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.core.gguf_read import unit_name
from edgetune.core.packing import pack
from edgetune.core.quantised import GRIDS, BlockGrid, QuantisedMatrix
from edgetune.export.architectures import architecture_of
from edgetune.export.layout import Architecture

FloatType = Literal["F16", "F32"]
"""Storage type of the matrices that are not quantised."""

HEAD = "lm_head.weight"

WITH_UNITS = frozenset({"llama", "qwen3", "cohere2"})
"""GGUF architectures in which llama.cpp multiplies by every unit of a layer; in others it forgets some."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the file, as it is announced.

    Args:
        name: its GGUF name.
        parameter: the parameter it comes from, or None if it is derived from the configuration.
        type: ggml type name.
        shape: rows and columns, before packing.
    """

    name: str
    parameter: str | None
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of the file and where its values come from.

    Args:
        planned: what it is.
        load: produces the bytes as stored: float32, float16, or uint8 rows of blocks.
        weights: produces the float32 values llama.cpp will read, in its row order.
    """

    planned: PlannedTensor
    load: Callable[[], NDArray[np.generic]]
    weights: Callable[[], torch.Tensor]


def planned_tensors(
    model: PreTrainedModel, grids: Mapping[str, BlockGrid], float_type: FloatType
) -> tuple[PlannedTensor, ...]:
    """Return the tensors the file of a model will have, in the file's order; only shapes are read.

    A head tied to the embeddings is stored once, unless `grids` holds one of its own for it.

    Args:
        model: the model in `transformers` form.
        grids: parameter name to its grid, for the matrices that are going to be quantised.
        float_type: type of the other matrices; vectors are always F32.

    Raises:
        ModelError: if a name, shape or family does not fit.
    """
    architecture = architecture_of(model.config)
    tied = bool(model.config.tie_word_embeddings) and HEAD not in grids
    found = []
    for name, tensor in _parameters(model, grids).items():
        if tied and name == HEAD and not architecture.own_head:
            continue
        # A tied head that has to be stored all the same is the embedding once more.
        parameter = _embedding(model) if tied and name == HEAD else name
        rows = _turned(architecture, parameter, tensor)
        kind = grids[parameter].name if parameter in grids else float_type
        if parameter not in grids and (rows.dim() == 1 or architecture.is_exact(parameter)):
            kind = "F32"
        own = architecture.gguf_name(name)
        found.append(PlannedTensor(own, parameter, kind, tuple(rows.shape)))
        # llama.cpp reads no unit of the embeddings, nor of a head that is the embeddings once more.
        if parameter in grids and grids[parameter].has_unit and parameter != _embedding(model):
            if architecture.name not in WITH_UNITS:
                raise ModelError(
                    f"llama.cpp computes {architecture.name} in {kind} without the units of its matrices",
                    where=name,
                    hint="choose another grid, MXFP4 for example",
                )
            found.append(PlannedTensor(unit_name(own), None, "F32", (1,)))
    for name, tensor in architecture.tensors(model.config).items():
        found.append(PlannedTensor(name, None, "F32", tuple(tensor.shape)))
    return tuple(found)


def stored_tensors(
    model: PreTrainedModel, planned: tuple[PlannedTensor, ...], quantised: Mapping[str, QuantisedMatrix]
) -> Iterator[Stored]:
    """Yield the planned tensors with their values; nothing is copied before `load` is called.

    Args:
        model: the model that was planned for; parameters named in `quantised` are not read from it.
        planned: as `planned_tensors` returned them.
        quantised: parameter name to its matrix, [outputs, inputs] even where the model stores the transpose.

    Raises:
        ModelError: if the model or a matrix is not what was planned for.
    """
    architecture = architecture_of(model.config)
    parameters = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    derived = {
        unit_name(architecture.gguf_name(name)): torch.tensor([matrix.unit])
        for name, matrix in quantised.items()
        if matrix.grid.has_unit
    } | dict(architecture.tensors(model.config))
    wanted = {one.parameter for one in planned if one.parameter is not None and one.type in GRIDS}
    if wanted != set(quantised):
        odd = sorted(wanted ^ set(quantised))[0]
        raise ModelError("what was compressed is not what was planned", where=odd)
    _check_units(architecture, planned, quantised)
    for one in planned:
        if one.parameter is None:
            tensor = derived[one.name]
            yield Stored(one, tensor.numpy, tensor.clone)
        elif one.parameter in quantised:
            yield _packed(architecture, model, one, one.parameter, quantised[one.parameter])
        else:
            yield _floating(architecture, model, one, one.parameter, parameters[one.parameter])


def float_tensors(model: PreTrainedModel, planned: tuple[PlannedTensor, ...]) -> Iterator[Stored]:
    """Yield the planned tensors with the values the model itself has, whatever type they are stored in."""
    units = {unit_name(one.name) for one in planned if one.type in GRIDS}
    plain = tuple(replace(one, type="F32") for one in planned if one.name not in units)
    return stored_tensors(model, plain, {})


def hold_as_stored(model: PreTrainedModel, planned: tuple[PlannedTensor, ...]) -> None:
    """Give a model the weights its file holds, where the file rounds them to fp16; quantised ones it has already.

    Args:
        model: its parameters get new storage; what they pointed to is not written to.
        planned: the tensors of the file.
    """
    parameters: dict[str, Any] = dict(model.named_parameters())
    for one in planned:
        if one.type == "F16" and one.parameter is not None:
            weight = parameters[one.parameter]
            weight.data = weight.data.half().to(weight.dtype)


def _check_units(
    architecture: Architecture, planned: tuple[PlannedTensor, ...], quantised: Mapping[str, QuantisedMatrix]
) -> None:
    """Refuse a unit that the file has no place for."""
    places = {one.name for one in planned}
    for name, matrix in quantised.items():
        if matrix.unit != 1 and unit_name(architecture.gguf_name(name)) not in places:
            raise ModelError(
                f"a matrix in {matrix.grid.name} has the unit {matrix.unit}, which the file cannot hold",
                where=name,
                hint="choose another grid for it",
            )


def _parameters(model: PreTrainedModel, grids: Mapping[str, BlockGrid]) -> dict[str, torch.Tensor]:
    parameters = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    unknown = sorted(set(grids) - set(parameters))
    if unknown:
        raise ModelError("the model has no parameter of this name", where=unknown[0])
    return parameters


def _embedding(model: PreTrainedModel) -> str:
    weight = model.get_input_embeddings().weight
    return next(name for name, parameter in model.named_parameters() if parameter is weight)


def _turned(architecture: Architecture, parameter: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as [outputs, inputs]."""
    turned = architecture.local_name(parameter)[1] in architecture.transposed and tensor.dim() == 2
    return tensor.t() if turned else tensor


def _order(
    architecture: Architecture, model: PreTrainedModel, parameter: str, rows: int
) -> torch.Tensor | None:
    rule = architecture.rows.get(architecture.local_name(parameter)[1])
    return None if rule is None else rule(model.config, rows)


def _packed(
    architecture: Architecture,
    model: PreTrainedModel,
    planned: PlannedTensor,
    parameter: str,
    matrix: QuantisedMatrix,
) -> Stored:
    shape = tuple(matrix.codes.shape)
    if (shape, matrix.grid.name) != (planned.shape, planned.type):
        raise ModelError(
            f"the codes are {shape} {matrix.grid.name}, {planned.shape} {planned.type} was planned",
            where=parameter,
        )
    order = _order(architecture, model, parameter, shape[0])

    def load() -> NDArray[np.generic]:
        rows = pack(matrix)
        return rows if order is None else rows[order.numpy()]

    def weights() -> torch.Tensor:
        values = matrix.dequantise().cpu()
        return values if order is None else values[order]

    return Stored(planned, load, weights)


def _floating(
    architecture: Architecture,
    model: PreTrainedModel,
    planned: PlannedTensor,
    parameter: str,
    tensor: torch.Tensor,
) -> Stored:
    turned = _turned(architecture, parameter, tensor)
    if tuple(turned.shape) != planned.shape:
        raise ModelError(
            f"the weights are {tuple(turned.shape)}, {planned.shape} was planned", where=parameter
        )
    order = _order(architecture, model, parameter, planned.shape[0])
    offset = architecture.norm_offset if tensor.dim() == 1 and parameter.endswith("norm.weight") else 0.0

    def weights() -> torch.Tensor:
        values = turned.to("cpu", torch.float32)
        return (values if order is None else values[order]) + offset

    def load() -> NDArray[np.generic]:
        values = weights()
        stored = values if planned.type == "F32" else values.half()
        if not bool(torch.isfinite(stored).all()):
            raise ModelError("a weight is not finite in the file's type", where=parameter)
        return stored.contiguous().numpy()

    return Stored(planned, load, weights)
