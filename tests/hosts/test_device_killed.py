"""A device that is killed in any phase of its answer returns, and the run ends as if nothing had happened."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from fleets import Federation
from killing import DEVICE
from processes import Processes
from replaying import undisturbed

pytest.importorskip("flwr")
pytestmark = pytest.mark.fleet


@pytest.mark.parametrize(
    ("method", "phases"),
    [*(("fedkseed", [phase] * 4) for phase in DEVICE), ("fedit", list(DEVICE))],
    ids=[*DEVICE, "fedit"],
)
def test_a_device_killed_in_a_phase_of_every_round_is_waited_for_and_counts_once(
    tmp_path: Path, method: str, phases: list[str]
) -> None:
    with Processes(tmp_path) as processes:
        fleet = Federation(tmp_path, processes, method, rounds=len(phases))
        server, other, device = fleet.server().start(), fleet.device(0).start(), fleet.device(1)
        for round, phase in enumerate(phases, start=1):
            count = (
                1 if round == 1 else 2
            )  # after the first start, its first answer is the round that it missed
            device.start(f"{phase}:{count}")
            assert device.wait(120) == -signal.SIGKILL, device.said
            assert f"killed itself: {phase}, round {count}" in device.said
            assert max(fleet.last_of_rounds("round"), default=0) == round - 1, "the round did not wait"
        device.start()
        codes = [one.wait(60) for one in (server, other, device)]
    expected, told = undisturbed(fleet.recipe, tmp_path / "alone")
    counted = fleet.last_of_rounds("round")
    assert codes == [0, 0, 0]
    assert fleet.digest == expected.digest
    assert fleet.accepted == {round: [0, 1] for round in told}
    assert sum(one["event"] == "round" for one in fleet.events()) == len(told), "a round was done twice"
    for round, one in told.items():
        assert counted[round]["digest"] == one["digest"]
        assert counted[round]["payload_up_bytes"] == one["up"]
        assert counted[round]["payload_down_bytes"] == one["down"]
