"""A server that is killed in any phase of any round goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from fleets import Federation, back_after
from killing import SERVER
from processes import Processes
from replaying import replayed, undisturbed

SOON = 10.0
"""Seconds from a server's start to the first message of its round, at most, on a machine that does nothing else."""
pytestmark = pytest.mark.fleet


def forgotten(kills: list[tuple[str, int]], rounds: int) -> set[int]:
    """Return the rounds before which a server forgot who holds which state."""
    return {round + (phase == "after_commit") for phase, round in kills} & set(range(1, rounds + 1))


@pytest.mark.parametrize(
    ("method", "kills"),
    [
        *(("fedkseed", [(phase, round) for round in range(1, 5)]) for phase in SERVER),
        ("fedit", [(phase, at) for at, phase in enumerate(SERVER, start=1)]),
    ],
    ids=[*SERVER, "fedit"],
)
def test_a_server_killed_in_a_phase_of_every_round_ends_with_the_same_digest(
    tmp_path: Path, method: str, kills: list[tuple[str, int]]
) -> None:
    rounds, seconds = max(round for _, round in kills), list[float]()
    with Processes(tmp_path) as processes:
        fleet = Federation(tmp_path, processes, method, rounds=rounds)
        server, devices = fleet.server(), [fleet.device(id) for id in (0, 1)]
        for one in devices:
            one.start()
        for at in range(len(kills) + 1):
            phase, round = kills[at] if at < len(kills) else ("", 0)
            begun = time.monotonic()
            server.start(f"{phase}:{round}" if phase else None)
            if at and (round or rounds + 1) > kills[at - 1][1] and kills[at - 1] != ("after_commit", rounds):
                seconds.append(back_after(server, fleet.out / "status.json", begun))
            ended = server.wait(120)
            assert ended == (-signal.SIGKILL if phase else 0), server.said
            assert (f"killed itself: {phase}, round {round}" in server.said) == bool(phase)
        codes = [one.wait(30) for one in devices]
    expected, told = undisturbed(fleet.recipe, tmp_path / "alone")
    counted = fleet.last_of_rounds("round")
    print(f"\n{method} {kills[0][0]}: seconds from start to the round: {[f'{one:.1f}' for one in seconds]}")
    assert codes == [0, 0]
    assert fleet.digest == expected.digest
    assert {round: one["digest"] for round, one in counted.items()} == {
        round: one["digest"] for round, one in told.items()
    }
    assert fleet.accepted == {key: [0, 1] for key in range(1, rounds + 1)}
    _, bytes = replayed(fleet.recipe, tmp_path / "killed", fleet.accepted, forgotten(kills, rounds))
    for round, one in counted.items():
        assert one["payload_up_bytes"] == bytes[round]["up"]
        assert one["payload_down_bytes"] == bytes[round]["down"], f"round {round}"
    if "EDGETUNE_TIMES" in os.environ:
        with Path(os.environ["EDGETUNE_TIMES"]).open("a") as file:
            file.write(json.dumps([method, kills[0][0], seconds]) + "\n")
    assert max(seconds, default=0) < SOON
