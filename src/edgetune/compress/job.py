"""One decoder block: its stages in order, each solved on what the compressed ones before it produce."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from typing import cast

import torch
from torch import nn

from edgetune.compress.blocks import Linear, matrices_in, read_matrix, write_matrix
from edgetune.compress.hessian import Hessian
from edgetune.compress.method import CompressionMethod
from edgetune.compress.ordered import solve_in_order
from edgetune.compress.placement import place_of, width_of
from edgetune.compress.solve import Moments, Solved, solve_stage
from edgetune.compress.store import SolvedBlock
from edgetune.compress.streams import Stream, stages, twin
from edgetune.compress.walk import Walk
from edgetune.core.allocator import trim
from edgetune.core.events import Event, LayerCompressed, Listener
from edgetune.core.quantised import BlockGrid, QuantisedMatrix

FLOAT_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
"""GGUF names of what is left in floating point."""


@dataclass(frozen=True, slots=True)
class BlockJob:
    """How the blocks of a model are compressed.

    Args:
        names: parameter name by `id` of the parameter.
        method: what to do.
        grids: parameter name to a grid in place of the method's.
        listener: gets one `LayerCompressed` a matrix.
    """

    names: dict[int, str]
    method: CompressionMethod
    grids: Mapping[str, BlockGrid]
    listener: Listener

    def compressed(
        self, block: nn.Module, index: int, streams: Sequence[Stream], *, last: bool = False
    ) -> SolvedBlock:
        """Compress a block; the streams are behind it then, but for the last one, where nobody reads them any more."""
        events: list[LayerCompressed] = []

        def tell(event: Event) -> None:
            events.extend([event] if isinstance(event, LayerCompressed) else [])
            self.listener(event)

        linears, others = matrices_in(block, self.names)
        places = {name: place_of(name, layer, self.method, self.grids) for name, layer in linears.items()}
        for name in [name for name, layer in linears.items() if not self._touches(layer, places[name])]:
            others[name] = cast(nn.Parameter, linears.pop(name).weight)
        for name, parameter in others.items():
            report_float(name, parameter, tell)
        shared = stages(block, linears, streams, index)
        reached = {name for stage in shared for name in stage}
        missed = [([name], None) for name in linears if name not in reached]
        stored: dict[str, QuantisedMatrix] = {}
        floats: dict[str, torch.Tensor] = {}
        for stage, moments in chain(self._measured(block, index, linears, shared, streams, last), missed):
            solved = self._solved({name: linears[name] for name in stage}, moments, places, tell)
            stored |= {name: one.stored.to("cpu") for name, one in solved.items() if one.stored is not None}
            floats |= {name: one.weights.cpu() for name, one in solved.items() if one.stored is None}
            del moments, solved  # the next pass does without
        return SolvedBlock(stored, floats, events)

    def _touches(self, layer: Linear, place: BlockGrid | None) -> bool:
        """Say whether a layer is put on a grid or pruned: n of every m only where m divides its width."""
        mask = self.method.mask
        return place is not None or (mask is not None and width_of(layer) % mask.sparsity.span == 0)

    def put_back(
        self,
        block: nn.Module,
        index: int,
        streams: Sequence[Stream],
        found: SolvedBlock,
        *,
        last: bool = False,
    ) -> None:
        """Give a block what was solved before; the streams are behind it then, but for the last one."""
        linears, _ = matrices_in(block, self.names)
        for stream in () if last else streams:
            was = stream.as_it_was()
            if was is not None:
                stream.dense = was.run(block, index)
        for name, matrix in found.stored.items():
            write_matrix(linears[name], matrix.dequantise())
        for name, weights in found.floats.items():
            write_matrix(linears[name], weights)
        for stream in () if last else streams:
            stream.hidden = stream.run(block, index)
        for event in found.events:
            self.listener(event)

    def _measured(
        self,
        block: nn.Module,
        index: int,
        linears: Mapping[str, Linear],
        shared: Sequence[Sequence[str]],
        streams: Sequence[Stream],
        last: bool,
    ) -> Iterator[tuple[Sequence[str], Moments | None]]:
        """Yield stages with the moments of their inputs; the caller has solved each when the next is asked for."""
        numbers: dict[nn.Module, int] = {
            linears[name]: number for number, stage in enumerate(shared) for name in stage
        }
        copy = _as_it_is(block) if self.method.aim_dense and streams else None
        twins = {} if copy is None else {twin(layer, block, copy): n for layer, n in numbers.items()}
        was = [before for before in (stream.as_it_was() for stream in streams) if before is not None]
        for stream in streams:
            stream.dense = None  # the dense batch alone is to hold it
        with Walk(block, index, streams, numbers) as walk, ExitStack() as stack:
            beside = None if copy is None else stack.enter_context(Walk(copy, index, was, twins))
            for number, stage in enumerate(shared):
                final = number == len(shared) - 1 and not last
                before = None if beside is None else beside.inputs(number, to_the_end=final)
                moments = _moments(linears[stage[0]], streams, walk.inputs(number), before)
                trim()
                yield stage, moments
                del moments
            if last:
                return
            walk.finish()
            if beside is not None:
                beside.finish()
        for stream, dense in zip(streams, was, strict=bool(was)):
            stream.dense = dense.hidden

    def _solved(
        self,
        layers: Mapping[str, Linear],
        moments: Moments | None,
        places: Mapping[str, BlockGrid | None],
        tell: Listener,
    ) -> dict[str, Solved]:
        """Solve layers that share an input, those of one grid together."""
        results: dict[str, Solved] = {}
        for grid in dict.fromkeys(places[name] for name in layers):
            matrices = {
                name: read_matrix(layers[name], copy=False) for name in layers if places[name] == grid
            }
            method = self.method if grid else replace(self.method, grid=None)
            solve = solve_in_order if self.method.static_order else solve_stage
            results |= solve(matrices, moments, method, tell, grid)
        for name, solved in results.items():
            write_matrix(layers[name], solved.weights)
        return results


def _moments(
    layer: Linear,
    streams: Sequence[Stream],
    inputs: Iterator[torch.Tensor | None],
    before: Iterator[torch.Tensor | None] | None,
) -> Moments | None:
    """Return the moments of a stage's inputs, with those of the dense model where it walks beside."""
    hessian = Hessian(width_of(layer), layer.weight.device, dense=before is not None)
    for stream in streams:  # no name holds a batch's inputs while the next one's are computed
        _add(hessian, stream, next(inputs), None if before is None else next(before))
    return Moments(hessian.matrix, hessian.drift) if hessian.tokens else None


def _add(hessian: Hessian, stream: Stream, here: torch.Tensor | None, there: torch.Tensor | None) -> None:
    if here is None:
        return
    x, y = stream.tokens(here), None if there is None else stream.tokens(there)
    # Tokens that the dense model sends elsewhere (another expert) have no partners: they count as unchanged.
    hessian.add(x, y if y is not None and len(y) == len(x) else None)


def _as_it_is(block: nn.Module) -> nn.Module:
    """Return a copy that keeps the weights which this one has now, in the same memory: nobody writes to them."""
    weights = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in block.parameters()}
    return deepcopy(block, weights)


def report_float(name: str, parameter: torch.Tensor, listener: Listener) -> None:
    """Tell of a matrix that stays in float."""
    grid = FLOAT_NAMES.get(parameter.dtype, str(parameter.dtype))
    listener(LayerCompressed(name, grid, error=0.0, rounding_error=0.0, damping=0.0, fallback=False))
