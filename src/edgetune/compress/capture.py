"""What every block of a model is called with, for every calibration batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.streams import Call, Enough, Stream, hooked
from edgetune.core.batch import Batch
from edgetune.core.errors import DataError


def capture(
    model: PreTrainedModel, blocks: nn.ModuleList, calibration: Sequence[torch.Tensor | Batch]
) -> list[Stream]:
    """Keep what every block is called with, and what the first one reads, for each batch.

    Every block, not the first alone: sliding-window models call their blocks with different masks. Where the first
    batch shows that no block's arguments depend on what blocks compute, the others pass them by.

    Args:
        model: any decoder.
        blocks: its blocks.
        calibration: int64 [batch, length] ids, or batches with a mask.
    Cost: one forward pass of the first batch; one hidden state a token, and one mask a padded batch.
    """
    streams: list[Stream] = []
    passing = False
    for batch in calibration:
        ids, mask = _read(batch)
        with instead(blocks, _same) if passing else contextlib.nullcontext():
            streams.append(_called(model, blocks, ids, mask))
        if len(streams) == 1 and len(calibration) > 1:
            passing = _may_pass_by(model, blocks, ids, mask, streams[0])
    return streams


def first_states(
    model: PreTrainedModel, blocks: nn.ModuleList, calibration: Sequence[torch.Tensor | Batch]
) -> list[torch.Tensor]:
    """Return what the first block reads of each batch, float [batch, length, width]; no block runs.

    Args:
        model: any decoder.
        blocks: its blocks.
        calibration: as in `capture`.
    """
    found: list[torch.Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found.append(arguments[0] if arguments else keywords["hidden_states"])
        raise Enough

    with hooked([blocks[0].register_forward_pre_hook(keep, with_kwargs=True)]):
        for batch in calibration:
            with contextlib.suppress(Enough):
                _run(model, *_read(batch))
    return found


def _read(batch: torch.Tensor | Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask."""
    ids = batch if isinstance(batch, torch.Tensor) else batch.input_ids
    if ids.ndim != 2 or not ids.numel():
        raise DataError(f"a calibration batch must be [batch, length] token ids, not {list(ids.shape)}")
    return ids, torch.ones_like(ids) if isinstance(batch, torch.Tensor) else batch.attention_mask


def _run(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> None:
    model.base_model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)


def _called(model: PreTrainedModel, blocks: nn.ModuleList, ids: torch.Tensor, mask: torch.Tensor) -> Stream:
    hidden: list[torch.Tensor] = []
    calls: list[Call] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        rest = dict(keywords)
        states = arguments[0] if arguments else rest.pop("hidden_states")
        if not hidden:
            hidden.append(states)
        calls.append((arguments[1:], rest))

    with hooked(block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks):
        _run(model, ids, mask)
    return Stream(hidden[0], calls, mask.flatten().bool().to(model.device))


@contextlib.contextmanager
def instead(blocks: nn.ModuleList, forward: Callable[..., Any]) -> Iterator[None]:
    """While entered, every block does this when it is called."""
    try:
        for block in blocks:
            block.forward = forward
        yield
    finally:
        for block in blocks:
            del block.forward


def _same(*arguments: Any, **keywords: Any) -> torch.Tensor:
    """Return the hidden states that a block is given."""
    states: torch.Tensor = arguments[0] if arguments else keywords["hidden_states"]
    return states


def _may_pass_by(
    model: PreTrainedModel, blocks: nn.ModuleList, ids: torch.Tensor, mask: torch.Tensor, real: Stream
) -> bool:
    """Say whether blocks return tensors and are called with the same when each returns what it is given."""
    if not isinstance(blocks[0](real.hidden, *real.calls[0][0], **real.calls[0][1]), torch.Tensor):
        return False
    with instead(blocks, _same):
        other = _called(model, blocks, ids, mask)
    return len(other.calls) == len(real.calls) and all(map(_equal, other.calls, real.calls))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_equal(one[k], other[k]) for k in one)
        )
    if isinstance(one, (tuple, list)):
        return isinstance(other, type(one)) and len(one) == len(other) and _all(zip(one, other, strict=True))
    return one is other or bool(one == other)


def _all(pairs: Iterable[tuple[Any, Any]]) -> bool:
    return all(_equal(one, other) for one, other in pairs)
