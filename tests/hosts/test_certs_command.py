"""What `edgetune certs` says: that it is for testing, what is new, and the line to run on every device."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError
from edgetune.hosts.keys import fingerprint, registered

pytest.importorskip("cryptography", reason="the extra flower is not installed")


def test_every_device_gets_one_line_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my certs"
    assert (
        execute(["certs", str(out), "--devices", "3", "--host", "fleet.example.org", "--host", "10.0.0.1"])
        == 0
    )
    said = capsys.readouterr().out
    assert "for testing" in said.splitlines()[0]
    for device, key in registered(out).items():
        (line,) = [line for line in said.splitlines() if line.startswith(f"on device {device} ")]
        assert fingerprint(key) in line
        assert str(out / "keys" / f"{device}.key") in line
        command = shlex.split(line.partition(":  ")[2])
        assert command[:4] == ["edgetune", "device", "--server", "fleet.example.org:9092"]
        assert command[-2:] == ["--key", f"{device}.key"]
    (server,) = [line for line in said.splitlines() if line.startswith("on the server:")]
    assert shlex.split(server.partition(":  ")[2])[-1] == str(out)


def test_a_second_call_says_what_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["certs", str(tmp_path)]) == 0
    assert "1 device, 1 of them new" in capsys.readouterr().out
    assert execute(["certs", str(tmp_path), "--devices", "2", "--host", "fd00::1"]) == 0
    said = capsys.readouterr().out
    assert "ca.pem: the authority, the old one" in said
    assert "because it is for fd00::1 as well" in said
    assert "2 devices, 1 of them new" in said
    assert "--server [fd00::1]:9092" in said


def test_junk_in_the_folder_is_one_line_and_a_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "laptop.pub").touch()
    assert execute(["certs", str(tmp_path)]) == ConfigError.exit_code
    assert "laptop.pub: a file that is no device's public key" in capsys.readouterr().err
    assert not (tmp_path / "ca.pem").exists()
