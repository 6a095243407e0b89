"""A server and four devices with addresses, keys and slow links of their own; the power fails on both sides."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import namespaces
import pytest
from fleets import Federation
from processes import Processes, until
from replaying import replayed

pytest.importorskip("flwr")
pytestmark = pytest.mark.fleet
DEVICES, ROUNDS = 4, 5
DEVICE_DIES, SERVER_DIES = 2, 4
"""In which rounds."""
ENOUGH = {"federation.minimum_replies": 3}
SHORT, LONG = "6", "30"
"""Seconds that a round waits for the one that is dead, where a payload takes no time and where it takes six seconds."""


def wait_for_round(fleet: Federation, round: int, timeout: float = 90) -> None:
    """Wait until a round is in the log."""
    log = fleet.out / "events.jsonl"
    assert until(lambda: log.exists() and round in fleet.last_of_rounds("round"), timeout), (
        f"no round {round}"
    )


def wait_until_asked(fleet: Federation, round: int, timeout: float = 90) -> None:
    """Wait until a round is asked: the one before is on disk by then, which its line in the log does not say."""
    status = fleet.out / "status.json"

    def asks() -> bool:
        said = json.loads(status.read_text()) if status.exists() else {}
        return bool(said.get("round") == round and said.get("phase") == "asking")

    assert until(asks, timeout), f"round {round} was not asked"


def report(method: str, fleet: Federation, carried: dict[str, tuple[int, int]]) -> None:
    """Print bytes by device: in the log, and on the interfaces since the server's second start."""
    rounds: list[dict[str, Any]] = [
        one for number, one in fleet.last_of_rounds("hosts_round").items() if number >= SERVER_DIES
    ]
    for name, (up, down) in carried.items():
        said = [sum(one[f"transport_{way}_bytes"].get(name, 0) for one in rounds) for way in ("up", "down")]
        print(f"{method} device {name}: log {said[0]} up {said[1]} down; interface {up} up {down} down")


@pytest.mark.skipif(bool(namespaces.why_not()), reason=namespaces.why_not() or "there are namespaces")
@pytest.mark.parametrize(("method", "wait"), [("fedkseed", SHORT), ("fedit", LONG)])
def test_five_hosts_with_two_deaths_end_as_the_local_engine_over_the_same_replies(
    tmp_path: Path, method: str, wait: str
) -> None:
    with namespaces.network(DEVICES, tmp_path) as net, Processes(tmp_path) as processes:
        fleet = Federation(tmp_path, processes, method, DEVICES, ROUNDS, ENOUGH, net.names)
        server = fleet.server(net.server.address, "--timeout", wait, prefix=net.server.prefix)
        server.start().wait_for("listening on")
        devices = [
            fleet.device(id, net.way(id, fleet.port), prefix=host.prefix).start()
            for id, host in enumerate(net.devices)
        ]
        wait_for_round(fleet, DEVICE_DIES - 1)
        devices[3].kill()
        wait_for_round(fleet, DEVICE_DIES)
        devices[3].start()
        wait_until_asked(fleet, SERVER_DIES - 1)
        assert server.code is None
        server.kill()
        server.start(f"after_first_reply:{SERVER_DIES}")
        assert server.wait(180) == -signal.SIGKILL, server.said
        before = [host.counted() for host in net.devices]
        server.start()
        codes = [one.wait(180) for one in (server, *devices)]
        after = [host.counted() for host in net.devices]
    carried = {
        str(id): (new.sent - old.sent, new.received - old.received)
        for id, (old, new) in enumerate(zip(before, after, strict=True))
    }
    assert codes == [0] * 5
    report(method, fleet, carried)
    last, counted = fleet.last_of_rounds("hosts_round"), fleet.last_of_rounds("round")
    print({round: (one["accepted"], one["unanswered"]) for round, one in last.items()})
    print({round: (one["payload_up_bytes"], one["payload_down_bytes"]) for round, one in counted.items()})
    why = {round: {int(id): said for id, said in one["unanswered"].items()} for round, one in last.items()}
    killed = [round + 1 for round in resumed(fleet) if round < ROUNDS]
    expected, told = replayed(fleet.recipe, tmp_path / "alone", fleet.accepted, killed, why)
    assert len(last) == ROUNDS
    assert 3 not in last[DEVICE_DIES]["accepted"]
    assert 3 in last[ROUNDS]["accepted"], "it did not come back"
    assert fleet.digest == expected.digest
    for round, one in told.items():
        for name, field in (("digest", "digest"), ("up", "payload_up_bytes"), ("down", "payload_down_bytes")):
            assert counted[round][field] == one[name], f"round {round}, {field}"
    for name, (up, down) in carried.items():
        said = [
            sum(last[one][f"transport_{way}_bytes"].get(name, 0) for one in (4, 5)) for way in ("up", "down")
        ]
        assert 0 < said[0] < up
        assert 0 < said[1] < down


def resumed(fleet: Federation) -> list[int]:
    """Return after which rounds the server went on."""
    return [one["round"] for one in fleet.events() if one["event"] == "run_resumed"]
