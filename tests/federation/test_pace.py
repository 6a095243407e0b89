"""How far a run is, told from its first step on."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.core.events import Event, RoundFinished
from edgetune.federation.pace import STEPPING, Pace
from edgetune.recipe.recipe import load_recipe
from edgetune.run import pipeline

SMALL = [
    "data.records=60", "data.held_out=4", "data.calibration=4", "data.max_tokens=64", "split.kind=iid",
    "method.local_steps=3", "federation.devices=3", "federation.participation=1.0", "federation.rounds=2",
    "federation.workers=1", "evaluation.max_new_tokens=2", "evaluation.samples=0",
]  # fmt: skip


def test_a_round_is_as_far_as_its_devices_together() -> None:
    told: list[tuple[str, float, int]] = []
    pace = Pace(lambda *what: told.append(what), "rounds", 10)
    pace.begin(3, devices=2)
    pace.step("device 7", 1, 4)
    pace.step("device 9", 2, 4)  # beside it, in another process
    pace.step("device 7", 4, 4)
    pace.step("device 9", 4, 4)
    pace.begin(4, devices=2)
    pace.step("device 7", 1, 4)
    assert {total for what, _, total in told if what == "rounds"} == {10}
    rounds = [done for what, done, _ in told if what == "rounds"]
    parts = [3, *(3 + STEPPING * part for part in (1 / 8, 3 / 8, 3 / 4, 1)), 4, 4 + STEPPING / 8]
    assert rounds == pytest.approx(parts)
    assert [one for one in told if one[0] == "device 9"] == [("device 9", 2, 4), ("device 9", 4, 4)]


@pytest.mark.parametrize(("single", "bar"), [(False, "rounds"), (True, "intervals")])
def test_a_run_says_how_far_it_is_before_its_first_round_ends(single: bool, bar: str, tmp_path: Path) -> None:
    heard: list[float | str] = []

    def listen(event: Event) -> None:
        if isinstance(event, RoundFinished):
            heard.append("round")

    def progress(what: str, done: float, total: int) -> None:
        if what == bar:
            assert total == 2
            heard.append(done)

    recipe = load_recipe(None, SMALL, method__name="mezo", federation__devices=1 if single else 3)
    pipeline.run(
        recipe,
        tmp_path,
        command="x",
        stages=pipeline.TUNING,
        single=single,
        listener=listen,
        progress=progress,
    )
    first = heard[: heard.index("round")]
    steps = 3 if single else 9
    assert first == pytest.approx([STEPPING * step / steps for step in range(steps + 1)])
    assert heard[-2:] == ["round", 2]
    assert heard.count(2) == 1, "the bar ends once"
