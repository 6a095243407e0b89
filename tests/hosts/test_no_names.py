"""A run in a network of its own, whose only name server is the test's: nobody asks it for anything."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra flower is not installed")
from engines import certified
from namespaces import mark, remove, run, why_not
from processes import Processes

pytestmark = pytest.mark.fleet
RECIPE = """
[method]
name = "fedkseed"
local_steps = 1
batch_size = 1
[federation]
rounds = 2
participation = 1
[data]
held_out = 4
max_tokens = 40
[evaluation]
samples = 1
"""
RESOLVER = """
import socket
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.bind(("127.0.0.1", 53))
print("ready", flush=True)
while True:
    print("asked for", line.recv(4096)[12:], flush=True)
"""


@pytest.fixture
def place() -> Iterator[str]:
    """Return a namespace without a way out, in which every look-up goes to 127.0.0.1."""
    if why_not():
        pytest.skip(why_not())
    name = f"edgetune-{mark()}-names"
    settings = Path("/etc/netns") / name
    there = settings.parent.exists()
    settings.mkdir(parents=True)
    (settings / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    yield name
    remove(name)
    (settings / "resolv.conf").unlink()
    settings.rmdir()
    if not there:
        settings.parent.rmdir()


def test_server_and_device_ask_no_name_server(place: str, tmp_path: Path) -> None:
    certs, prefix = certified(tmp_path / "certs", 1), ["ip", "netns", "exec", place]
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "local.jsonl").write_text(json.dumps({"question": "one?", "answer": "1"}) + "\n")
    with Processes(tmp_path, {"HF_HUB_OFFLINE": "0"}) as processes:
        names = processes.start("names", prefix=[*prefix, sys.executable, "-c", RESOLVER])
        names.wait_for("ready")
        server = processes.start(
            "server", "server", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--listen", "127.0.0.1:9450",
            "--certs", certs, prefix=prefix,
        )  # fmt: skip
        device = processes.start(
            "device", "device", "--server", "127.0.0.1:9450", "--data", tmp_path / "local.jsonl",
            "--key", certs / "keys/0.key", "--state", tmp_path / "state", prefix=prefix,
        )  # fmt: skip
        assert (server.wait(120), device.wait(30)) == (0, 0), server.said + device.said
        assert "asked for" not in names.said
        asking = [*prefix, sys.executable, "-c", "import socket; socket.getaddrinfo('flower.ai', 443)"]
        processes.start("asks", prefix=asking).wait()
        names.wait_for("asked for .*flower", 5)
