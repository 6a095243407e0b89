"""Passes of the calibration batches through one block, each as far as the layers of one stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn

from edgetune.compress.streams import Enough, Stream
from edgetune.core.allocator import THRESHOLD, trim


class Walk:
    """Batches that begin again at a block's input for every stage, so that no pass is alive while a stage is solved.

        with Walk(...) as walk:
            for stage in range(...):
                inputs = list(walk.inputs(stage))   # of every batch; then the stage's layers get new weights
            walk.finish()                           # the streams are behind the block

    What a part of the block returns once its stages are all solved (attention, before the feed-forward part) is kept
    and not computed again, if that takes no more memory than the hidden states do.

    Args:
        block: the block.
        index: its number.
        streams: the batches.
        stages: layers by the number of the stage they are in, in the order of their first call; others are passed by.
    Cost: in Llama 1.7 passes of the block's matrices and two of attention, 1.2 of the matrices where the last stage's
        inputs are read on the way to the end. Memory: one hidden state a token, for as long as the block is under way.
    """

    def __init__(
        self, block: nn.Module, index: int, streams: Sequence[Stream], stages: Mapping[nn.Module, int]
    ) -> None:
        self._block, self._index, self._streams, self._stages = block, index, streams, stages
        self._kept: list[dict[nn.Module, _Kept]] = [{} for _ in streams]
        self._pass = _Pass(0)
        self._behind = False
        self._last: dict[nn.Module, int] = {}
        for part in block.modules():
            inside = [stages[layer] for layer in part.modules() if layer in stages]
            if inside and part is not block and part not in stages:
                self._last[part] = max(inside)
        self._hooks = [layer.register_forward_pre_hook(self._read) for layer in stages]
        self._forwards = {part: part.__dict__.get("forward") for part in self._last}
        for part in self._last:
            part.forward = partial(self._called, part, part.forward)

    def __enter__(self) -> Walk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for part, forward in self._forwards.items():
            del part.forward
            if forward is not None:
                part.forward = forward

    def inputs(self, stage: int, *, to_the_end: bool = False) -> Iterator[torch.Tensor | None]:
        """Walk to a stage, one batch after the other, and yield what its layers read; None from one that misses it.

        Args:
            stage: one more than the last time; all stages before count as solved.
            to_the_end: whether each batch goes on behind the block: its layers need no solving.
        """
        self._behind = to_the_end
        for number in range(len(self._streams)):
            yield self._walked(number, stage, to_the_end=to_the_end)

    def finish(self) -> None:
        """Walk behind the block, unless the batches are there."""
        for number in range(0 if self._behind else len(self._streams)):
            self._walked(number, len(self._stages), to_the_end=True)
        self._behind = True

    def _walked(self, number: int, stage: int, *, to_the_end: bool) -> torch.Tensor | None:
        stream = self._streams[number]
        now = self._pass = _Pass(stage, not to_the_end, stream.hidden.nbytes, self._kept[number])
        try:
            output = stream.run(self._block, self._index)
            if to_the_end and now.found is not None and now.found._version != now.version:
                now.found = self._walked(number, stage, to_the_end=False)  # written to after it was read
        except Enough:
            to_the_end = False
        if to_the_end:
            stream.hidden = output
            self._kept[number].clear()
        self._pass = _Pass(stage)
        if stream.hidden.nbytes >= THRESHOLD:
            trim()  # the pass is gone, and what reads its inputs needs as much
        return now.found

    def _read(self, layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        stage, now = self._stages[layer], self._pass
        if stage == now.stage and now.found is None:
            now.found, now.version = arguments[0], arguments[0]._version
        if stage >= now.stage and now.stops:
            raise Enough

    def _called(self, part: nn.Module, forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Return what a part of the block returned before, if it must return the same again."""
        now = self._pass
        again = part in now.called  # what a second call is given may come from a later stage
        now.called.add(part)
        if again or self._last[part] >= now.stage:
            return forward(*arguments, **keywords)
        known = now.kept.get(part)
        if known is not None and known.intact:
            return known.output
        given = _Kept((*arguments, *keywords.values()))
        found = _Kept(forward(*arguments, **keywords))
        if now.stops and given.intact and found.whole and found.nbytes <= now.limit:
            for inner in part.modules():
                now.kept.pop(inner, None)
            now.kept[part] = found
        return found.output


@dataclass(slots=True)
class _Pass:
    """A batch on its way to a stage."""

    stage: int
    stops: bool = True
    limit: int = 0
    kept: dict[nn.Module, _Kept] = field(default_factory=dict)
    called: set[nn.Module] = field(default_factory=set)
    found: torch.Tensor | None = None
    version: int = 0


class _Kept:
    """Something with tensors in it that may have been written to since."""

    def __init__(self, output: Any) -> None:
        self.output = output
        parts = output if isinstance(output, tuple) else (output,)
        tensors = [part for part in parts if isinstance(part, torch.Tensor)]
        self.whole = all(part is None or isinstance(part, torch.Tensor) for part in parts)
        """Whether there is nothing else in it."""
        self.nbytes = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
        self._versions = [(tensor, tensor._version) for tensor in tensors]

    @property
    def intact(self) -> bool:
        """Whether nothing was."""
        return all(tensor._version == version for tensor, version in self._versions)


def inputs_of(layer: nn.Module, block: nn.Module, stream: Stream, index: int) -> torch.Tensor | None:
    """Return what a layer reads from a batch, float [n, d] without padding; None if the batch misses it."""
    with Walk(block, index, [stream], {layer: 0}) as walk:
        (found,) = walk.inputs(0)
    return None if found is None else stream.tokens(found)
