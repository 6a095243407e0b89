"""Calibration batches on their way through the blocks: what a layer reads, and which layers read the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

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
        return flat if len(flat) != len(self.real) or bool(self.real.all()) else flat[self.real]

    def first(self, index: int) -> Stream:
        """Return the first sequence alone for a pass through block number `index`, or all where that is not certain.

        Certain is what has one entry a sequence, or one for all, along the first of its dimensions.
        """
        count, length = self.hidden.shape[0], self.hidden.shape[1]
        call = self.calls[index]
        certain: list[bool] = []
        one = _taken(call, count, certain)
        if count == 1 or count == length or not all(certain):
            return self
        calls = [*self.calls[:index], one, *self.calls[index + 1 :]]
        return Stream(self.hidden[:1], calls, self.real[:length])


def _taken(value: Any, count: int, certain: list[bool]) -> Any:
    """Return the first sequence's part of an argument, and note whether it is certain to be that."""
    if type(value) in (tuple, list):
        return type(value)(_taken(one, count, certain) for one in value)
    if isinstance(value, dict):
        return {key: _taken(one, count, certain) for key, one in value.items()}
    if isinstance(value, torch.Tensor) and value.ndim >= 2:
        certain.append(value.shape[0] in {1, count})
        return value[:1]
    certain.append(value is None or isinstance(value, (bool, int, float, str, torch.Tensor)))
    return value


def stages(
    block: nn.Module, modules: Mapping[str, nn.Module], streams: Sequence[Stream], index: int
) -> list[list[str]]:
    """Group a block's layers by the input they read, in the order of their first call.

    Two layers share an input if they are handed the same memory, seen the same way and not written to in
    between. For Llama: [q, k, v], [o], [gate, up], [down].

    Args:
        block: the block.
        modules: its layers by name.
        streams: batches to run, until every layer has been called; commonly one sequence is enough.
        index: number of the block.

    Returns:
        names in stages; a layer that no batch reached is in none.
    """
    shared: list[list[str]] = []
    for stream in [*(stream.first(index) for stream in streams[:1]), *streams]:
        missing = {name: modules[name] for name in modules if not any(name in stage for stage in shared)}
        if not missing:
            break
        seen: dict[Hashable, list[str]] = {}
        alive: list[torch.Tensor] = []  # so that no address is used twice
        calls = {name: _first_input(seen, alive, name) for name in missing}
        with hooked(module.register_forward_pre_hook(calls[name]) for name, module in missing.items()):
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


class Enough(BaseException):
    """A pass went as far as it was wanted. Not an `Exception`, which a model may catch."""


@contextlib.contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Remove hooks at the end, whatever happens."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
