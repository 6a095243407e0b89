"""The commands of docs/fleet.md, one after the other: server and two devices over TLS are the simulation's equal."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from fleets import free_port
from processes import Processes

from edgetune.cli.app import execute
from edgetune.core.event_log import read_events
from edgetune.core.ledger import read_ledger

pytest.importorskip("flwr")
PAGE = Path(__file__).parents[2] / "docs" / "fleet.md"
PORT = "127.0.0.1:9092"
FEW = {
    "data.records": 40, "data.held_out": 4, "data.calibration": 4, "data.max_tokens": 48, "split.minimum": 1,
    "evaluation.max_new_tokens": 4, "method.local_steps": 2, "method.learning_rate": 1e-6, "method.pool": 64,
}  # fmt: skip
"""What the page leaves at the published numbers, so that a test takes seconds."""


def commands() -> list[list[str]]:
    """Return the words of every command of the page's `sh` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


def test_the_page_runs_and_both_engines_give_the_same_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    here = f"127.0.0.1:{free_port()}"
    few = [word for name, value in FEW.items() for word in ("--set", f"{name}={value}")]
    done = list[str]()
    with Processes(tmp_path) as processes:
        stay = []
        for number, words in enumerate(commands()):
            words = [word.replace(PORT, here) for word in words]
            name, more = words[0], few if words[0] in ("federate", "split", "server") else []
            done.append(name)
            if name in ("server", "device"):
                stay.append(processes.start(f"{name}-{number}", *words, *more))
                stay[-1].wait_for("listening on" if name == "server" else "connected to")
            elif name == "status" and here in words:
                assert execute([*words, "--json"]) == 0
                assert '"registered": 2' in capsys.readouterr().out
            else:
                assert execute([*words, *more]) == 0
        codes = [one.wait(60) for one in stay]
        said = stay[0].said
    assert done == ["federate", "certs", "split", "server", "device", "device", "status", "status"]
    assert codes == [0, 0, 0]
    digest = read_ledger(Path("run/tuned.ledger")).digest
    assert digest == read_ledger(Path("simulated/tuned.ledger")).digest
    assert f"digest {digest[:12]}, round 2" in said
    fields = ("round", "payload_up_bytes", "payload_down_bytes", "digest", "loss")
    alone, apart = (
        [
            {name: one[name] for name in fields}
            for one in read_events(Path(folder) / "events.jsonl")
            if one["event"] == "round"
        ]
        for folder in ("simulated", "run")
    )
    assert alone == apart
    network = [one for one in read_events(Path("run/events.jsonl")) if one["event"] == "hosts_round"]
    assert [one["accepted"] for one in network] == [[0, 1], [0, 1]]
    for one, round in zip(network, apart, strict=True):
        for way in ("up", "down"):
            carried = one[f"transport_{way}_bytes"]
            assert sorted(carried) == ["0", "1"]
            assert all(carried[str(id)] > round[f"payload_{way}_bytes"][id] for id in (0, 1))
    assert all(Path("run", name).is_file() for name in ("summary.json", "report.html"))
