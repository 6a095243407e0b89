"""Every record is seen once before any is seen again: over intervals, rounds, resumes and whoever is asked."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from federations import METHODS, SEED, MakeToy, examples

from edgetune.core.batch import Batch, response_loss
from edgetune.data.encode import Example, collate
from edgetune.federation.device import Device
from edgetune.federation.server import Server
from edgetune.federation.steps import draw_batches
from edgetune.federation.turns import Turns, sample_devices


def rows(batches: Iterator[Batch], count: int) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in itertools.islice(batches, count) for row in batch.input_ids.tolist()]


def everything(share: Sequence[Example]) -> list[tuple[int, ...]]:
    return [tuple(row) for row in collate(share, 0).input_ids.tolist()]


@pytest.mark.parametrize(("records", "size"), [(5, 2), (6, 3), (3, 7), (1, 4)])
def test_batches_visit_every_example_before_any_again(records: int, size: int) -> None:
    share = examples(0, records)
    seen = rows(draw_batches(share, size, 0, seed=1, device=3), records)
    epochs = [seen[first : first + records] for first in range(0, len(seen), records)]
    assert all(sorted(epoch) == sorted(everything(share)) for epoch in epochs)
    if records > 4:
        assert len({tuple(epoch) for epoch in epochs}) > 1, "every epoch has an order of its own"


def test_a_batch_holds_no_record_twice() -> None:
    share = examples(0, 3)
    for batch in itertools.islice(draw_batches(share, 50_000, 0, seed=1, device=3), 4):
        assert sorted(tuple(row) for row in batch.input_ids.tolist()) == sorted(everything(share))


def test_batches_go_on_where_a_run_was_interrupted() -> None:
    share = examples(0, 5)
    whole = rows(draw_batches(share, 3, 0, seed=1, device=3), 20)
    for step in (0, 1, 7, 19):
        assert rows(draw_batches(share, 3, 0, seed=1, device=3, first=step), 20 - step) == whole[3 * step :]
    assert rows(draw_batches(share, 3, 0, seed=2, device=3), 20) != whole
    assert rows(draw_batches(share, 3, 0, seed=1, device=4), 20) != whole


class Seen:
    """An objective that takes notes of its batches, once each however often it is evaluated on one."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []
        self._last: Batch | None = None

    def __call__(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if batch is not self._last:
            self.rows += [tuple(row) for row in batch.input_ids.tolist()]
        self._last = batch
        return response_loss(model, batch)


@pytest.mark.parametrize("name", ["fedkseed", "mezo", "lora"])
def test_an_epoch_of_tune_sees_every_record_once(name: str, toy: MakeToy) -> None:
    run = toy(name)
    share, seen = examples(0, 4), Seen()  # what a toy's `tune` holds
    run.worker.objective = seen
    run.worker.method = replace(METHODS[name], batch_size=1, local_steps=3)
    run.tune(4)
    assert len(seen.rows) == 12
    for first in range(0, 12, 4):
        assert sorted(seen.rows[first : first + 4]) == sorted(everything(share))


def test_a_device_covers_its_records_over_the_rounds_that_ask_it(toy: MakeToy) -> None:
    run = toy("fedkseed")
    run.worker.method = replace(METHODS["fedkseed"], batch_size=1, local_steps=3)
    held = {id: examples(id, 7) for id in range(4)}
    seen = {id: Seen() for id in held}

    class Watched(Device):
        def answer(self, *given: Any) -> bytes:
            run.worker.objective = seen[self.id]
            return super().answer(*given)

    run.devices = {id: Watched(id, share, run.worker, pad_id=0) for id, share in held.items()}
    run.federate(12, participation=0.5)
    assert sorted(len(one.rows) for one in seen.values()) != [18] * 4, "devices were asked unequally often"
    for id, share in held.items():
        times = Counter(seen[id].rows)
        whole, rest = divmod(len(seen[id].rows), len(share))
        assert whole >= 1
        assert sorted(times.values()) == [whole] * (len(share) - rest) + [whole + 1] * rest


def test_turns_are_counted_from_the_samples_of_the_rounds() -> None:
    devices = [3, 5, 8, 9, 12]
    asked = [sample_devices(devices, 0.4, seed=SEED, round=round) for round in range(1, 31)]
    turns = Turns(devices, 0.4, seed=SEED)
    for round in (1, 2, 17, 31, 4, 30):
        for device in devices:
            assert turns.before(device, round) == sum(device in one for one in asked[: round - 1])
    late = Turns([12, 9, 8, 5, 3], 0.4, seed=SEED)
    assert [late.before(device, 31) for device in devices] == [turns.before(device, 31) for device in devices]


def test_a_device_that_is_told_no_turn_goes_on_as_if_asked_in_every_round(toy: MakeToy) -> None:
    run, seen, share = toy("fedkseed"), Seen(), examples(0, 7)
    run.worker.objective = seen
    run.worker.method = replace(METHODS["fedkseed"], batch_size=1, local_steps=3)
    state, digest = run.worker.tuned.state(), run.worker.identity
    device = Device(0, share, run.worker, pad_id=0)
    for done in range(3):
        server = Server(run.worker.method, digest, [0], participation=1, seed=SEED, state=state, round=done)
        device.answer(server.open_round()[0])
    expected = rows(draw_batches(share, 1, 0, seed=SEED, device=0), 9)
    assert seen.rows == expected
