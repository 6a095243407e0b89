"""Batches that walk through one block and wait, each in the middle of its forward pass, until a stage is solved."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto
from types import TracebackType
from typing import cast

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn

from edgetune.compress.streams import Stream


class Then(Enum):
    """What a batch does when its inputs were read."""

    WAIT = auto()
    """It waits until they are solved."""
    END = auto()
    """It walks to the end of the block: its layers need no solving."""
    STOP = auto()
    """It goes no further: nobody reads what comes after."""


class Walk:
    """A pass of all batches through a block that stops before each stage, so that one pass serves all stages.

        with Walk(...) as walk:
            for stage in range(...):
                inputs = list(walk.inputs(stage))   # of every batch; then the stage's layers get new weights
            outputs = walk.finish()

    Args:
        block: the block.
        index: its number.
        streams: the batches.
        stages: layers by the number of the stage they are in; others are passed by.
    Cost: one forward pass of the block. Memory: of every batch what its pass keeps alive before the widest stage, in
        Llama its input, its residual, a normed one and the input of down_proj, (3 d + d_ffn) floats a token.
    """

    def __init__(
        self, block: nn.Module, index: int, streams: Sequence[Stream], stages: Mapping[nn.Module, int]
    ) -> None:
        self._block, self._index, self._stages, self._solved = block, index, stages, 0
        self._hooks = [layer.register_forward_pre_hook(self._stop) for layer in stages]
        self._walkers = [self._walker(stream) for stream in streams]
        self._at: list[tuple[int, torch.Tensor] | None] = [None] * len(streams)
        self._outputs: list[torch.Tensor | None] = [None] * len(streams)

    def __enter__(self) -> Walk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for walker in self._walkers:
            if walker:  # under way
                walker.throw(GreenletExit)

    def inputs(self, stage: int, *, then: Then = Then.WAIT) -> Iterator[torch.Tensor | None]:
        """Walk on to a stage, one batch after the other, and yield what its layers read; None from one that misses it.

        Args:
            stage: one more than the last time; all stages before count as solved.
            then: what each batch does at once, before the next one comes.
        """
        for number, walker in enumerate(self._walkers):
            self._solved, at = stage, self._at[number]
            if not walker.dead and (at is None or at[0] < stage):
                self._resume(number)
            at = self._at[number]
            if at is not None and at[0] == stage:
                yield at[1]
            else:
                yield None
            if then is Then.END:
                self._end(number)
            elif then is Then.STOP and walker:
                walker.throw(GreenletExit)
                self._at[number] = None

    def finish(self) -> list[torch.Tensor]:
        """Walk to the end and return the hidden states after the block, a batch each."""
        for number in range(len(self._walkers)):
            self._end(number)
        return [cast(torch.Tensor, output) for output in self._outputs]

    def _end(self, number: int) -> None:
        self._solved = len(set(self._stages.values()))
        while not self._walkers[number].dead:
            self._resume(number)

    def _resume(self, number: int) -> None:
        found = self._walkers[number].switch()
        if isinstance(found, tuple):
            self._at[number] = found
        else:
            self._at[number], self._outputs[number] = None, found

    def _walker(self, stream: Stream) -> greenlet:
        walker = greenlet(lambda: stream.run(self._block, self._index))
        walker.gr_context = contextvars.copy_context()
        return walker

    def _stop(self, layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        while self._stages[layer] >= self._solved:
            before = self._solved
            parent = getcurrent().parent
            parent.switch((self._stages[layer], arguments[0]))
            if self._solved == before:
                raise RuntimeError("a batch is taken on when its stage is solved")


def inputs_of(layer: nn.Module, block: nn.Module, stream: Stream, index: int) -> torch.Tensor | None:
    """Return what a layer reads from a batch, float [n, d] without padding; None if the batch misses it."""
    with Walk(block, index, [stream], {layer: 0}) as walk:
        (found,) = walk.inputs(0)
    return None if found is None else stream.tokens(found)
