"""Calibration batches on their way through the blocks: what a layer reads, and which layers read the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.core.batch import Batch
from edgetune.core.errors import DataError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a block's forward other than the hidden states."""


@dataclass(slots=True)
class Stream:
    """One calibration batch on its way through the blocks.

    Args:
        hidden: float [batch, length, width], input of the next block to be compressed.
        dense: the same in the model as it was; None where nothing asks for it.
        calls: everything else each block was called with (masks, position embeddings).
        real: bool [batch * length], False on padding.
    """

    hidden: torch.Tensor
    calls: list[Call]
    real: torch.Tensor
    dense: torch.Tensor | None = None

    def run(self, block: nn.Module, index: int) -> torch.Tensor:
        """Return the hidden states after block number `index`."""
        arguments, keywords = self.calls[index]
        output = block(self.hidden, *arguments, **keywords)
        return output if isinstance(output, torch.Tensor) else output[0]

    def as_it_was(self) -> Stream | None:
        """Return this batch on its way through the dense model; None where nobody follows it."""
        return None if self.dense is None else Stream(self.dense, self.calls, self.real)

    def tokens(self, inputs: torch.Tensor) -> torch.Tensor:
        """Flatten a layer's inputs to [n, d] and leave padding out.

        Inputs of another number of rows (tokens routed to one expert) have lost their place; all of them
        count.
        """
        flat = inputs.reshape(-1, inputs.shape[-1])
        return flat[self.real] if len(flat) == len(self.real) else flat


def capture(
    model: PreTrainedModel, blocks: nn.ModuleList, calibration: Sequence[torch.Tensor | Batch]
) -> list[Stream]:
    """Run the base model once on each batch and keep what every block was called with.

    Every block, not the first alone: sliding-window models call their blocks with different masks.

    Args:
        model: any decoder.
        blocks: its blocks.
        calibration: int64 [batch, length] ids, or batches with a mask.
    Cost: one forward pass without the head; one hidden state a token, and one mask a padded batch.
    """
    streams = []
    for batch in calibration:
        ids = batch if isinstance(batch, torch.Tensor) else batch.input_ids
        mask = torch.ones_like(ids) if isinstance(batch, torch.Tensor) else batch.attention_mask
        if ids.ndim != 2 or not ids.numel():
            raise DataError(f"a calibration batch must be [batch, length] token ids, not {list(ids.shape)}")
        hidden: list[torch.Tensor] = []
        calls: list[Call] = []

        def keep(
            _: nn.Module,
            arguments: tuple[Any, ...],
            keywords: dict[str, Any],
            hidden: list[torch.Tensor] = hidden,
            calls: list[Call] = calls,
        ) -> None:
            rest = dict(keywords)
            states = arguments[0] if arguments else rest.pop("hidden_states")
            if not hidden:
                hidden.append(states)
            calls.append((arguments[1:], rest))

        with _hooks(block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks):
            model.base_model(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
            )
        streams.append(Stream(hidden[0], calls, mask.flatten().bool().to(model.device)))
    return streams


def stages(
    block: nn.Module, modules: Mapping[str, nn.Module], streams: Sequence[Stream], index: int
) -> list[list[str]]:
    """Group a block's layers by the input they read, in the order of their first call.

    Two layers share an input if they are handed the same memory, seen the same way and not written to in
    between. For Llama: [q, k, v], [o], [gate, up], [down].

    Args:
        block: the block.
        modules: its layers by name.
        streams: batches to run, until every layer has been called; commonly one is enough.
        index: number of the block.

    Returns:
        names in stages; a layer that no batch reached is in none.
    """
    shared: list[list[str]] = []
    for stream in streams:
        missing = {name: modules[name] for name in modules if not any(name in stage for stage in shared)}
        if not missing:
            break
        seen: dict[Hashable, list[str]] = {}
        alive: list[torch.Tensor] = []  # so that no address is used twice
        calls = {name: _first_input(seen, alive, name) for name in missing}
        with _hooks(module.register_forward_pre_hook(calls[name]) for name, module in missing.items()):
            stream.run(block, index)
        shared += seen.values()
    return shared


def _first_input(
    seen: dict[Hashable, list[str]], alive: list[torch.Tensor], name: str
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        x: torch.Tensor = arguments[0]
        alive.append(x)
        if not any(name in stage for stage in seen.values()):
            seen.setdefault((x.data_ptr(), x.shape, x.stride(), x._version), []).append(name)

    return hook


def twin(module: nn.Module, block: nn.Module, copy: nn.Module) -> nn.Module:
    """Return the layer that stands in a copy of a block where this one stands in the block."""
    path = next(path for path, one in block.named_modules() if one is module)
    return copy.get_submodule(path)


@contextlib.contextmanager
def _hooks(handles: Any) -> Iterator[None]:
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
