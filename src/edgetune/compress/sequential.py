"""Compress a decoder block by block: a stage is solved on what the compressed stages before it produce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from transformers import PreTrainedModel

from edgetune.compress.blocks import decoder_blocks, replace_data
from edgetune.compress.capture import capture, first_states
from edgetune.compress.head import solvable_head, solve_head
from edgetune.compress.job import BlockJob, report_float
from edgetune.compress.method import CompressionMethod
from edgetune.compress.placement import held_outside
from edgetune.compress.rounding import round_to_nearest
from edgetune.compress.search import LeastError
from edgetune.compress.store import BlockStore, job_name, version
from edgetune.core.batch import Batch
from edgetune.core.errors import DataError
from edgetune.core.events import LayerCompressed, Listener, ignore
from edgetune.core.fitting import fitting
from edgetune.core.progress import Progress, silent
from edgetune.core.quantised import BlockGrid, QuantisedMatrix


@torch.no_grad()
def compress_model(
    model: PreTrainedModel,
    calibration: Sequence[torch.Tensor | Batch],
    method: CompressionMethod,
    listener: Listener = ignore,
    *,
    grids: Mapping[str, BlockGrid] = MappingProxyType({}),
    progress: Progress = silent,
    scratch: Path | None = None,
) -> dict[str, QuantisedMatrix]:
    """Put every matrix of the decoder blocks on the method's grid, in place, and return what a file stores.

    The embedding (and a head tied to it, one entry) is rounded first; then block after block, stage after
    stage ({q, k, v}, {o}, {gate, up}, {down} in Llama), each with the Hessian of its own inputs, and last of all
    a head of its own. Norms, biases, position tables and other layers outside the blocks stay as they are.

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
        scratch: a folder in which solved blocks are kept until `store.clear`; a killed compression of the same
            model, method and tokens, by the same version, goes on after the last of them, to the same bytes.

    Returns:
        parameter name to matrix, rows = outputs, on the CPU. transformers' Conv1D (GPT-2) holds its transpose.

    Raises:
        DataError: if calibration is needed and there is none, or a batch is not [batch, length].
        ModelError: if the model is no decoder, or weights or activations are not finite.
    Cost: what a `Walk` costs over the calibration tokens, and tokens * d^2 multiply-adds and one sweep a stage. Memory:
        two hidden states a token, the widest activations of one batch and one Hessian at a time (4 d^2 bytes, 3 times
        that while it is factorised). Aiming at the dense outputs, the dense blocks run beside: twice of everything
        but the sweeps, and one block more.
    Source: OPTQ, section 4 (setup), with the stages of the reference code's `--true-sequential`.
    """
    blocks = decoder_blocks(model)
    if method.reads and not calibration:
        raise DataError(
            "this method needs calibration text", where=method.name, hint="give at least one batch"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    results: dict[str, QuantisedMatrix] = {}
    store = None if scratch is None else _store(scratch, model, calibration, method, grids)
    training = model.training
    model.train(False)
    try:
        outside, head = _outside(model, names, method, grids, solves=bool(calibration))
        before = first_states(model, blocks, calibration) if method.aim_dense else []
        results |= _round_embeddings(model, outside, listener)
        streams = capture(model, blocks, calibration) if method.reads else []
        for stream, dense in zip(streams, before, strict=False):
            stream.dense = dense
        del before
        job = BlockJob(names, method, grids, listener)
        for index, block in enumerate(blocks):
            progress("compressing: blocks", index, len(blocks))
            last = head is None and index == len(blocks) - 1  # a head reads what comes after
            found = None if store is None else store.read(index)
            if found is None:
                found = job.compressed(block, index, streams, last=last)
                if store is not None:
                    store.write(index, found)
            else:
                job.put_back(block, index, streams, found, last=last)
            results |= found.stored
        if head is not None:
            results[head[0]] = solve_head(
                model, blocks, streams, method, listener, name=head[0], grid=head[1]
            )
        progress("compressing: blocks", len(blocks), len(blocks))
    finally:
        model.train(training)
    return results


def _outside(
    model: PreTrainedModel,
    names: dict[int, str],
    method: CompressionMethod,
    grids: Mapping[str, BlockGrid],
    *,
    solves: bool,
) -> tuple[dict[str, BlockGrid | None], tuple[str, BlockGrid] | None]:
    """Return where embedding and head are rounded to, and name and grid of a head that is solved for instead."""
    outside = {name: grids.get(name, method.embeddings) for name in held_outside(model, names)}
    head = solvable_head(model, method) if solves else None
    name = "" if head is None else names[id(head.weight)]
    wanted = outside.get(name)
    grid = None if head is None or wanted is None else fitting(wanted, head.in_features)
    if grid is None:
        return outside, None
    return {one: place for one, place in outside.items() if one != name}, (name, grid)


def _store(
    folder: Path,
    model: PreTrainedModel,
    calibration: Sequence[torch.Tensor | Batch],
    method: CompressionMethod,
    grids: Mapping[str, BlockGrid],
) -> BlockStore:
    tokens = [
        batch if isinstance(batch, torch.Tensor) else torch.stack([batch.input_ids, batch.attention_mask])
        for batch in calibration
    ]
    weights = [part for name, weight in sorted(model.named_parameters()) for part in (name, weight)]
    return BlockStore(
        folder,
        job_name(version(), method, sorted((k, g.name) for k, g in grids.items()), *tokens, *weights),
    )


def _round_embeddings(
    model: PreTrainedModel, grids: Mapping[str, BlockGrid | None], listener: Listener
) -> dict[str, QuantisedMatrix]:
    results: dict[str, QuantisedMatrix] = {}
    parameters = dict(model.named_parameters())
    for name, grid in grids.items():
        parameter = parameters[name]
        if grid is None:
            continue
        grid = fitting(grid, parameter.shape[1])
        if grid is None:
            report_float(name, parameter, listener)
            continue
        weights = parameter.detach().to(torch.float32)
        stored = round_to_nearest(weights, grid, LeastError(), name=name)
        rounded = stored.dequantise()
        replace_data(parameter, rounded)
        error = float((rounded - weights).square().sum() / weights.square().sum().clamp(min=1e-30))
        listener(LayerCompressed(name, grid.name, error, error, damping=0.0, fallback=False))
        results[name] = stored.to("cpu")
    return results
