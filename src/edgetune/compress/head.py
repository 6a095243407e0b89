"""The output head, last of all: solved on what the compressed blocks and the final norm hand it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.blocks import read_matrix, write_matrix
from edgetune.compress.capture import instead
from edgetune.compress.hessian import Hessian
from edgetune.compress.method import CompressionMethod
from edgetune.compress.ordered import solve_in_order
from edgetune.compress.solve import Moments, solve_stage
from edgetune.compress.streams import Enough, Stream, hooked
from edgetune.core.events import Listener
from edgetune.core.quantised import BlockGrid, QuantisedMatrix


def solvable_head(model: PreTrainedModel, method: CompressionMethod) -> nn.Linear | None:
    """Return the head of a model if it can be solved for; None if it is rounded, or there is none.

    A head that is the embedding once more is rounded with it: what makes up for the error of a product is no nearer
    to the token that the first block reads. A mask is none for a head, whose rows are one token each.

    Args:
        model: any decoder.
        method: what is done to its blocks.
    """
    head = cast(Any, model).get_output_embeddings()
    if not method.compensate or method.mask is not None or type(head) is not nn.Linear:
        return None
    tied = any(one.weight is head.weight for one in model.modules() if isinstance(one, nn.Embedding))
    return None if tied else head


def solve_head(
    model: PreTrainedModel,
    blocks: nn.ModuleList,
    streams: Sequence[Stream],
    method: CompressionMethod,
    listener: Listener,
    *,
    name: str,
    grid: BlockGrid,
) -> QuantisedMatrix:
    """Put the head on a grid, in place, with the Hessian of its own inputs; aimed at the dense logits if so wished.

    Args:
        model: any decoder; its blocks do not run.
        blocks: its blocks, compressed.
        streams: batches behind the last of them.
        method: what was done to the blocks.
        listener: gets one `LayerCompressed`.
        name: of the parameter.
        grid: where it goes.
    Cost: the final norm of every token, tokens * d^2 multiply-adds, and one stage of vocabulary rows.
    Source: OPTQ's sweep; the reference code leaves heads alone.
    """
    head = cast(nn.Linear, cast(Any, model).get_output_embeddings())
    hessian = Hessian(head.in_features, head.weight.device, dense=method.aim_dense)
    arguments, keywords = streams[0].calls[-1]
    plain = isinstance(blocks[-1](streams[0].hidden, *arguments, **keywords), torch.Tensor)
    for stream in streams:
        there = None if stream.dense is None else stream.tokens(_behind(model, blocks, stream.dense, plain))
        hessian.add(stream.tokens(_behind(model, blocks, stream.hidden, plain)), there)
    moments = Moments(hessian.matrix, hessian.drift)
    solve = solve_in_order if method.static_order else solve_stage
    solved = solve({name: read_matrix(head)}, moments, method, listener, grid)[name]
    write_matrix(head, solved.weights)
    return cast(QuantisedMatrix, solved.stored).to("cpu")


def _behind(model: PreTrainedModel, blocks: nn.ModuleList, hidden: torch.Tensor, plain: bool) -> torch.Tensor:
    """Return what the head reads if the last block hands on these hidden states, float [batch, length, width]."""
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])
        raise Enough

    head = cast(Any, model).get_output_embeddings()
    ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=model.device)
    hook, output = head.register_forward_pre_hook(keep), hidden if plain else (hidden,)
    with instead(blocks, lambda *_, **__: output), hooked([hook]), contextlib.suppress(Enough):
        model(input_ids=ids, use_cache=False)
    return seen[0]
