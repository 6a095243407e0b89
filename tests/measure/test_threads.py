"""The number of threads follows measured times, not the number of cores."""

from __future__ import annotations

import pytest
import torch

from edgetune.measure import threads
from edgetune.measure.threads import worthwhile_threads


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> object:
    before = torch.get_num_threads()
    yield None
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0, 2: 0.5, 4: 0.26}, 4),  # idle cores
        ({1: 1.0, 2: 0.5, 4: 0.49}, 2),  # two of them are busy
        ({1: 1.0, 2: 1.9, 4: 3.0}, 1),  # all of them are
        ({1: 1.0, 2: 0.95, 4: 0.1}, 1),  # gains nothing worth a second thread
    ],
)
def test_threads_are_doubled_while_that_pays(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], chosen: int
) -> None:
    now = [0.0]

    def work() -> None:
        now[0] += seconds[torch.get_num_threads()]

    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    assert worthwhile_threads(work, 4) == chosen
    assert torch.get_num_threads() == chosen


def test_where_one_thread_is_allowed_nothing_is_measured() -> None:
    assert worthwhile_threads(lambda: pytest.fail("not needed"), 1) == 1
