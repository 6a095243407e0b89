"""Passes that begin again at a block's input: what they read, what they keep, and what they leave behind."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgetune.compress.blocks import Linear, decoder_blocks, matrices_in, read_matrix, write_matrix
from edgetune.compress.capture import capture, first_states
from edgetune.compress.streams import Stream, hooked, stages, twin
from edgetune.compress.walk import Walk

from .problems import FAMILIES, tiny


def stream_of(hidden: torch.Tensor) -> Stream:
    return Stream(hidden, [((), {})], torch.ones(hidden.shape[0] * hidden.shape[1], dtype=torch.bool))


def read_in_one_pass(block: nn.Module, stream: Stream, layer: nn.Module) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    with hooked([layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))]):
        stream.run(block, 0)
    return seen[0]


def weaken(layer: Linear) -> None:
    """What solving a layer does to it, as far as a walk can see."""
    write_matrix(layer, 0.9 * read_matrix(layer))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("to_the_end", [False, True])
@torch.no_grad()
def test_every_stage_reads_what_a_whole_pass_gives_it(
    family: str, to_the_end: bool, calibration: list[torch.Tensor]
) -> None:
    model = tiny(family)
    blocks = decoder_blocks(model)
    block, plain = blocks[0], copy.deepcopy(blocks[0])
    linears, _ = matrices_in(block, {id(one): name for name, one in model.named_parameters()})
    streams = capture(model, blocks, calibration)
    shared = stages(block, linears, streams, 0)
    begun = [Stream(stream.hidden, stream.calls, stream.real) for stream in streams]
    numbers: dict[nn.Module, int] = {linears[name]: at for at, stage in enumerate(shared) for name in stage}
    with Walk(block, 0, streams, numbers) as walk:
        for number, stage in enumerate(shared):
            leaves = to_the_end and number == len(shared) - 1
            found = list(walk.inputs(number, to_the_end=leaves))
            same_layer = twin(linears[stage[0]], block, plain)
            for stream, inputs in zip(begun, found, strict=True):
                assert inputs is not None
                assert torch.equal(inputs, read_in_one_pass(plain, stream, same_layer))
            for name in stage if not leaves else ():
                weaken(twin(linears[name], block, plain))  # type: ignore[arg-type]
                weaken(linears[name])
        walk.finish()
    for stream, before in zip(streams, begun, strict=True):
        assert torch.equal(stream.hidden, before.run(plain, 0))
    assert not any("forward" in part.__dict__ or part._forward_pre_hooks for part in block.modules())


class Attention(nn.Module):
    """A part of a block that counts how often it runs."""

    def __init__(self, before: Callable[[torch.Tensor], torch.Tensor], more: int) -> None:
        super().__init__()
        self.layer, self.before, self.more, self.runs = nn.Linear(8, 8), before, more, 0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.runs += 1
        return self.layer(self.before(x)), torch.ones(self.more) if self.more else None


class Block(nn.Module):
    """A part, and two layers one after the other."""

    def __init__(self, part: Attention, after: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.part, self.after = part, after
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = x.clone()
        y = own + self.after(self.part(own)[0])
        z = self.up(y).relu()
        return (y + self.down(z)).add_(z.mul_(2))

    def stages(self) -> dict[nn.Module, int]:
        return {self.part.layer: 0, self.up: 1, self.down: 2}


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2)


@pytest.mark.parametrize(
    ("before", "after", "more", "runs"),
    [
        pytest.param(same, same, 0, 2, id="kept from its first whole run on"),
        pytest.param(same, same, 100, 4, id="too large to be kept"),
        pytest.param(same, doubled, 0, 4, id="written to afterwards"),
        pytest.param(doubled, same, 0, 4, id="writes to what it is given"),
    ],
)
@torch.no_grad()
def test_a_solved_part_is_recalled_where_that_changes_nothing(
    before: Callable[[torch.Tensor], torch.Tensor],
    after: Callable[[torch.Tensor], torch.Tensor],
    more: int,
    runs: int,
) -> None:
    torch.manual_seed(0)
    block = Block(Attention(before, more), after)
    plain, begun = copy.deepcopy(block), stream_of(torch.randn(2, 3, 8))
    stream = stream_of(begun.hidden)
    with Walk(block, 0, [stream], block.stages()) as walk:
        for layer, number in block.stages().items():
            (found,) = walk.inputs(number)
            assert found is not None
            assert torch.equal(found, read_in_one_pass(plain, begun, twin(layer, block, plain)))
            weaken(twin(layer, block, plain))  # type: ignore[arg-type]
            weaken(layer)  # type: ignore[arg-type]
        walk.finish()
    assert torch.equal(stream.hidden, begun.run(plain, 0))
    assert block.part.runs == runs


@torch.no_grad()
def test_inputs_that_are_written_to_on_the_way_to_the_end_are_read_once_more() -> None:
    block = Block(Attention(same, 0), same)
    begun = stream_of(torch.randn(2, 3, 8))
    stream, wanted = stream_of(begun.hidden), read_in_one_pass(block, begun, block.down)
    with Walk(block, 0, [stream], block.stages()) as walk:
        (found,) = walk.inputs(2, to_the_end=True)
        walk.finish()
    assert found is not None
    assert torch.equal(found, wanted)
    assert torch.equal(stream.hidden, begun.run(block, 0))


@torch.no_grad()
def test_nothing_of_a_pass_is_alive_when_the_next_one_begins() -> None:
    block = Block(Attention(same, 0), same)
    streams = [stream_of(torch.randn(2, 3, 8)) for _ in range(3)]
    alive: list[weakref.ref[torch.Tensor]] = []
    hook = block.up.register_forward_hook(lambda _, __, output: alive.append(weakref.ref(output)))
    with Walk(block, 0, streams, block.stages()) as walk:
        inputs = walk.inputs(2)
        for _ in streams:
            assert next(inputs) is not None
            assert not any(one() is not None for one in alive)
    hook.remove()
    assert len(alive) == 3


class Twice(nn.Module):
    """A part that runs again on what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Attention(same, 0)
        self.between = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(self.between(self.part(x)[0]))[0]


