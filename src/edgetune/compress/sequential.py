"""Compress a decoder block by block: a stage is solved on what the compressed stages before it produce."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from types import MappingProxyType

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
from edgetune.compress.capture import capture
from edgetune.compress.hessian import Hessian
from edgetune.compress.method import CompressionMethod
from edgetune.compress.placement import held_outside, place_of, width_of
from edgetune.compress.rounding import round_to_nearest
from edgetune.compress.search import LeastError
from edgetune.compress.solve import Moments, solve_stage
from edgetune.compress.streams import Stream, stages, twin
from edgetune.compress.walk import Walk
from edgetune.core.batch import Batch
from edgetune.core.errors import DataError
from edgetune.core.events import LayerCompressed, Listener, ignore
from edgetune.core.fitting import fitting
from edgetune.core.progress import Progress, silent
from edgetune.core.quantised import BlockGrid, QuantisedMatrix

FLOAT_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
"""GGUF names of what is left in floating point."""


@torch.no_grad()
def compress_model(
    model: PreTrainedModel,
    calibration: Sequence[torch.Tensor | Batch],
    method: CompressionMethod,
    listener: Listener = ignore,
    *,
    grids: Mapping[str, BlockGrid] = MappingProxyType({}),
    progress: Progress = silent,
) -> dict[str, QuantisedMatrix]:
    """Put every matrix of the decoder blocks on the method's grid, in place, and return what a file stores.

    The embedding (and the head, one entry if tied) is rounded first; then block after block, stage after
    stage ({q, k, v}, {o}, {gate, up}, {down} in Llama), each with the Hessian of its own inputs. Norms,
    biases, position tables and layers outside the blocks stay as they are.

    Args:
        model: any Hugging Face decoder; float32 if the stored weights are to equal the model's bit for bit.
            Its parameters get new storage; what they pointed to is not written to.
        calibration: int64 [batch, length] token ids, or batches whose padding the mask leaves out. Not read, and may
            be empty, for a method that needs no text; every Hessian is then the identity.
        method: what to do.
        listener: gets one `LayerCompressed` a matrix. A matrix left in float (no grid fits its width, or not a linear
            layer) is reported with grid F32, F16 or BF16 and is not in the result. A layer that no calibration token
            reached is rounded and reported with `fallback`.
        grids: parameter name to a grid in place of the method's.
        progress: told of every block.

    Returns:
        parameter name to matrix, rows = outputs, on the CPU. transformers' Conv1D (GPT-2) holds its transpose.

    Raises:
        DataError: if calibration is needed and there is none, or a batch is not [batch, length].
        ModelError: if the model is no decoder, or weights or activations are not finite.
    Cost: one forward pass over the calibration tokens, and tokens * d^2 multiply-adds and one sweep a stage. Memory:
        what a `Walk` keeps and one Hessian at a time (4 d^2 bytes, 3 times that while it is factorised). Aiming at
        the dense outputs, the dense blocks run beside: twice of everything but the sweeps, and one block more.
    Source: OPTQ, section 4 (setup), with the stages of the reference code's `--true-sequential`.
    """
    blocks = decoder_blocks(model)
    if method.reads and not calibration:
        raise DataError(
            "this method needs calibration text", where=method.name, hint="give at least one batch"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    results: dict[str, QuantisedMatrix] = {}
    training = model.training
    model.train(False)
    try:
        embeddings = {**dict.fromkeys(held_outside(model, names), method.embeddings), **grids}
        results |= _round_embeddings(model, names, embeddings, listener)
        streams = capture(model, blocks, calibration) if method.reads else []
        for stream in streams if method.aim_dense else ():
            stream.dense = stream.hidden
        for index, block in enumerate(blocks):
            progress("compressing: blocks", index, len(blocks))
            job = _Job(names, method, grids, listener)
            results |= job.compressed(block, index, streams)
        progress("compressing: blocks", len(blocks), len(blocks))
    finally:
        model.train(training)
    return results


@dataclass(frozen=True, slots=True)
class _Job:
    """What is the same for all blocks."""

    names: dict[int, str]
    method: CompressionMethod
    grids: Mapping[str, BlockGrid]
    listener: Listener

    def compressed(
        self, block: nn.Module, index: int, streams: Sequence[Stream]
    ) -> dict[str, QuantisedMatrix]:
        """Compress a block; the streams are behind it then."""
        linears, others = matrices_in(block, self.names)
        places = {name: place_of(name, layer, self.method, self.grids) for name, layer in linears.items()}
        for name in [name for name, layer in linears.items() if not self._touches(layer, places[name])]:
            others[name] = linears.pop(name).weight
        for name, parameter in others.items():
            _report_float(name, parameter, self.listener)
        shared = stages(block, linears, streams, index)
        reached = {name for stage in shared for name in stage}
        results: dict[str, QuantisedMatrix] = {}
        for stage, moments in self._measured(block, index, linears, shared, streams):
            results |= self._solved({name: linears[name] for name in stage}, moments, places)
        for name in linears:
            if name not in reached:
                results |= self._solved({name: linears[name]}, None, places)
        return results

    def _touches(self, layer: Linear, place: BlockGrid | None) -> bool:
        """Say whether a layer is put on a grid or pruned: n of every m only where m divides its width."""
        mask = self.method.mask
        return place is not None or (mask is not None and width_of(layer) % mask.sparsity.span == 0)

    def _measured(
        self,
        block: nn.Module,
        index: int,
        linears: Mapping[str, Linear],
        shared: Sequence[Sequence[str]],
        streams: Sequence[Stream],
    ) -> Iterator[tuple[Sequence[str], Moments | None]]:
        """Yield stages with the moments of their inputs; the caller has solved each when the next is asked for."""
        numbers: dict[nn.Module, int] = {
            linears[name]: number for number, stage in enumerate(shared) for name in stage
        }
        copy = deepcopy(block) if self.method.aim_dense and streams else None
        twins = {} if copy is None else {twin(layer, block, copy): n for layer, n in numbers.items()}
        was = [before for before in (stream.as_it_was() for stream in streams) if before is not None]
        with Walk(block, index, streams, numbers) as walk, ExitStack() as stack:
            beside = None if copy is None else stack.enter_context(Walk(copy, index, was, twins))
            for number, stage in enumerate(shared):
                before = None if beside is None else beside.inputs(number)
                yield stage, _moments(linears[stage[0]], streams, walk.inputs(number), before)
            outputs = walk.finish()
            dense = [None] * len(streams) if beside is None else beside.finish()
        for stream, output, before_it in zip(streams, outputs, dense, strict=True):
            stream.hidden, stream.dense = output, before_it

    def _solved(
        self,
        layers: Mapping[str, Linear],
        moments: Moments | None,
        places: Mapping[str, BlockGrid | None],
    ) -> dict[str, QuantisedMatrix]:
        """Solve layers that share an input, those of one grid together."""
        results: dict[str, QuantisedMatrix] = {}
        for grid in dict.fromkeys(places[name] for name in layers):
            matrices = {name: read_matrix(layers[name]) for name in layers if places[name] == grid}
            method = self.method if grid else replace(self.method, grid=None)
            for name, solved in solve_stage(matrices, moments, method, self.listener, grid).items():
                write_matrix(layers[name], solved.weights)
                if solved.stored is not None:
                    results[name] = solved.stored.to("cpu")
        return results


def _moments(
    layer: Linear,
    streams: Sequence[Stream],
    inputs: Sequence[torch.Tensor | None],
    before: Sequence[torch.Tensor | None] | None,
) -> Moments | None:
    """Return the moments of a stage's inputs, with those of the dense model where it walks beside."""
    columns = next((one.shape[-1] for one in inputs if one is not None), 0)
    hessian = Hessian(columns, layer.weight.device, dense=before is not None)
    for stream, here, there in zip(streams, inputs, before or [None] * len(streams), strict=True):
        if here is None:
            continue
        x, y = stream.tokens(here), None if there is None else stream.tokens(there)
        # Tokens that the dense model sends elsewhere (another expert) have no partners: they count as unchanged.
        hessian.add(x, y if y is not None and len(y) == len(x) else None)
    return Moments(hessian.matrix, hessian.cross) if hessian.tokens else None


def _round_embeddings(
    model: PreTrainedModel,
    names: dict[int, str],
    grids: Mapping[str, BlockGrid | None],
    listener: Listener,
) -> dict[str, QuantisedMatrix]:
    results: dict[str, QuantisedMatrix] = {}
    parameters = dict(model.named_parameters())
    for name in held_outside(model, names):
        parameter, grid = parameters[name], grids[name]
        if grid is None:
            continue
        grid = fitting(grid, parameter.shape[1])
        if grid is None:
            _report_float(name, parameter, listener)
            continue
        weights = parameter.detach().to(torch.float32)
        stored = round_to_nearest(weights, grid, LeastError(), name=name)
        rounded = stored.dequantise()
        replace_data(parameter, rounded)
        error = float((rounded - weights).square().sum() / weights.square().sum().clamp(min=1e-30))
        listener(LayerCompressed(name, grid.name, error, error, damping=0.0, fallback=False))
        results[name] = stored.to("cpu")
    return results


def _report_float(name: str, parameter: torch.Tensor, listener: Listener) -> None:
    grid = FLOAT_NAMES.get(parameter.dtype, str(parameter.dtype))
    listener(LayerCompressed(name, grid, error=0.0, rounding_error=0.0, damping=0.0, fallback=False))
