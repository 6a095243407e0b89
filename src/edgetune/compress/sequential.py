"""Compress a decoder block by block: a stage is solved on what the compressed stages before it produce."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.blocks import (
    Linear,
    decoder_blocks,
    matrices_in,
    read_matrix,
    replace_data,
    write_matrix,
)
from edgetune.compress.grid import AbsMax
from edgetune.compress.hessian import Hessian
from edgetune.compress.method import CompressionMethod
from edgetune.compress.rounding import round_to_nearest
from edgetune.compress.solve import solve_stage
from edgetune.compress.streams import Stream, capture, inputs_of, stages, twin
from edgetune.core.batch import Batch
from edgetune.core.errors import DataError
from edgetune.core.events import LayerCompressed, Listener, ignore
from edgetune.core.quantised import BLOCK, BlockGrid, QuantisedMatrix

FLOAT_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
"""GGUF names of what is left in floating point."""


@torch.no_grad()
def compress_model(
    model: PreTrainedModel,
    calibration: Sequence[torch.Tensor | Batch],
    method: CompressionMethod,
    listener: Listener = ignore,
) -> dict[str, QuantisedMatrix]:
    """Put every matrix of the decoder blocks on the method's grid, in place, and return what a file stores.

    The embedding (and the head, one entry if tied) is rounded first; then block after block, stage after
    stage ({q, k, v}, {o}, {gate, up}, {down} in Llama), each with the Hessian of its own inputs. Norms,
    biases, position tables and layers outside the blocks stay as they are.

    Args:
        model: any Hugging Face decoder; float32 if the stored weights are to equal the model's bit for bit.
            Its parameters get new storage; what they pointed to is not written to.
        calibration: int64 [batch, length] token ids, or batches whose padding the mask leaves out. May be
            empty for a method that compensates nothing; every Hessian is then the identity.
        method: what to do.
        listener: gets one `LayerCompressed` a matrix. A matrix left in float (input dimension not a multiple
            of 32, or not a linear layer) is reported with grid F32, F16 or BF16 and is not in the result. A
            layer that no calibration token reached is rounded and reported with `fallback`.

    Returns:
        parameter name to matrix, rows = outputs, on the CPU. transformers' Conv1D (GPT-2) holds its transpose.

    Raises:
        DataError: if calibration is needed and there is none, or a batch is not [batch, length].
        ModelError: if the model is no decoder, or weights or activations are not finite.
    Cost: about four forward passes over the calibration tokens, and tokens * d^2 multiply-adds and one sweep a
        stage. Memory: one hidden state per calibration token and one Hessian at a time (4 d^2 bytes, 3 times
        that while it is factorised). Aiming at the dense outputs, the dense blocks run beside: twice
        the passes, hidden states and products, and one block more.
    Source: OPTQ, section 4 (setup), with the stages of the reference code's `--true-sequential`.
    """
    blocks = decoder_blocks(model)
    if method.compensate and not calibration:
        raise DataError(
            "this method needs calibration text", where=method.name, hint="give at least one batch"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    results: dict[str, QuantisedMatrix] = {}
    training = model.training
    model.train(False)
    try:
        if method.embeddings is not None:
            results |= _round_embeddings(model, names, method.embeddings, listener)
        streams = capture(model, blocks, calibration)
        for stream in streams if method.aim_dense else ():
            stream.dense = stream.hidden
        for index, block in enumerate(blocks):
            dense = deepcopy(block) if method.aim_dense else None
            results |= _compress_block(block, dense, index, streams, names, method, listener)
            for stream in streams if index + 1 < len(blocks) else ():
                stream.hidden, was = stream.run(block, index), stream.as_it_was()
                if dense is not None and was is not None:
                    stream.dense = was.run(dense, index)
    finally:
        model.train(training)
    return results


def _compress_block(
    block: nn.Module,
    dense: nn.Module | None,
    index: int,
    streams: Sequence[Stream],
    names: dict[int, str],
    method: CompressionMethod,
    listener: Listener,
) -> dict[str, QuantisedMatrix]:
    linears, others = matrices_in(block, names)
    for name, parameter in others.items():
        _report_float(name, parameter, listener)
    shared = stages(block, linears, streams, index)
    reached = {name for stage in shared for name in stage}
    results: dict[str, QuantisedMatrix] = {}
    for stage in [*shared, *([name] for name in linears if name not in reached)]:
        matrices = {name: read_matrix(linears[name]) for name in stage}
        columns = matrices[stage[0]].shape[1]
        seen = _stage_hessian(linears[stage[0]], columns, block, dense, index, streams)
        hessian, cross = (seen.matrix, seen.cross) if seen.tokens else (None, None)
        for name, solved in solve_stage(matrices, hessian, method, listener, cross).items():
            write_matrix(linears[name], solved.weights)
            if solved.stored is not None:
                results[name] = _on_cpu(solved.stored)
    return results


def _stage_hessian(
    module: Linear,
    columns: int,
    block: nn.Module,
    dense: nn.Module | None,
    index: int,
    streams: Sequence[Stream],
) -> Hessian:
    """Return the moments of a stage's inputs, with those of the dense model where a dense block is given."""
    hessian = Hessian(columns, module.weight.device, dense=dense is not None)
    for stream in streams:
        inputs, was = inputs_of(module, block, stream, index), stream.as_it_was()
        if inputs is None:
            continue
        before = (
            inputs_of(twin(module, block, dense), dense, was, index) if dense is not None and was else None
        )
        # Tokens that the dense model sends elsewhere (another expert) have no partners: they count as unchanged.
        hessian.add(inputs, before if before is not None and len(before) == len(inputs) else None)
    return hessian


def _round_embeddings(
    model: PreTrainedModel, names: dict[int, str], grid: BlockGrid, listener: Listener
) -> dict[str, QuantisedMatrix]:
    results: dict[str, QuantisedMatrix] = {}
    holders: list[Any] = [model.get_input_embeddings(), cast(Any, model).get_output_embeddings()]
    for module in holders:
        if module is None or names[id(module.weight)] in results:
            continue
        name, parameter = names[id(module.weight)], module.weight
        if parameter.shape[1] % BLOCK:
            _report_float(name, parameter, listener)
            continue
        weights = parameter.detach().to(torch.float32)
        stored = round_to_nearest(weights, grid, AbsMax(), name=name)
        rounded = stored.dequantise()
        replace_data(parameter, rounded)
        error = float((rounded - weights).square().sum() / weights.square().sum().clamp(min=1e-30))
        listener(LayerCompressed(name, grid.name, error, error, damping=0.0, fallback=False))
        results[name] = _on_cpu(stored)
    return results


def _on_cpu(matrix: QuantisedMatrix) -> QuantisedMatrix:
    return QuantisedMatrix(matrix.grid, matrix.codes.cpu(), matrix.scales.cpu())


def _report_float(name: str, parameter: torch.Tensor, listener: Listener) -> None:
    grid = FLOAT_NAMES.get(parameter.dtype, str(parameter.dtype))
    listener(LayerCompressed(name, grid, error=0.0, rounding_error=0.0, damping=0.0, fallback=False))