@torch.no_grad()
def test_the_second_run_of_a_part_is_never_recalled() -> None:
    block, begun = Twice(), stream_of(torch.randn(2, 3, 8))
    plain, stream = copy.deepcopy(block), stream_of(begun.hidden)
    with Walk(block, 0, [stream], {block.part.layer: 0, block.between: 1}) as walk:
        for number, layer in enumerate((block.part.layer, block.between)):
            (found,) = walk.inputs(number)
            assert found is not None
            assert torch.equal(found, read_in_one_pass(plain, begun, twin(layer, block, plain)))
            weaken(twin(layer, block, plain))  # type: ignore[arg-type]
            weaken(layer)
        walk.finish()
    assert torch.equal(stream.hidden, begun.run(plain, 0))


class Experts(nn.Module):
    """Every sequence goes to one of two experts, each of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in "ab")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.cat([self.experts[int(one[0, 0] > 0)](one[None]) for one in x])


@torch.no_grad()
def test_a_batch_that_no_token_of_reaches_an_expert_gives_it_nothing() -> None:
    torch.manual_seed(0)
    block, hidden = Experts(), torch.randn(2, 3, 8)
    hidden[:, 0, 0] = torch.tensor([-1.0, 1.0])
    first, second = stream_of(hidden[:1]), stream_of(hidden[1:])
    wanted = [stream.run(block, 0) for stream in (first, second)]
    layers = [layer for expert in block.experts for layer in (expert[0], expert[2])]  # type: ignore[index]
    with Walk(block, 0, [first, second], {layer: at for at, layer in enumerate(layers)}) as walk:
        reached = [[found is not None for found in walk.inputs(at)] for at in range(4)]
        walk.finish()
    assert reached == [[True, False], [True, False], [False, True], [False, True]]
    assert torch.equal(first.hidden, wanted[0])
    assert torch.equal(second.hidden, wanted[1])


@torch.no_grad()
def test_a_forward_of_an_instance_is_put_back_whatever_happens() -> None:
    block = Block(Attention(same, 0), same)
    own = block.part.forward
    block.part.forward = own
    broken = Stream(torch.zeros(1, 1, 7), [((), {})], torch.ones(1, dtype=torch.bool))
    with pytest.raises(RuntimeError), Walk(block, 0, [broken], block.stages()) as walk:
        next(walk.inputs(1))
    assert block.part.__dict__["forward"] is own
    assert not any(part._forward_pre_hooks for part in block.modules())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_first_states_are_those_of_a_whole_pass(family: str, calibration: list[torch.Tensor]) -> None:
    model = tiny(family)
    blocks = decoder_blocks(model)
    for found, stream in zip(
        first_states(model, blocks, calibration), capture(model, blocks, calibration), strict=True
    ):
        assert torch.equal(found, stream.hidden)
