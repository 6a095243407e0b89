"""A server whose devices are not what they should be: one line on both sides, rounds go on, nobody calls home."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra flower is not installed")
from engines import certified
from processes import Processes, Started, until

from edgetune.models.embedded import embedded_folder

pytestmark = pytest.mark.fleet
RECIPE = """
[method]
name = "fedkseed"
local_steps = 1
batch_size = 1
[federation]
rounds = 100000
participation = 1
minimum_replies = 1
[data]
held_out = 4
max_tokens = 40
[evaluation]
every = 100000
samples = 1
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Fleet:
    """A server with one good device, and room for another."""

    folder: Path
    processes: Processes
    port: int
    server: Started
    good: Started

    def device(self, name: str, *more: str | Path, key: Path | None = None, **environment: str) -> Started:
        """Start another device, with the second key if none is said."""
        key = key or self.folder / "certs/keys/1.key"
        return self.processes.start(
            name, "device", "--server", f"127.0.0.1:{self.port}", "--data", self.folder / "local.jsonl", "--key", key,
            "--state", self.folder / "state", *more, environment=environment,
        )  # fmt: skip

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "run/events.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [one for one in found if one["event"] == kind]

    def goes_on(self) -> None:
        """Wait for two more rounds."""
        done = len(self.events("round"))
        assert until(lambda: len(self.events("round")) > done + 1, 60), self.server.said[-2000:]

    def refused(self, why: str) -> list[dict[str, Any]]:
        return [one for one in self.events("device") if one["state"] == "refused" and why in one["why"]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    certs = certified(folder / "certs", 2)
    (folder / "recipe.toml").write_text(RECIPE)
    rows = [{"question": f"what is {n}?", "answer": f"{n} it is"} for n in range(6)]
    (folder / "local.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(Path(__file__).with_name("watched.py"), folder / "sitecustomize.py")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    home = {"EDGETUNE_TEST_NOTES": str(folder / "notes"), "PYTHONPATH": path, "HF_HUB_OFFLINE": "0"}
    port = free_port()
    with Processes(folder, home) as processes:
        server = processes.start(
            "server", "server", folder / "recipe.toml", "--out", folder / "run", "--listen", f"127.0.0.1:{port}",
            "--certs", certs, "--timeout", "2", "--wait", "1",
        )  # fmt: skip
        server.wait_for("listening on")
        made = Fleet(folder, processes, port, server, server)
        made.good = made.device("good", key=certs / "keys/0.key")
        assert until(lambda: bool(made.events("round")), 120), server.said
        yield made
        assert server.code is None, server.said
        server.stop()


def one_line(device: Started, code: int, *said: str) -> None:
    """Assert how a device ended: with a code, and one line that says why."""
    assert device.wait(60) == code, device.said
    errors = [line for line in device.said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, device.said
    assert all(one in errors[0] for one in said), errors
    assert "Traceback" not in device.said


def test_another_base(fleet: Fleet) -> None:
    other = fleet.folder / "base"
    shutil.copytree(embedded_folder(), other)
    (weights,) = other.glob("*.safetensors")
    whole = bytearray(weights.read_bytes())
    whole[-2] ^= 1
    weights.write_bytes(whole)
    device = fleet.device("base", "--model", other)
    one_line(device, 5, "the base model is another than the server's", "--model")
    assert until(lambda: bool(fleet.refused("the base model is another than the server's")), 10)
    assert fleet.refused("the base model")[0]["device"] == 1
    assert "device 1 refused: the base model is another than the server's" in fleet.server.said
    fleet.goes_on()


def test_an_old_version_of_the_method(fleet: Fleet) -> None:
    one_line(fleet.device("old", EDGETUNE_TEST_OLD="1"), 5, "the method is another version than the server's")
    assert until(lambda: bool(fleet.refused("the method is another version")), 10)
    assert "device 1 refused: the method is another version" in fleet.server.said
    fleet.goes_on()


def test_a_key_that_nobody_registered(fleet: Fleet) -> None:
    other = certified(fleet.folder / "other", 1)
    device = fleet.device("stranger", "--ca", fleet.folder / "certs/ca.pem", key=other / "keys/0.key")
    one_line(device, 11, "the server turns this device away: this key is not registered")
    assert until(lambda: bool(fleet.refused("this key is not registered")), 10)
    assert "a stranger refused: this key is not registered" in fleet.server.said
    fleet.goes_on()


@pytest.mark.parametrize(
    ("name", "more", "code", "said"),
    [
        ("authority", ["--ca", "other/ca.pem"], 11, "the server's certificate is refused"),
        ("plain", ["--insecure"], 11, "the server speaks TLS (leave out --insecure)"),
        ("nobody", ["--server", "127.0.0.1:9", "--give-up", "0.5"], 11, "no answer for 0.5 seconds"),
        ("no-data", ["--data", "not-there.jsonl"], 3, "no such file"),
    ],
)
def test_a_connection_that_cannot_be(fleet: Fleet, name: str, more: list[str], code: int, said: str) -> None:
    certified(fleet.folder / "other", 1)
    words = [str(fleet.folder / one) if one.endswith(".pem") else one for one in more]
    one_line(fleet.device(name, *words), code, said)
    assert fleet.server.code is None


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk needs root")
def test_a_full_disk_on_the_device(fleet: Fleet) -> None:
    disk = fleet.folder / "disk"
    with mounted(disk, "size=64k,nr_inodes=1"):
        device = fleet.device("disk", "--state", disk / "state")
        one_line(device, 6, "cannot write: No space left on device")
    assert until(lambda: bool(fleet.refused("No space left on device")), 10)
    assert "device 1 refused: cannot write: No space left on device" in fleet.server.said
    fleet.goes_on()


def test_nobody_looked_up_a_name_or_called_elsewhere(fleet: Fleet) -> None:
    fleet.goes_on()
    notes = set((fleet.folder / "notes").read_text().splitlines())
    assert "call 127.0.0.1" in notes
    assert notes <= {"name 127.0.0.1", "call 127.0.0.1", "name None"}, notes


def test_no_secret_is_in_any_output(fleet: Fleet) -> None:
    secrets = [(fleet.folder / "certs/status.token").read_bytes().strip()]
    for path in [*fleet.folder.glob("certs/keys/*.key"), fleet.folder / "certs/server.key"]:
        secrets += [line for line in path.read_bytes().splitlines() if b"-----" not in line]
    for path in [
        *fleet.folder.glob("*.log"),
        *(one for one in (fleet.folder / "run").rglob("*") if one.is_file()),
    ]:
        data = path.read_bytes()
        assert not [one for one in secrets if one in data], path
        assert b"Traceback" not in data, path


class mounted:
    """A small disk, as long as the context lasts."""

    def __init__(self, folder: Path, options: str) -> None:
        self._folder, self._options = folder, options

    def __enter__(self) -> Path:
        self._folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", self._options, "tmpfs", self._folder], check=True)
        return self._folder

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self._folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk needs root")
def test_a_full_disk_on_the_server_ends_it_and_what_was_committed_stays(tmp_path: Path) -> None:
    from edgetune.core.ledger import read_ledger

    certs, port, disk = certified(tmp_path / "certs", 1), free_port(), tmp_path / "disk"
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "local.jsonl").write_text('{"question": "one?", "answer": "1"}\n')
    with mounted(disk, "size=256k"), Processes(tmp_path) as processes:
        run = disk / "run"
        server = processes.start(
            "server", "server", tmp_path / "recipe.toml", "--out", run, "--listen", f"127.0.0.1:{port}",
            "--certs", certs, "--timeout", "2",
        )  # fmt: skip
        device = processes.start(
            "device", "device", "--server", f"127.0.0.1:{port}", "--data", tmp_path / "local.jsonl",
            "--key", certs / "keys/0.key", "--state", tmp_path / "state",
        )  # fmt: skip
        server.wait_for(r"round +1:", 120)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 512)
            except OSError:
                pass
        one_line(server, 6, "No space left on device")
        committed = read_ledger(run / "tuned.ledger").round
        device.wait_for(r"no answer from .*; trying again", 60)
        filler.unlink()
        server.start()
        server.wait_for(rf"round +{committed + 1}:", 120)
        device.wait_for("answers again", 60)
        assert "Traceback" not in device.said
        server.stop()
