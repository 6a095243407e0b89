"""Every tensor of a GGUF file, one at a time: names mapped, rows ordered, codes packed without loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.core.quantised import BLOCK, QuantisedMatrix
from edgetune.export.architectures import architecture_of
from edgetune.export.layout import Architecture, interleaved_rows

FloatType = Literal["F16", "F32"]
"""Storage type of the matrices that are not quantised."""

HEAD = "lm_head.weight"


def _pack_q4_0(blocks: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack codes: byte j of a block holds weight j in its low half and weight j + 16 in its high half."""
    shifted = (blocks + 8).astype(np.uint8)
    packed: NDArray[np.uint8] = shifted[..., :16] | (shifted[..., 16:] << np.uint8(4))
    return packed


def _pack_q8_0(blocks: NDArray[np.int8]) -> NDArray[np.uint8]:
    return blocks.view(np.uint8)


PACKERS: dict[str, Callable[[NDArray[np.int8]], NDArray[np.uint8]]] = {"Q4_0": _pack_q4_0, "Q8_0": _pack_q8_0}


def pack(matrix: QuantisedMatrix) -> NDArray[np.uint8]:
    """Return the rows of a matrix as ggml blocks: the fp16 scale, then the codes.

    Args:
        matrix: codes int8 [rows, columns] and float16 scales [rows, columns / 32], of any sign.

    Returns:
        uint8 [rows, columns / 32 * block bytes]; decoding it gives `matrix.dequantise()` bit for bit.

    Raises:
        ModelError: if the grid has no packer, a code lies outside it or a scale is not finite.
    Source: ggml-common.h, `block_q4_0` and `block_q8_0`.
    """
    grid, codes, scales = matrix.grid, matrix.codes.cpu(), matrix.scales.cpu()
    if grid.name not in PACKERS:
        raise ModelError(f"no packer for {grid.name}", hint=f"packed losslessly: {', '.join(PACKERS)}")
    rows, columns = codes.shape
    if columns % BLOCK or scales.shape != (rows, columns // BLOCK):
        raise ModelError(
            f"codes {tuple(codes.shape)} and scales {tuple(scales.shape)} do not form blocks of 32"
        )
    if codes.numel() and (int(codes.min()) < grid.low or int(codes.max()) > grid.high):
        raise ModelError(f"a code lies outside the grid {grid.name}")
    if not bool(torch.isfinite(scales).all()):
        raise ModelError("a scale is not finite")
    blocks = np.ascontiguousarray(codes.numpy()).reshape(rows, columns // BLOCK, BLOCK)
    heads = scales.numpy().astype("<f2").view(np.uint8).reshape(rows, columns // BLOCK, 2)
    return np.concatenate([heads, PACKERS[grid.name](blocks)], axis=-1).reshape(rows, -1)


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of the file.

    Args:
        name: its GGUF name.
        parameter: the parameter it comes from, or None if it is derived from the configuration.
        type: ggml type name.
        shape: rows and columns, before packing.
        load: produces the bytes as stored: float32, float16, or uint8 rows of blocks.
        weights: produces the float32 values llama.cpp will read, in its row order.
    """

    name: str
    parameter: str | None
    type: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[np.generic]]
    weights: Callable[[], torch.Tensor]


def plan(
    model: PreTrainedModel, quantised: Mapping[str, QuantisedMatrix], float_type: FloatType
) -> Iterator[Stored]:
    """Yield the tensors of the file of a model; nothing is copied before `load` is called.

    A head tied to the embeddings is stored once, unless `quantised` holds a matrix of its own for it.

    Args:
        model: the model in `transformers` form.
        quantised: parameter name to its matrix, [outputs, inputs] even where the model stores the transpose.
        float_type: type of the other matrices; vectors are always F32.

    Raises:
        ModelError: if a name, shape or family does not fit.
    """
    architecture = architecture_of(model.config)
    parameters = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    unknown = sorted(set(quantised) - set(parameters))
    if unknown:
        raise ModelError("the model has no parameter of this name", where=unknown[0])
    for parameter, tensor in parameters.items():
        if parameter == HEAD and model.config.tie_word_embeddings and HEAD not in quantised:
            continue
        if parameter in quantised:
            yield _packed(architecture, model, parameter, tensor, quantised[parameter])
        else:
            yield _floating(architecture, model, parameter, tensor, float_type)
    for name, tensor in architecture.tensors(model.config).items():
        yield Stored(name, None, "F32", tuple(tensor.shape), tensor.numpy, tensor.clone)


def _order(
    architecture: Architecture, model: PreTrainedModel, parameter: str, rows: int
) -> torch.Tensor | None:
    heads = architecture.rotary.get(architecture.local_name(parameter)[1])
    return None if heads is None else interleaved_rows(rows, heads(model.config))


def _packed(
    architecture: Architecture,
    model: PreTrainedModel,
    parameter: str,
    tensor: torch.Tensor,
    matrix: QuantisedMatrix,
) -> Stored:
    turned = architecture.local_name(parameter)[1] in architecture.transposed
    shape = tuple(tensor.shape[::-1] if turned else tensor.shape)
    if tuple(matrix.codes.shape) != shape:
        raise ModelError(f"the codes are {tuple(matrix.codes.shape)}, the weights {shape}", where=parameter)
    order = _order(architecture, model, parameter, shape[0])

    def load() -> NDArray[np.generic]:
        rows = pack(matrix)
        return rows if order is None else rows[order.numpy()]

    def weights() -> torch.Tensor:
        values = matrix.dequantise().cpu()
        return values if order is None else values[order]

    return Stored(architecture.gguf_name(parameter), parameter, matrix.grid.name, shape, load, weights)


def _floating(
    architecture: Architecture,
    model: PreTrainedModel,
    parameter: str,
    tensor: torch.Tensor,
    float_type: FloatType,
) -> Stored:
    local = architecture.local_name(parameter)[1]
    turned = local in architecture.transposed and tensor.dim() == 2
    shape = tuple(tensor.shape[::-1] if turned else tensor.shape)
    order = _order(architecture, model, parameter, shape[0])
    # The position table is added, not multiplied, and llama.cpp reads it as F32 only.
    exact = tensor.dim() == 1 or local.endswith("wpe")
    offset = architecture.norm_offset if tensor.dim() == 1 and parameter.endswith("norm.weight") else 0.0

    def weights() -> torch.Tensor:
        values = (tensor.t() if turned else tensor).to("cpu", torch.float32)
        return (values if order is None else values[order]) + offset

    def load() -> NDArray[np.generic]:
        values = weights()
        stored = values if exact or float_type == "F32" else values.half()
        if not bool(torch.isfinite(stored).all()):
            raise ModelError("a weight is not finite in the file's type", where=parameter, hint="use F32")
        return stored.contiguous().numpy()

    kind = "F32" if exact else float_type
    return Stored(architecture.gguf_name(parameter), parameter, kind, shape, load, weights)
