"""Steps along fresh directions: the same bits from steps, from a ledger and from what was set aside, at a flat cost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.core.errors import OutputError
from edgetune.core.keys import pool_key
from edgetune.core.remainder import held
from edgetune.core.update import Projected
from edgetune.directions import Gaussian, Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.tune import ProjectedTuned
from edgetune.tune.snapshot import Snapshot

KEY = pool_key(3)
NARROW = [torch.float16, torch.bfloat16]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, *NARROW], ids=str)
kinds = pytest.mark.parametrize("kind", [Rademacher(), Gaussian()], ids=str)


def steps(first: int, count: int, size: float = 1e-3) -> Projected:
    values = np.random.Generator(np.random.Philox(first)).normal(size=count) * size
    return Projected(np.arange(first, first + count) * 7**9, values.astype(np.float32))


def digest(tuned: ProjectedTuned) -> list[bytes]:
    return [bytes(weight.reshape(-1).view(torch.uint8).numpy()) for _, weight in tuned.named_weights()]


class Counted(BoundSpace):
    """Counts the directions that are drawn for whole tensors."""

    drawn = 0

    def axpy(self, *given: Any, **named: Any) -> None:
        self.drawn += 1
        super().axpy(*given, **named)

    def replay(self, out: torch.Tensor, base: torch.Tensor, update: Projected, name: str) -> None:
        self.drawn += len(update.keys)
        super().replay(out, base, update, name)

    def follow(self, *given: Any, **named: Any) -> None:
        self.drawn += len(given[2].keys)
        super().follow(*given, **named)


Open = Callable[..., ProjectedTuned]


@pytest.fixture
def opened(tiny_model: Any) -> Open:
    def make(
        dtype: torch.dtype,
        kind: Any = None,
        space: type[BoundSpace] = BoundSpace,
        *,
        stored: Any = torch.float32,
    ) -> ProjectedTuned:
        model = tiny_model().to(stored)
        base = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        return ProjectedTuned(model.to(dtype), space(kind or Rademacher(), KEY), base=base)

    return make


@dtypes
@kinds
@pytest.mark.parametrize("each", [1, 3, 6])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_a_ledger_gives_the_bits_of_the_steps(
    kind: Any, dtype: torch.dtype, each: int, stored: torch.dtype, opened: Open
) -> None:
    tuned, other = opened(dtype, kind, stored=stored), opened(dtype, kind, stored=stored)
    start = digest(tuned)
    for at in range(0, 12, each):
        tuned.apply(steps(at, each))
    moved = digest(tuned)
    assert moved != start
    other.reset(tuned.state())
    assert digest(other) == moved
    tuned.reset(tuned.state())
    assert digest(tuned) == moved
    tuned.reset(None)
    assert digest(tuned) == start


@dtypes
def test_a_state_goes_on_from_the_present_one_or_from_the_one_set_aside(
    dtype: torch.dtype, opened: Open, tmp_path: Path
) -> None:
    first, second = steps(0, 5), steps(5, 4)
    tuned, other = opened(dtype), opened(dtype)
    tuned.reset(first)
    tuned.keep(tmp_path)
    before = digest(tuned)
    for at in range(3):
        tuned.apply(steps(100 + at, 1))
    tuned.reset(first)
    assert digest(tuned) == before
    tuned.apply(steps(200, 2))
    tuned.reset(first + second)
    other.reset(first + second)
    assert digest(tuned) == digest(other) != before
    tuned.apply(steps(300, 1))
    other.apply(steps(300, 1))
    assert digest(tuned) == digest(other), "remainders come back with their weights"


@dtypes
def test_a_direction_that_is_moved_again_is_summed_within_its_interval(
    dtype: torch.dtype, opened: Open, tmp_path: Path
) -> None:
    tuned, other = opened(dtype), opened(dtype)
    for interval in range(3):
        tuned.keep(tmp_path)
        for at in range(4):
            tuned.apply(steps(10 * interval, 2) + steps(at, 2))
        tuned.reset(tuned.state())
        other.reset(tuned.state())
        assert digest(other) == digest(tuned)
    assert len(tuned.state().keys) > len(set(tuned.state().keys.tolist()))
    fresh = opened(dtype)
    fresh.reset(tuned.state())
    assert digest(fresh) == digest(tuned)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_step_far_below_the_last_place_is_not_lost(dtype: torch.dtype, opened: Open) -> None:
    tuned, count, size = opened(dtype), 400, 2e-6
    base = {name: held(one, dtype) for name, one in tuned._weights._base.items()}
    step = Projected.of(7, size)
    for _ in range(count):
        tuned.apply(step)
    space = BoundSpace(Rademacher(), KEY)
    for name, weight in tuned.named_weights():
        exact = base[name].double()
        moved = torch.empty_like(base[name])
        space.axpy(moved, torch.zeros_like(moved), count * size, name, 7)
        exact = exact + moved.double()
        place = torch.finfo(dtype).eps * exact.abs().clamp(min=2.0**-14)
        assert bool(((weight.double() - exact).abs() <= 0.55 * place).all()), name


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_narrow_step_draws_each_direction_once_however_many_came_before(
    dtype: torch.dtype, opened: Open
) -> None:
    tuned, drawn = opened(dtype, space=Counted), []
    space: Any = tuned._directions
    for at in range(60):
        before = space.drawn
        tuned.apply(steps(at, 1))
        tuned.reset(tuned.state())
        drawn.append(space.drawn - before)
    assert set(drawn) == {len(list(tuned.named_weights()))}


@dtypes
def test_a_round_draws_what_is_new_however_many_came_before(
    dtype: torch.dtype, opened: Open, tmp_path: Path
) -> None:
    tuned, drawn, state = opened(dtype, space=Counted), [], Projected.none()
    space: Any = tuned._directions
    for round in range(12):
        before = space.drawn
        for device in range(3):
            tuned.reset(state)
            tuned.keep(tmp_path)
            for at in range(4):
                tuned.apply(steps(1000 * round + 100 * device + at, 1))
        state = Projected.chain([state, *(steps(1000 * round + 100 * device, 4) for device in range(3))])
        tuned.reset(state)
        drawn.append(space.drawn - before)
    assert len(set(drawn)) == 1
    assert drawn[0] <= 2 * 12 * len(list(tuned.named_weights())), (
        "a device's steps, and the round's once more"
    )
    other = opened(dtype)
    other.reset(state)
    assert digest(other) == digest(tuned)


@dtypes
def test_an_interrupt_within_a_step_or_on_the_way_back_leaves_the_ledgers_weights(
    dtype: torch.dtype, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, other = opened(dtype), opened(dtype)
    tuned.reset(steps(0, 5))
    tuned.keep(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    name = "follow" if dtype != torch.float32 else "replay"
    with monkeypatch.context() as patch:
        patch.setattr(BoundSpace, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            tuned.apply(steps(5, 4))
    other.reset(tuned.state())
    tuned._weights.recover()
    assert digest(tuned) == digest(other)
    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tuned.reset(steps(0, 5))
    tuned._weights.recover()
    assert digest(tuned) == digest(other), "the state was not given up yet"
    tuned.reset(steps(0, 5))
    other.reset(steps(0, 5))
    assert digest(tuned) == digest(other)


def test_what_is_set_aside_has_no_name_and_no_memory(tmp_path: Path) -> None:
    tensors = [
        torch.randn(70, 30),
        torch.randn(5).bfloat16(),
        torch.arange(7, dtype=torch.int16),
        torch.tensor(2.5),
    ]
    bits = [bytes(one.reshape(-1).view(torch.uint8).numpy()) for one in tensors]
    snapshot = Snapshot(tmp_path)
    snapshot.write(torch.zeros_like(one) for one in tensors)
    snapshot.write(tensors)
    assert not list(tmp_path.iterdir())
    for one in tensors:
        one.zero_()
    snapshot.read(tensors)
    assert [bytes(one.reshape(-1).view(torch.uint8).numpy()) for one in tensors] == bits
    with pytest.raises(OutputError, match="shorter"):
        snapshot.read([torch.zeros(10_000)])


def test_a_full_disk_is_one_line(tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="set the weights aside"):
        Snapshot(tmp_path / "absent")

    class Full:
        def close(self) -> None: ...

        def seek(self, at: int) -> None: ...

        def write(self, data: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: Full())
    tuned = opened(torch.float32)
    tuned.reset(steps(0, 2))
    with pytest.raises(OutputError, match=r"No space left.*free as many bytes") as refusal:
        tuned.keep(tmp_path)
    assert refusal.value.exit_code == 6
    tuned.reset(steps(0, 2))
